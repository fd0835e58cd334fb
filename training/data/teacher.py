"""The reference that a solver is fitted to: a many-step classical solver, or any sampler, from the same start."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
from .dense_grid import PILOT_CALLS, dense_grid
from .samples import Samples, each_microbatch

__all__ = ["PATH_NUMBERS", "TEACHERS", "Recipe", "Reference", "Teacher", "places_of"]

_log = logging.getLogger("learned_solvers")
_TABLES = {
    "ode": lambda sigmas: ipndm(sigmas, 3),  # order 4 is unstable at high guidance
    "euler": euler,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "ipndm": lambda sigmas: ipndm(sigmas, 4),
}
TEACHERS = tuple(_TABLES)
PATH_NUMBERS = 2**16
_HELD_BYTES = 2**26
_Parts = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Reference:
    """The teacher's trajectories: `levels` [T + 1], `states` [T + 1, S, ...] on the CPU; T = 0: only the ends.

    `path`: the numbers of every state at `places_of`, shape [T + 1, S, K], where they are kept. `device`: where `end`
    and `at` return states; None: on the CPU.
    """

    levels: Tensor
    states: Tensor
    path: Tensor | None = None
    device: torch.device | None = None
    _loaded: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def end(self) -> Tensor:
        """End states, shape [S, ...]."""
        return self._state(len(self.states) - 1)

    def _state(self, i: int) -> Tensor:
        """The states at a stored level, moved to the device at their first use."""
        if i not in self._loaded:
            self._loaded[i] = self.states[i].to(self.device)
        return self._loaded[i]

    def rows(self, start: int, stop: int) -> Reference:
        """The trajectories of samples start ... stop - 1."""
        return self._map(lambda states: states[:, start:stop])

    def pick(self, rows: Tensor) -> Reference:
        """The trajectories of the samples with the given numbers."""
        return self._map(lambda states: states[:, rows.to(states.device)])

    def loaded(self, samples: Samples) -> Reference:
        """The trajectories of a microbatch, for the device of its samples, which gets only the states that are used."""
        return Reference(self.levels, self.states, device=samples.x.device)

    def _map(self, part: Callable[[Tensor], Tensor]) -> Reference:
        return Reference(self.levels, part(self.states), None if self.path is None else part(self.path))

    def at(self, level: Tensor) -> Tensor:
        """States at a noise level (0-d), interpolated linearly between the stored ones, shape [S, ...]."""
        i = int((self.levels > level.detach()).sum().clamp(1, len(self.levels) - 1))
        part = (self.levels[i - 1] - level) / (self.levels[i - 1] - self.levels[i])
        before, after = self._state(i - 1), self._state(i)
        return before + part * (after - before)


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

    def run(self, model: Denoiser, samples: Samples, levels: Tensor, keep: Callable[[Tensor], object]) -> None:
        """Runs from the samples' starts on; `keep` receives the states at every level, shape [S, ...]."""

        def callback(step: dict) -> None:
            if self.method != "heun" or step["i"] % 2 == 0:  # a step's second call is off the trajectory
                keep(step["x"])

        end = sample_table(model, samples.x, _TABLES[self.method](levels), samples.extra_args, callback, disable=True)
        keep(end)

    def reference(
        self,
        model: Denoiser,
        samples: Samples,
        noise: Noise,
        *,
        trajectory: bool = False,
        path: bool = False,
        cache: Path | None = None,
        levels: Tensor | None = None,
    ) -> Reference:
        """The end states or trajectories of samples, microbatch by microbatch.

        Args:
            model: The denoiser.
            samples: Starts.
            noise: The model's schedule.
            trajectory: Keep all states, not only the ends.
            path: Keep the path.
            cache: A folder; a sample found there is not run again. File names are hashes of start, extra arguments,
                teacher and levels (objects of unknown types count by their repr), not of the model: every model needs
                its own folder.
            levels: Its grid; None: made for these samples.
        """
        levels = self.grid(model, samples, noise) if levels is None else levels
        numbers = math.prod(samples.x.shape[1:])  # a process may have no sample
        places = places_of(numbers)

        def work(batch: Samples) -> _Parts:
            states, path_states, local = _HostStates(), _HostStates(), _on_device(places, batch.x)

            def keep(x: Tensor) -> None:
                if not trajectory:
                    states.clear()
                states.append(x)
                if path:
                    path_states.append(x.flatten(1)[:, local])

            self.run(model, batch, levels, keep)
            parts = {"states": states.stacked()}
            return {**parts, "path": path_states.stacked()} if path else parts

        count = len(levels) if trajectory else 1
        shapes = {"states": (count, *samples.x.shape[1:])}
        if path:
            shapes["path"] = (len(levels), min(numbers, PATH_NUMBERS))
        key = (self, levels, trajectory, path)
        parts = _of_microbatches(work, model, samples, key, shapes, cache, self.method)
        return Reference(levels if trajectory else levels[-1:], parts["states"], parts.get("path"))


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
        """The end states of samples, see `Teacher.reference`; the cache identifies a recipe by its name."""

        def work(batch: Samples) -> _Parts:
            ends = self.run(model, batch.x, batch.extra_args)
            if not isinstance(ends, Tensor) or ends.shape != batch.x.shape:
                got = f"shape {list(ends.shape)}" if isinstance(ends, Tensor) else type(ends).__name__
                raise TypeError(
                    f"the teacher {self.name} must return end states in the shape of x, {list(batch.x.shape)}, got "
                    f"{got}: return the states, on the model's own scale"
                )
            return {"states": ends.to(batch.x).cpu()[None]}

        key, shapes = (self.name, self.steps, self.table), {"states": (1, *samples.x.shape[1:])}
        parts = _of_microbatches(work, model, samples, key, shapes, cache, self.name)
        return Reference(torch.zeros(1, dtype=torch.float64), parts["states"])

    @property
    def is_anonymous(self) -> bool:
        """Whether it is a function, which a cache and a journal cannot distinguish from others."""
        return self.steps is None and self.table is None


def places_of(numbers: int) -> Tensor | slice:
    """The numbers of a state, of so many, that a path is kept at: all, or 65,536 of them spread at random."""
    if numbers <= PATH_NUMBERS:
        return slice(None)
    return torch.randperm(numbers, generator=torch.Generator().manual_seed(0))[:PATH_NUMBERS].sort().values


def _on_device(places: Tensor | slice, x: Tensor) -> Tensor | slice:
    return places if isinstance(places, slice) else places.to(x.device)


class _HostStates:
    """States that are collected on the CPU; the device holds at most 64 MiB of them, so it is rarely waited for."""

    def __init__(self) -> None:
        self._states: list[Tensor] = []
        self._waiting = 0

    def clear(self) -> None:
        self._states, self._waiting = [], 0

    def append(self, x: Tensor) -> None:
        self._states.append(x)
        self._waiting += x.numel() * x.element_size()
        if self._waiting > _HELD_BYTES:
            self._unload()

    def _unload(self) -> None:
        self._states, self._waiting = [x.cpu() for x in self._states], 0

    def stacked(self) -> Tensor:
        """All states, shape [T + 1, B, ...]."""
        self._unload()
        return torch.stack(self._states)


def _of_microbatches(
    work: Callable[[Samples], _Parts],
    model: Denoiser,
    samples: Samples,
    key: Any,
    shapes: Mapping[str, tuple[int, ...]],
    cache: Path | None,
    name: str,
) -> _Parts:
    """The tensors [T + 1, S, ...] that `work` returns for each microbatch, of the `shapes` of one sample.

    Those of a sample in the cache are not computed again.
    """
    files = [None if cache is None else cache / _file_name(key, samples.rows(i, i + 1)) for i in range(len(samples))]
    results = [_read_cached(file, shapes) for file in files]
    missing = torch.tensor([i for i, parts in enumerate(results) if parts is None], dtype=torch.long)
    rest = samples if len(missing) == len(samples) else samples.pick(missing)

    def results_of(start: int, stop: int) -> None:
        parts = work(rest.rows(start, stop).loaded())
        finite = parts["states"][-1].isfinite().flatten(1).all(1)
        if not bool(finite.all()):
            raise ValueError(
                f"the teacher {name} ends in states that are not finite for {int((~finite).sum())} of "
                f"{stop - start} samples: give it more steps, or choose another"
            )
        for k, i in enumerate(missing[start:stop].tolist()):
            results[i] = {part: tensor[:, k] for part, tensor in parts.items()}
            if (file := files[i]) is not None:
                write_tensors(file, {part: tensor.contiguous() for part, tensor in results[i].items()})

    for _ in each_microbatch(model, rest, results_of):
        pass
    return {
        part: torch.stack([parts[part] for parts in results if parts is not None], 1)
        if results
        else samples.x.new_zeros(shape[0], 0, *shape[1:]).cpu()
        for part, shape in shapes.items()
    }


def _file_name(key: Any, sample: Samples) -> str:
    return f"{content_hash(key, sample.x, sample.extra_args)[:32]}{WORK_SUFFIX}"


def _read_cached(path: Path | None, shapes: Mapping[str, tuple[int, ...]]) -> _Parts | None:
    """The tensors in a cache file; None if it is missing or damaged."""
    if path is None or not path.exists():
        return None
    try:
        parts = load(path.read_bytes())  # not mapped: Windows deletes no mapped file
        if {name: tuple(part.shape) for name, part in parts.items()} == dict(shapes):
            return parts
        reason = f"its states have shapes {[list(part.shape) for part in parts.values()]}"
    except SafetensorError as error:
        reason = str(error)
    _log.warning("%s is damaged (%s): running the teacher again", path, reason[:200])
    return None
