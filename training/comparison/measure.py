"""How far solvers end from the teacher at equal network calls: ours, and every peer at its best grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...samplers import Solver, sample_table
from ...samplers.schedules import Noise
from ..data.samples import CountedDenoiser, Samples
from ..starts.candidates import candidates

__all__ = ["Entry", "Row", "Subject", "compare", "most_compared", "run_entry", "solver_entries", "table_entries"]

Run = Callable[[Tensor, Mapping[str, Any]], Tensor]
_TRIED = 8  # samples that a method's grids are tried on
_JUDGED = 3  # best of them that are judged on all samples


@dataclass(frozen=True, eq=False)
class Entry:
    """A solver on a grid: `run(x, extra_args)` returns the end states of starts x [B, ...]."""

    method: str
    grid: str
    run: Run
    ours: bool = False


@dataclass(frozen=True)
class Row:
    """What was measured at `calls` network calls.

    Args:
        calls: Calls that were allowed.
        used: Calls that were made; Heun's leave one of an even number.
        method: Solver.
        grid: Its best grid.
        error: RMSE to the teacher's ends.
        grids: Number of grids that were tried.
        ours: Whether the solver is one of those named.
    """

    calls: int
    used: int
    method: str
    grid: str
    error: float
    grids: int
    ours: bool


@dataclass(frozen=True, eq=False)
class Subject:
    """What solvers are compared on.

    Args:
        name: For people.
        model: The denoiser, for its count of calls.
        noise: Its schedule.
        samples: The starts.
        peers: Returns the peers that make at most so many calls.
        pictures: Turns end states into pictures [B, C, H, W] in [0, 1].
        best_peer: What to call the best of the peers.
        versions: Of what else took part, by name.
    """

    name: str
    model: CountedDenoiser
    noise: Noise
    samples: Samples
    peers: Callable[[int], Iterable[Entry]]
    pictures: Callable[[Tensor], Tensor]
    best_peer: str
    versions: dict[str, str]


def compare(
    entries: Mapping[int, Sequence[Entry]],
    model: CountedDenoiser,
    samples: Samples,
    ends: Tensor,
    say: Callable[[str], None],
) -> dict[Row, Entry]:
    """Returns every method at its best grid, per number of calls, ours first, then best first.

    The best grid is the one with the least error on these samples: of all grids on the first few, the best three are
    judged on all, so that the choice favours the peers.

    Args:
        entries: Per number of calls, the solvers on their grids that make at most so many.
        model: The denoiser that the entries run, for its count.
        samples: Starts.
        ends: The teacher's ends for them, shape [S, ...].
        say: Told a line per number of calls.
    """
    found: dict[Row, Entry] = {}
    few = samples.rows(0, min(_TRIED, len(samples)))
    for n, solvers in entries.items():
        rows = []
        for grids in _by_method(solvers).values():
            order = sorted(grids, key=lambda entry: _error(entry, few, ends[: len(few)])) if len(grids) > 1 else grids
            judged = [(_row(n, entry, len(grids), model, samples, ends), entry) for entry in order[:_JUDGED]]
            rows.append(min(judged, key=lambda pair: pair[0].error))
        rows.sort(key=lambda pair: (not pair[0].ours, pair[0].error))
        say(f"{n} calls: " + "; ".join(f"{row.method} {row.error:.4f}" for row, _ in rows[:3]))
        found.update(rows)
    return found


def most_compared(entries: Mapping[int, Sequence[Entry]], samples: int) -> int:
    """Returns the network calls that `compare` makes at most, one per sample and call."""
    total = 0
    for calls, solvers in entries.items():
        for grids in _by_method(solvers).values():
            tried = len(grids) * min(_TRIED, samples) if len(grids) > 1 else 0
            total += calls * (tried + min(_JUDGED, len(grids)) * samples)
    return total


def _by_method(solvers: Iterable[Entry]) -> dict[str, list[Entry]]:
    methods: dict[str, list[Entry]] = {}
    for entry in solvers:
        methods.setdefault(entry.method, []).append(entry)
    return methods


def _row(calls: int, entry: Entry, grids: int, model: CountedDenoiser, samples: Samples, ends: Tensor) -> Row:
    """Returns the measurement of a solver on all samples."""
    before = model.calls
    error = _error(entry, samples, ends)
    used = (model.calls - before) // len(samples)
    return Row(calls, used, entry.method, entry.grid, error, grids, entry.ours)


def run_entry(entry: Entry, samples: Samples) -> Tensor:
    """Returns the end states, shape [S, ...]."""
    return torch.cat([entry.run(batch.x, batch.extra_args) for _, batch in samples.batches()])


def _error(entry: Entry, samples: Samples, ends: Tensor) -> float:
    value = float((run_entry(entry, samples) - ends).cpu().double().square().mean().sqrt())
    return value if value == value else float("inf")


def table_entries(model: CountedDenoiser, noise: Noise, calls: int) -> Iterable[Entry]:
    """Returns the peers as our own tables: the methods and the grids of a fit's scan."""
    for candidate in candidates(calls, noise):
        yield Entry(candidate.method, candidate.grid_name, _run_of(model, candidate.table))


def solver_entries(model: CountedDenoiser, noise: Noise, solvers: Sequence[Solver], calls: int) -> Iterable[Entry]:
    """Returns the solvers that have a table of so many calls on this noise."""
    for solver in solvers:
        for steps in solver.steps:
            table = solver.table(steps, noise)
            if table.nfe == calls:
                yield Entry(solver.name, "its own", _run_of(model, table), ours=True)


def _run_of(model: CountedDenoiser, table: Any) -> Run:
    return lambda x, extra_args: sample_table(model, x, table, extra_args, disable=True)
