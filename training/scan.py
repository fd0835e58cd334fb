"""Where a fit starts: the classical solvers on many grids, tried on a few samples.

The fitting problem has several minima and the start decides, so the best few are started from. The same candidates are
the peers that a result is compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ..samplers import FlowNoise, Grid, SolverTable, VPNoise, adams_bashforth, deis, dpmpp_2m, euler, ipndm
from ..samplers.schedules import Noise
from .problem import Problem

__all__ = ["FINALISTS", "GLANCED", "SCANNED", "Candidate", "candidates", "grids_of", "rank", "rmse", "scan"]

GLANCED = 8  # samples that all candidates are tried on
FINALISTS = 12  # the best of them are tried on more:
SCANNED = 32


@dataclass(frozen=True, eq=False)
class Candidate:
    """A classical solver on a grid: `name` for people, `grid` its rule."""

    name: str
    grid: Grid
    table: SolverTable


def grids_of(noise: Noise) -> list[tuple[str, Grid]]:
    """Returns the grids that people use on a kind of noise, with their names."""
    if isinstance(noise, FlowNoise):
        shifts = (0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)
        return [(f"shift {shift:g}", Grid("flow_shift", {"shift": shift})) for shift in shifts]
    named = [(f"karras {rho:g}", Grid("karras", {"rho": rho})) for rho in (2.0, 3.0, 5.0, 7.0)]
    named += [(f"polynomial {rho:g}", Grid("polynomial", {"rho": rho})) for rho in (3.0, 5.0, 7.0)]
    if isinstance(noise, VPNoise):
        named.append(("uniform time", Grid("uniform_time", {"end": 1e-3})))
    return named


def candidates(steps: int, noise: Noise) -> Iterator[Candidate]:
    """Yields every classical solver on every grid; orders that the step count cannot reach are left out."""
    methods: list[tuple[str, Callable[..., SolverTable]]] = [("euler", euler), ("dpmpp_2m", dpmpp_2m)]
    for order in range(2, min(steps, 4) + 1):
        methods.append((f"ipndm {order}", lambda s, order=order: ipndm(s, order)))
        if order < 4:
            methods.append((f"ab {order}", lambda s, order=order: adams_bashforth(s, order)))
            if isinstance(noise, VPNoise):
                methods.append((f"deis {order}", lambda s, order=order: deis(s, order, noise)))
    for grid_name, grid in grids_of(noise):
        levels = grid.levels(steps, noise)
        for name, method in methods:
            if float(levels[-1]) == 0 and name.startswith("deis"):
                continue  # model time has no value at sigma 0
            yield Candidate(f"{name}, {grid_name}", grid, method(levels))


def rank(problem: Problem, tried: list[Candidate]) -> list[tuple[float, Candidate]]:
    """Returns the candidates with their RMSE to the teacher, best first."""
    scored = [(rmse(problem, candidate.table), candidate) for candidate in tried]
    return sorted(scored, key=lambda pair: pair[0])


def scan(problem: Problem, tried: list[Candidate]) -> list[Candidate]:
    """Returns the candidates, best first: all of them tried on a few samples, the best few on more."""
    rough = [candidate for _, candidate in rank(problem.first(GLANCED), tried)]
    return [candidate for _, candidate in rank(problem.first(SCANNED), rough[:FINALISTS])] + rough[FINALISTS:]


def rmse(problem: Problem, table: SolverTable) -> float:
    """Returns the root mean square distance to the teacher's end over all samples of all processes."""
    total = problem.processes.sums(problem.errors(table).sum())
    value = float(torch.as_tensor(total)) / problem.total
    return value**0.5 if value == value else float("inf")
