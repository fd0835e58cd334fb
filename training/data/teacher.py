"""The reference that a solver is fitted to: a many-step classical solver from the same start."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ...samplers import dpmpp_2m, euler, heun, ipndm, sample_table
from ...samplers.files.write import write_tensors
from ...samplers.loop import Denoiser
from ...samplers.schedules import Noise
from ..store.content import content_hash
from .batch_limit import BatchLimit
from .samples import CountedDenoiser, Samples

__all__ = ["TEACHERS", "Reference", "Teacher"]

_log = logging.getLogger("learned_solvers")
_TABLES = {"euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m, "ipndm": lambda sigmas: ipndm(sigmas, 4)}
TEACHERS = tuple(_TABLES)


@dataclass(frozen=True, eq=False)
class Reference:
    """The teacher's trajectories: `levels` [T + 1], `states` [T + 1, S, ...]; T = 0: only the ends."""

    levels: Tensor
    states: Tensor

    @property
    def end(self) -> Tensor:
        """End states, shape [S, ...]."""
        return self.states[-1]

    def rows(self, start: int, stop: int) -> Reference:
        """The trajectories of samples start ... stop - 1."""
        return Reference(self.levels, self.states[:, start:stop])

    def pick(self, rows: Tensor) -> Reference:
        """The trajectories of the samples with the given numbers."""
        return Reference(self.levels, self.states[:, rows.to(self.states.device)])

    def at(self, level: Tensor) -> Tensor:
        """States at a noise level (0-d), interpolated linearly between the stored ones, shape [S, ...]."""
        i = int((self.levels > level.detach()).sum().clamp(1, len(self.levels) - 1))
        part = (self.levels[i - 1] - level) / (self.levels[i - 1] - self.levels[i])
        return self.states[i - 1] + part * (self.states[i] - self.states[i - 1])


@dataclass(frozen=True)
class Teacher:
    """A many-step reference.

    Args:
        method: One of TEACHERS. heun makes two calls per step, one in the last; the others make one.
        steps: Steps of its grid.
    """

    method: str = "heun"
    steps: int = 60

    def __post_init__(self) -> None:
        if self.method not in TEACHERS:
            raise ValueError(f"teacher must be one of {', '.join(TEACHERS)}, got {self.method!r}")
        if self.steps < 2:
            raise ValueError(f"a teacher needs at least 2 steps, got {self.steps}: use 28 to 100")

    @property
    def calls(self) -> int:
        """Network calls per sample."""
        return 2 * self.steps - 1 if self.method == "heun" else self.steps

    def reference(
        self,
        model: Denoiser,
        samples: Samples,
        noise: Noise,
        *,
        trajectory: bool = False,
        cache: Path | None = None,
    ) -> Reference:
        """The teacher's end states or trajectories, computed microbatch by microbatch.

        Args:
            model: The denoiser.
            samples: Starts.
            noise: The model's schedule.
            trajectory: Keep all states, not only the ends.
            cache: A folder; a microbatch found there is not run again. File names are hashes of starts, extra
                arguments and teacher (objects of unknown types count by their repr), not of the model: every model
                needs its own folder.
        """
        levels = noise.teacher_grid(self.steps)

        def states_of(start: int, stop: int) -> Tensor:
            batch = samples.rows(start, stop)
            path = None
            if cache is not None:
                name = content_hash(self, levels, trajectory, batch.x, batch.extra_args)[:32]
                path = cache / f"{name}.safetensors"
            states = _cached(path, batch)
            if states is None:
                states = self._run(model, batch, levels, trajectory)
                if path is not None:
                    write_tensors(path, {"states": states})
            return states

        limit = model.batch_limit if isinstance(model, CountedDenoiser) else BatchLimit()
        parts = list(limit.each(len(samples), samples.microbatch, states_of))
        return Reference(levels if trajectory else levels[-1:], torch.cat(parts, dim=1))

    def _run(self, model: Denoiser, batch: Samples, levels: Tensor, trajectory: bool) -> Tensor:
        states: list[Tensor] = []
        keep = (lambda step: states.append(step["x"])) if trajectory else None
        end = sample_table(model, batch.x, _TABLES[self.method](levels), batch.extra_args, keep, disable=True)
        if self.method == "heun":  # a step's second call is off the trajectory
            states = states[::2]
        return torch.stack([*states, end])


def _cached(path: Path | None, batch: Samples) -> Tensor | None:
    """The states in a cache file; None if it is missing or damaged."""
    if path is None or not path.exists():
        return None
    try:
        states = load(path.read_bytes())["states"]  # not mapped: Windows deletes no mapped file
        if states.shape[1:] == batch.x.shape:
            return states.to(batch.x.device)
        reason = f"its states have shape {list(states.shape)}"
    except (SafetensorError, KeyError) as error:
        reason = str(error)
    _log.warning("%s is damaged (%s): running the teacher again", path, reason[:200])
    return None
