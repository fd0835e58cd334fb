"""The reference that a solver is fitted to: a many-step classical solver, or any sampler, from the same start."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ...samplers import SolverTable, dpmpp_2m, euler, heun, ipndm, sample_table
from ...samplers.files.write import write_tensors
from ...samplers.loop import Denoiser
from ...samplers.schedules import Noise
from ..store.content import content_hash
from ..store.output import WORK_SUFFIX
from .batch_limit import BatchLimit
from .dense_grid import PILOT_CALLS, dense_grid
from .samples import CountedDenoiser, Samples

__all__ = ["TEACHERS", "Recipe", "Reference", "Teacher"]

_log = logging.getLogger("learned_solvers")
_TABLES = {
    "ode": lambda sigmas: ipndm(sigmas, 3),  # order 4 is unstable at high guidance
    "euler": euler,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "ipndm": lambda sigmas: ipndm(sigmas, 4),
}
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
    """A many-step classical solver.

    Args:
        method: One of TEACHERS. ode is ipndm 3 on a grid made for the model, see `dense_grid`; the others run on the
            noise schedule's. heun makes two calls per step, one in the last; the others make one.
        steps: Steps of its grid.
    """

    method: str = "ode"
    steps: int = 60

    def __post_init__(self) -> None:
        if self.method not in TEACHERS:
            raise ValueError(f"teacher must be one of {', '.join(TEACHERS)}, got {self.method!r}")
        if self.steps < 2:
            raise ValueError(f"a teacher needs at least 2 steps, got {self.steps}: use 28 to 100")

    def __str__(self) -> str:
        return f"{self.method}, {self.steps} steps"

    @classmethod
    def of(cls, name: str, steps: int | None, longest: int, factor: int = 6) -> Teacher:
        """The teacher of that name for solvers of at most `longest` steps.

        By default it takes `factor` times their steps, at least 20: its error is then small compared with the solvers'.
        """
        return cls(name, max(20, factor * longest) if steps is None else steps)

    @property
    def name(self) -> str:
        """The method, as on the card."""
        return self.method

    @property
    def calls(self) -> int:
        """Network calls per sample."""
        return 2 * self.steps - 1 if self.method == "heun" else self.steps

    @property
    def pilot_calls(self) -> int:
        """Network calls before the first sample."""
        return PILOT_CALLS if self.method == "ode" else 0

    def grid(self, model: Denoiser, samples: Samples, noise: Noise) -> Tensor:
        """Its levels for these samples, shape [steps + 1]; takes `pilot_calls`."""
        return dense_grid(model, samples, noise, self.steps) if self.method == "ode" else noise.teacher_grid(self.steps)

    def run(self, model: Denoiser, samples: Samples, levels: Tensor) -> Tensor:
        """The states at all levels, from the samples' starts on, shape [steps + 1, S, ...]."""
        states: list[Tensor] = []

        def keep(step: dict) -> None:
            states.append(step["x"])

        end = sample_table(model, samples.x, _TABLES[self.method](levels), samples.extra_args, keep, disable=True)
        if self.method == "heun":  # a step's second call is off the trajectory
            states = states[::2]
        return torch.stack([*states, end])

    def reference(
        self,
        model: Denoiser,
        samples: Samples,
        noise: Noise,
        *,
        trajectory: bool = False,
        cache: Path | None = None,
        levels: Tensor | None = None,
    ) -> Reference:
        """The end states or trajectories of samples, microbatch by microbatch.

        Args:
            model: The denoiser.
            samples: Starts.
            noise: The model's schedule.
            trajectory: Keep all states, not only the ends.
            cache: A folder; a microbatch found there is not run again. File names are hashes of starts, extra
                arguments, teacher and levels (objects of unknown types count by their repr), not of the model: every
                model needs its own folder.
            levels: Its grid; None: made for these samples.
        """
        levels = self.grid(model, samples, noise) if levels is None else levels

        def states_of(batch: Samples) -> Tensor:
            states = self.run(model, batch, levels)
            return states if trajectory else states[-1:]

        states = _of_microbatches(states_of, model, samples, (self, levels, trajectory), cache, self.method)
        return Reference(levels if trajectory else levels[-1:], states)


@dataclass(frozen=True)
class Recipe:
    """Any sampler as the teacher: "as I sample today", or another model.

    Args:
        name: As on the card, "euler simple".
        steps: Its steps, for the card; None: unknown.
        calls: Network calls of the fitted model per sample; 0 if it runs another model.
        run: `run(model, x, extra_args) -> end states`; must not draw noise.
        table: The table that it runs; None: a function.
    """

    name: str
    steps: int | None
    calls: int
    run: Callable[[Denoiser, Tensor, Mapping[str, Any]], Tensor]
    table: SolverTable | None = None

    def __str__(self) -> str:
        return self.name if self.steps is None else f"{self.name}, {self.steps} steps"

    @classmethod
    def of(cls, teacher: SolverTable | Callable[..., Tensor]) -> Recipe:
        """A solver's table, or a function as for `run`, whose calls are not known and not counted."""
        if not isinstance(teacher, SolverTable):
            return cls(getattr(teacher, "__name__", "function"), None, 0, teacher)

        def run(model: Denoiser, x: Tensor, extra_args: Mapping[str, Any]) -> Tensor:
            return sample_table(model, x, teacher, extra_args, disable=True)

        return cls("table", teacher.steps, teacher.nfe, run, teacher)

    def reference(self, model: Denoiser, samples: Samples, *, cache: Path | None = None) -> Reference:
        """The end states of samples, as `Teacher.reference` gives them; the cache knows a recipe by its name."""

        def ends_of(batch: Samples) -> Tensor:
            ends = self.run(model, batch.x, batch.extra_args)
            if not isinstance(ends, Tensor) or ends.shape != batch.x.shape:
                got = f"shape {list(ends.shape)}" if isinstance(ends, Tensor) else type(ends).__name__
                raise TypeError(
                    f"the teacher {self.name} must return end states in the shape of x, {list(batch.x.shape)}, got "
                    f"{got}: return the states, on the model's own scale"
                )
            return ends.to(batch.x)[None]

        key = (self.name, self.steps, self.table)
        states = _of_microbatches(ends_of, model, samples, key, cache, self.name)
        return Reference(torch.zeros(1, dtype=torch.float64), states)

    @property
    def is_anonymous(self) -> bool:
        """Whether it is a function, which a cache and a journal cannot tell from others."""
        return self.steps is None and self.table is None


def _of_microbatches(
    work: Callable[[Samples], Tensor], model: Denoiser, samples: Samples, key: Any, cache: Path | None, name: str
) -> Tensor:
    """The states [T + 1, S, ...] that `work` returns for each microbatch, from the cache where it has them."""

    def states_of(start: int, stop: int) -> Tensor:
        batch = samples.rows(start, stop)
        path = None
        if cache is not None:
            path = cache / f"{content_hash(key, batch.x, batch.extra_args)[:32]}{WORK_SUFFIX}"
        states = _cached(path, batch)
        if states is None:
            states = work(batch)
            finite = states[-1].isfinite().flatten(1).all(1)
            if not bool(finite.all()):
                raise ValueError(
                    f"the teacher {name} ends in states that are not finite for {int((~finite).sum())} of "
                    f"{len(batch)} samples: give it more steps, or choose another"
                )
            if path is not None:
                write_tensors(path, {"states": states})
        return states

    limit = model.batch_limit if isinstance(model, CountedDenoiser) else BatchLimit()
    return torch.cat(list(limit.each(len(samples), samples.microbatch, states_of)), dim=1)


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
