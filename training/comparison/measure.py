"""The distance of solvers to a teacher at equal network calls: learned solvers, and each peer on its best grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ...samplers import Guidance, Solver, SolverTable, sample_table
from ...samplers.loop import Denoiser
from ...samplers.schedules import Noise
from ..data.batch_limit import Memory
from ..data.samples import CountedDenoiser, Samples
from ..data.teacher import Recipe, Teacher
from ..report import FitResult
from ..starts.candidates import candidates

__all__ = [
    "ComparedModel",
    "Entry",
    "Refusal",
    "Result",
    "compare",
    "fit_results",
    "most_compared",
    "solver_entries",
    "table_entries",
    "teacher_result",
]

_GRID_SAMPLES = 8  # samples on which every grid of a method is tried
_BEST_GRIDS = 3  # grids of a method that are measured on all samples


class Counter(Protocol):
    """Counts network calls, one per sample and call, and cuts samples into microbatches, see `CountedDenoiser.each`."""

    calls: int

    def each(self, samples: Samples, work: Callable[[int, int], Tensor]) -> Iterator[Tensor]: ...


class Refusal(Exception):
    """Raised by a solver that cannot run, with the reason."""


@dataclass(frozen=True, eq=False)
class Entry:
    """A solver on a grid: `run(x, extra_args)` returns the end states of starts x [B, ...], or raises a Refusal."""

    method: str
    grid: str
    run: Callable[[Tensor, Mapping[str, Any]], Tensor]
    learned: bool = False


@dataclass(frozen=True, eq=False)
class Result:
    """A solver's distance to the teacher.

    Args:
        calls: Network calls allowed per start.
        used: Network calls made per start; one less than an even number for Heun's method.
        method: Name of the solver.
        grid: Its best grid; in ComfyUI the solver file chosen by `auto`.
        learned: Whether it is a learned solver.
        errors: Root mean square distance of each start's end to the teacher's; empty for a refusal.
        ends: End states of the first starts, for pictures, on the CPU; None for a refusal.
        refusal: Why the solver cannot run.
        grids: Number of grids tried.
    """

    calls: int
    used: int
    method: str
    grid: str
    learned: bool = False
    errors: tuple[float, ...] = ()
    ends: Tensor | None = None
    refusal: str = ""
    grids: int = 1

    @property
    def error(self) -> float:
        """Root mean square distance over all starts; infinite for a refusal and for states that are not finite."""
        if not self.errors or not all(map(math.isfinite, self.errors)):
            return math.inf
        return math.sqrt(sum(error**2 for error in self.errors) / len(self.errors))


@dataclass(frozen=True, eq=False)
class ComparedModel:
    """A model to compare on, at one guidance: `peers(calls)` yields entries, `pictures(ends)` shape [B, C, H, W]."""

    name: str
    denoiser: CountedDenoiser
    noise: Noise
    guidance: Guidance
    samples: Samples
    peers: Callable[[int], Iterable[Entry]]
    pictures: Callable[[Tensor], Tensor]


def compare(
    entries: Mapping[int, Sequence[Entry]],
    counter: Counter,
    samples: Samples,
    goal: Tensor,
    *,
    pictures: int,
    log: Callable[[str], None] = lambda line: None,
) -> list[Result]:
    """Measures every method on its best grid; per number of calls, learned solvers first, then by error.

    The best grid is the one with the smallest error on these samples, which favours the peers: all grids are tried on a
    few samples, and the best three are measured on all.

    Args:
        entries: By number of calls, solvers on grids with at most that number.
        counter: Counts the calls of all entries.
        samples: Starts and their arguments.
        goal: The teacher's end states, shape [S, ...], on the CPU.
        pictures: Number of samples whose end states are kept.
        log: Receives a line per number of calls.
    """
    results = []
    few = samples.rows(0, min(_GRID_SAMPLES, len(samples)))
    for calls, solvers in entries.items():
        best = []
        for grids in _by_method(solvers).values():
            order = grids
            if len(grids) > 1:
                order = sorted(grids, key=lambda entry: _measure(calls, entry, counter, few, goal[: len(few)], 0).error)
            measured = (_measure(calls, entry, counter, samples, goal, pictures) for entry in order[:_BEST_GRIDS])
            best.append(replace(min(measured, key=lambda result: result.error), grids=len(grids)))
        best.sort(key=lambda result: (not result.learned, result.error))
        log(f"{calls} calls: " + "; ".join(f"{result.method} {result.error:.4f}" for result in best[:3]))
        results += best
    return results


def most_compared(entries: Mapping[int, Sequence[Entry]], samples: int) -> int:
    """Upper bound of the network calls of `compare`, one per sample and call."""
    total = 0
    for calls, solvers in entries.items():
        for grids in _by_method(solvers).values():
            tried = len(grids) * min(_GRID_SAMPLES, samples) if len(grids) > 1 else 0
            total += calls * (tried + min(_BEST_GRIDS, len(grids)) * samples)
    return total


def _by_method(solvers: Iterable[Entry]) -> dict[str, list[Entry]]:
    methods: dict[str, list[Entry]] = {}
    for entry in solvers:
        methods.setdefault(entry.method, []).append(entry)
    return methods


def _measure(calls: int, entry: Entry, counter: Counter, samples: Samples, goal: Tensor, pictures: int) -> Result:
    before = counter.calls

    def run(start: int, stop: int) -> Tensor:
        batch = samples.rows(start, stop).loaded()
        return entry.run(batch.x, batch.extra_args).cpu()

    try:
        ends = torch.cat(list(counter.each(samples, run)))
    except Refusal as refusal:
        return Result(calls, 0, entry.method, entry.grid, entry.learned, refusal=str(refusal))
    used = (counter.calls - before) // len(samples)
    errors = (ends - goal).cpu().double().flatten(1).square().mean(1).sqrt().tolist()
    return Result(calls, used, entry.method, entry.grid, entry.learned, tuple(errors), ends[:pictures].clone())


def _table_entry(model: Denoiser, method: str, grid: str, table: SolverTable, learned: bool = False) -> Entry:
    return Entry(method, grid, lambda x, extra_args: sample_table(model, x, table, extra_args, disable=True), learned)


def table_entries(model: Denoiser, noise: Noise, calls: int) -> Iterable[Entry]:
    """Yields the methods and grids of a fit's scan, as tables."""
    for candidate in candidates(calls, noise):
        yield _table_entry(model, candidate.method, candidate.grid_name, candidate.table)


def solver_entries(
    model: Denoiser, noise: Noise, solvers: Sequence[Solver], calls: int, guidance: Guidance | None
) -> Iterable[Entry]:
    """Yields the solvers that have a table with `calls` calls."""
    for solver in solvers:
        if calls in solver.steps:
            table = solver.table(calls, noise, solver.guidance_of(guidance))
            yield _table_entry(model, solver.name, "its own", table, learned=True)


def teacher_result(method: str, calls: int, goal: Tensor) -> Result:
    """The teacher as a result with errors of 0, for pictures of its end states."""
    return Result(calls, calls, method, "", errors=(0.0,) * len(goal), ends=goal)


def fit_results(
    solver: Solver,
    fit: FitResult,
    teacher: Teacher | Recipe,
    model: Denoiser,
    starts: Samples,
    noise: Noise,
    memory: Memory | None = None,
) -> list[Result]:
    """Runs a fitted solver on a few starts: first the teacher, then per step count the solver and its best peer."""
    counted = CountedDenoiser(model, starts.x.dtype, memory=memory)
    if isinstance(teacher, Recipe):
        goal = teacher.reference(counted, starts).end
    else:
        goal = teacher.reference(counted, starts, noise, levels=fit.levels).end
    entries = {}
    for steps in solver.steps:
        peer = fit.report[steps].peers[0]
        assert peer.table is not None
        method, grid = peer.name.split(", ", 1)
        entries[steps] = [
            *solver_entries(counted, noise, [solver], steps, None),
            _table_entry(counted, method, grid, peer.table),
        ]
    results = compare(entries, counted, starts, goal, pictures=len(goal))
    return [teacher_result(teacher.name, teacher.calls, goal), *results]
