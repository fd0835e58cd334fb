"""Where a fit starts, and what its result is compared with: the classical solvers on many grids, tried on few samples.

The fitting problem has several minima and the start decides, so the best few are started from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...samplers import (
    Grid,
    SolverTable,
    adams_bashforth,
    deis,
    deis_edm,
    dpmpp_2m,
    euler,
    euler_end,
    heun,
    ipndm,
    ipndm_v,
    res_multistep,
    uni_pc,
)
from ...samplers.classical.exponential import UNIPC_END
from ...samplers.schedules import Noise
from ..data.trial import Trial
from .published import Levels, published_grids

__all__ = [
    "HOST_METHODS",
    "SCANNED",
    "Candidate",
    "best_of_methods",
    "candidate_named",
    "candidates",
    "carrier",
    "rank",
    "rmse",
    "rmse_and_median",
    "scan_calls",
]

SCANNED = 16  # samples that a fit ranks the candidates on

HOST_METHODS: dict[str, Callable[[Tensor], SolverTable]] = {
    "euler": euler,
    "heun": heun,
    "lms": lambda s: euler_end(adams_bashforth(s, 4)),
    "ipndm": lambda s: euler_end(ipndm(s, 4)),
    "ipndm_v": lambda s: euler_end(ipndm_v(s)),
    "deis": deis_edm,
    "dpmpp_2m": dpmpp_2m,
    "res_multistep": res_multistep,
    "uni_pc": uni_pc,
    "uni_pc_bh2": lambda s: uni_pc(s, "bh2"),
}
"""The methods as ComfyUI runs its samplers of these names."""

_FEW = (2, 6)  # samples of the first stages of a scan
_KEPT = 3  # one of so many candidates goes on to the next stage


@dataclass(frozen=True, eq=False)
class Candidate:
    """A classical solver on a grid.

    `grid` is its rule, or None where no rule makes the levels (a published list) or they are not one per call (Heun).
    """

    method: str
    grid_name: str
    grid: Grid | None
    table: SolverTable

    @property
    def name(self) -> str:
        """Both for people: "ipndm 3, shift 1"."""
        return f"{self.method}, {self.grid_name}"


def carrier(table: SolverTable, noise: Noise) -> Grid:
    """Returns a grid rule that can carry a table of other levels: it ends where they do, and its levels are not theirs.

    DyWeight's weights are steps from a true level towards the next of the grid, so no step may be 0.
    """

    def room(grid: Grid) -> float:
        levels = _levels(lambda n: grid.levels(n, noise), table.steps)
        if levels is None:
            return -math.inf
        steps = (levels[1:] / table.levels[:-1] - 1).abs().min()
        return float(steps) - float((levels[-1] == 0) != (table.levels[-1] == 0))

    return max(noise.usual_grids().values(), key=room)


def candidates(steps: int, noise: Noise) -> Iterator[Candidate]:
    """Yields every classical solver on every grid, at `steps` calls or, Heun's, one less.

    Solvers with an order in their name have it up to the last step; the others are ComfyUI's. Orders that the step
    count cannot reach are left out.
    """
    grids: list[tuple[str, Grid | None, Levels]] = [
        (name, grid, lambda n, grid=grid: grid.levels(n, noise)) for name, grid in noise.usual_grids().items()
    ]
    grids += [(name, None, levels) for name, levels in published_grids(noise).items()]
    for grid_name, grid, levels_of in grids:
        levels = _levels(levels_of, steps)
        if levels is None:
            continue
        for name, method in _methods(steps, noise, levels):
            yield Candidate(name, grid_name, grid, method(levels))
        fewer = (steps + int(levels[-1] == 0)) // 2  # two calls each, one in a last step to 0
        short = _levels(levels_of, fewer) if fewer > 1 else None
        if short is not None:
            yield Candidate("heun", grid_name, None, heun(short))


def _levels(levels_of: Levels, steps: int) -> Tensor | None:
    """Returns a grid's levels; None where it has none for so many steps, as on a model of fewer timesteps."""
    try:
        levels = levels_of(steps)
    except ValueError:
        return None
    return levels if levels is not None and bool((levels.diff() < 0).all()) else None


def candidate_named(name: str, steps: int, noise: Noise) -> Candidate:
    """Returns the candidate of a name that `candidates` gave."""
    return next(candidate for candidate in candidates(steps, noise) if candidate.name == name)


def _methods(steps: int, noise: Noise, levels: Tensor) -> Iterator[tuple[str, Callable[[Tensor], SolverTable]]]:
    ends_at_0 = float(levels[-1]) == 0
    for name, method in HOST_METHODS.items():
        if name.startswith("uni_pc") and ends_at_0 and float(levels[-2]) <= UNIPC_END * (1 + 1e-6):
            continue  # no step is left to the level that it takes 0 as
        if name == "euler" or (name != "heun" and steps > 1):
            yield name, method
    for order in range(2, min(steps, 4) + 1):
        yield f"ipndm {order}", lambda s, order=order: ipndm(s, order)
        if order < 4:
            yield f"ab {order}", lambda s, order=order: adams_bashforth(s, order)
            if not noise.time_is_sigma and not ends_at_0:  # model time has no value at sigma 0
                yield f"deis {order}", lambda s, order=order: deis(s, order, noise)


def rank(trial: Trial, tried: Sequence[Candidate]) -> list[tuple[float, Candidate]]:
    """Returns the candidates with their RMSE to the teacher, best first.

    All are tried on 2 samples; the best third and the best of each method go on to 6, of these again a third to all.
    Those left behind come after those that went on, with the error on the samples that they saw.
    """
    stages = [len(trial.first(count).samples) for count in (*_FEW, trial.total) if count <= trial.total]
    totals, seen = dict.fromkeys(tried, 0.0), 0
    ranked: list[tuple[float, Candidate]] = []
    behind: list[tuple[float, Candidate]] = []
    going = list(tried)
    for stage, stop in enumerate(stages):
        samples, reference = trial.samples.rows(seen, stop), trial.reference.rows(seen, stop)
        part = replace(trial, samples=samples, reference=reference)
        for candidate in going:
            totals[candidate] += float(part.errors(candidate.table).sum()) if stop > seen else 0.0
        seen = stop
        sums = trial.processes.sums(torch.tensor([*(totals[c] for c in going), float(seen)], dtype=torch.float64))
        errors = (sums[:-1] / sums[-1]).sqrt().nan_to_num(nan=float("inf"), posinf=float("inf")).tolist()
        ranked = sorted(zip(errors, going, strict=True), key=lambda pair: pair[0])
        if stage < len(stages) - 1:
            order = [candidate for _, candidate in ranked]
            kept = {*order[: -(-len(order) // _KEPT)], *best_of_methods(order)}
            behind = [pair for pair in ranked if pair[1] not in kept] + behind
            going = [candidate for candidate in going if candidate in kept]
    return ranked + behind


def best_of_methods(order: Sequence[Candidate]) -> list[Candidate]:
    """Returns the first of each method, of candidates in order: each method at its best grid, the best one first."""
    best: dict[str, Candidate] = {}
    for candidate in order:
        best.setdefault(candidate.method, candidate)
    return list(best.values())


def scan_calls(tried: Sequence[Candidate], samples: int) -> int:
    """Returns an upper bound of the network calls of `rank` on so many samples, one per sample and call."""
    calls = max(candidate.table.nfe for candidate in tried)
    methods = len(best_of_methods(tried))
    total, going, seen = 0, len(tried), 0
    for stop in [*(count for count in _FEW if count < samples), samples]:
        total += going * (stop - seen) * calls
        going, seen = min(going, -(-going // _KEPT) + methods), stop
    return total


def rmse(trial: Trial, table: SolverTable) -> float:
    """The root mean square distance to the teacher's end over all samples of all processes."""
    return rmse_and_median(trial, table)[0]


def rmse_and_median(trial: Trial, table: SolverTable) -> tuple[float, float]:
    """The same, and the root of the median of the samples' mean squares, which outliers do not dominate."""
    squares = trial.processes.joined(trial.errors(table), trial.samples, trial.total)
    squares = squares.nan_to_num(nan=math.inf, posinf=math.inf)
    return (float(squares.sum()) / trial.total) ** 0.5, float(squares.median()) ** 0.5
