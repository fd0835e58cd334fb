"""Classical solvers on many grids, ranked on few samples: the starts of a fit and the peers of its result.

The fitting problem has several minima and the start decides between them, so a fit tries the best few.
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
    "Candidate",
    "UsualSampler",
    "best_of_methods",
    "candidates",
    "candidates_on",
    "carrier_grid",
    "levels_at",
    "peers_of",
    "rank",
    "rmse",
    "rmse_and_median",
    "scan_calls",
]


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
"""The methods as ComfyUI runs them, by the names of its samplers."""

_COMMON_METHODS = ("euler", "dpmpp_2m", "ipndm", "deis", "uni_pc_bh2")
_COMMON_GRIDS = {
    "flow": ("shift 1", "shift 3"),
    "vp": ("karras 7", "sgm_uniform", "beta"),
    "edm": ("karras 7", "polynomial 7"),
}
_FIRST_STAGES = (2, 6)  # samples of the first stages of a scan
_REDUCTION = 3  # one candidate in three reaches the next stage


@dataclass(frozen=True, eq=False)
class Candidate:
    """A classical solver on a grid.

    `grid` is its rule; None if the levels come from a published list, or if there is not one per call (Heun).
    """

    method: str
    grid_name: str
    grid: Grid | None
    table: SolverTable

    @property
    def name(self) -> str:
        """Method and grid, as in "ipndm 3, shift 1"."""
        return f"{self.method}, {self.grid_name}"


@dataclass(frozen=True, eq=False)
class UsualSampler:
    """What a model is usually sampled with: a method of HOST_METHODS, and the model's own grid by name.

    `levels` returns the grid for a number of steps.
    """

    method: str
    grid_name: str
    levels: Levels

    @property
    def name(self) -> str:
        """As a candidate's: "euler, simple"."""
        return f"{self.method}, {self.grid_name}"


def carrier_grid(table: SolverTable, noise: Noise) -> Grid:
    """The usual grid on which DyWeight best represents a table with other levels.

    DyWeight's weights multiply steps from a table's level to the next grid level, so no such step may be 0, and both
    must end at 0 or neither.
    """

    def smallest_step(grid: Grid) -> float:
        levels = levels_at(lambda n: grid.levels(n, noise), table.steps)
        if levels is None:
            return -math.inf
        steps = (levels[1:] / table.levels[:-1] - 1).abs().min()
        return float(steps) - float((levels[-1] == 0) != (table.levels[-1] == 0))

    return max(noise.usual_grids().values(), key=smallest_step)


def candidates(steps: int, noise: Noise) -> Iterator[Candidate]:
    """Yields every classical solver on every grid, with `steps` calls (Heun: or one less).

    Solvers with an order in their name keep it up to the last step; the others are ComfyUI's. Orders that the step
    count cannot reach are left out.
    """
    grids: list[tuple[str, Grid | None, Levels]] = [
        (name, grid, lambda n, grid=grid: grid.levels(n, noise)) for name, grid in noise.usual_grids().items()
    ]
    grids += [(name, None, levels) for name, levels in published_grids(noise).items()]
    for grid_name, grid, levels_of in grids:
        yield from candidates_on(grid_name, grid, levels_of, steps, noise)


def candidates_on(
    grid_name: str, grid: Grid | None, levels_of: Levels, steps: int, noise: Noise
) -> Iterator[Candidate]:
    """Yields every classical solver on one grid."""
    levels = levels_at(levels_of, steps)
    if levels is None:
        return
    for name, method in _methods(steps, noise, levels):
        yield Candidate(name, grid_name, grid, method(levels))
    fewer = (steps + int(levels[-1] == 0)) // 2  # two calls each, one in a last step to 0
    short = levels_at(levels_of, fewer) if fewer > 1 else None
    if short is not None:
        yield Candidate("heun", grid_name, None, heun(short))


def levels_at(levels_of: Levels, steps: int) -> Tensor | None:
    """A grid's levels, or None if it has none for this step count, as on a model with fewer timesteps."""
    try:
        levels = levels_of(steps)
    except ValueError:
        return None
    return levels if levels is not None and len(levels) == steps + 1 and bool((levels.diff() < 0).all()) else None


def peers_of(steps: int, noise: Noise, *, every: bool, usual: UsualSampler | None = None) -> list[Candidate]:
    """The classical solvers that a fit compares with: every candidate or those in common use, and the usual sampler.

    The common methods are compared on the usual sampler's grid too.
    """
    options, grids, methods = list(candidates(steps, noise)), _COMMON_GRIDS[noise.kind], set(_COMMON_METHODS)
    if not every:
        options = [c for c in options if c.method in methods and c.grid_name in grids] or options[:1]
    if usual is not None:
        on_grid = candidates_on(usual.grid_name, None, usual.levels, steps, noise)
        on_usual = {c.name: c for c in on_grid if c.method in methods | {usual.method}}
        options = [*(c for c in options if c.name not in on_usual), *on_usual.values()]
    return options


def _methods(steps: int, noise: Noise, levels: Tensor) -> Iterator[tuple[str, Callable[[Tensor], SolverTable]]]:
    ends_at_0 = float(levels[-1]) == 0
    for name, method in HOST_METHODS.items():
        if name.startswith("uni_pc") and ends_at_0 and float(levels[-2]) <= UNIPC_END * (1 + 1e-6):
            continue  # UniPC replaces 0 by this level, so the last step would be empty
        if name == "euler" or (name != "heun" and steps > 1):
            yield name, method
    for order in range(2, min(steps, 4) + 1):
        yield f"ipndm {order}", lambda s, order=order: ipndm(s, order)
        if order < 4:
            yield f"ab {order}", lambda s, order=order: adams_bashforth(s, order)
            if not noise.time_is_sigma and not ends_at_0:  # model time has no value at sigma 0
                yield f"deis {order}", lambda s, order=order: deis(s, order, noise)


def rank(trial: Trial, options: Sequence[Candidate]) -> list[tuple[float, Candidate]]:
    """The candidates with their RMSE to the teacher, best first.

    All are run on 2 samples; the best third and the best of each method on 6; a third of these on all. Eliminated
    candidates come last, with the error on the samples that they were run on.
    """
    stages = [len(trial.first(count).samples) for count in (*_FIRST_STAGES, trial.total) if count <= trial.total]
    totals, seen = dict.fromkeys(options, 0.0), 0
    ranked: list[tuple[float, Candidate]] = []
    eliminated: list[tuple[float, Candidate]] = []
    remaining = list(options)
    for stage, stop in enumerate(stages):
        samples, reference = trial.samples.rows(seen, stop), trial.reference.rows(seen, stop)
        part = replace(trial, samples=samples, reference=reference)
        for candidate in remaining:
            totals[candidate] += float(part.errors(candidate.table).sum()) if stop > seen else 0.0
        seen = stop
        sums = trial.processes.sums(torch.tensor([*(totals[c] for c in remaining), float(seen)], dtype=torch.float64))
        errors = (sums[:-1] / sums[-1]).sqrt().nan_to_num(nan=float("inf"), posinf=float("inf")).tolist()
        ranked = sorted(zip(errors, remaining, strict=True), key=lambda pair: pair[0])
        if stage < len(stages) - 1:
            order = [candidate for _, candidate in ranked]
            kept = {*order[: -(-len(order) // _REDUCTION)], *best_of_methods(order)}
            eliminated = [pair for pair in ranked if pair[1] not in kept] + eliminated
            remaining = [candidate for candidate in remaining if candidate in kept]
    return ranked + eliminated


def best_of_methods(order: Sequence[Candidate]) -> list[Candidate]:
    """Each method at its best grid, from candidates in order: the best method first."""
    best: dict[str, Candidate] = {}
    for candidate in order:
        best.setdefault(candidate.method, candidate)
    return list(best.values())


def scan_calls(options: Sequence[Candidate], samples: int) -> int:
    """An upper bound of the network calls of `rank`, one per sample and call."""
    calls = max(candidate.table.nfe for candidate in options)
    methods = len(best_of_methods(options))
    total, remaining, seen = 0, len(options), 0
    for stop in [*(count for count in _FIRST_STAGES if count < samples), samples]:
        total += remaining * (stop - seen) * calls
        remaining, seen = min(remaining, -(-remaining // _REDUCTION) + methods), stop
    return total


def rmse(trial: Trial, table: SolverTable) -> float:
    """Root mean square distance to the teacher's end over the samples of all processes."""
    return rmse_and_median([trial], table)[0]


def rmse_and_median(trials: Sequence[Trial], table: SolverTable) -> tuple[float, float]:
    """The same over several trials, and the root of the samples' median mean square, which outliers do not move."""
    squares = torch.cat([t.processes.gather(t.errors(table), t.samples, t.total) for t in trials])
    squares = squares.nan_to_num(nan=math.inf, posinf=math.inf)
    return float(squares.mean()) ** 0.5, float(squares.median()) ** 0.5
