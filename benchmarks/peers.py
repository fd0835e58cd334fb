"""The peers: the samplers of ComfyUI and k-diffusion on the usual grids, and the best of them by each measure.

Some four hundred candidates are screened on a few starts, the best third and the best grids of each method ranked on
more, and the best by error and by Frechet distance evaluated on all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache, partial
from typing import Any

import torch
from learned_solvers.samplers import Grid
from learned_solvers.samplers.schedules import Noise
from learned_solvers.training.data.trial import Trial
from learned_solvers.training.starts.candidates import (
    Candidate,
    best_of_methods,
    candidates,
    candidates_on,
    levels_at,
    rmse,
)
from learned_solvers.training.starts.published import Levels, published_grids
from torch import Tensor

from .host_samplers import RECIPE, host_candidates, host_grids
from .quality import quality_of_ends
from .suite import Benchmark

__all__ = ["all_peers", "best_peer", "best_value", "measure_peers"]

_KEPT = 24  # candidates that are ranked, in addition to the best grid of each method
_MEASURED = (3, 5, 4)  # best by error; methods on their best grid; best by Frechet distance


@cache
def all_peers(steps: int, noise: Noise) -> tuple[Candidate, ...]:
    """Every classical solver on every grid with at most `steps` calls.

    ComfyUI's schedulers are left out where another grid differs from them by less than a hundredth.
    """
    own = {name: partial(_levels_on, grid, noise) for name, grid in noise.usual_grids().items()}
    grids: dict[str, Levels] = own | published_grids(noise)
    usual, at = set(grids), {name: levels_at(levels, steps) for name, levels in grids.items()}
    for name, levels_of in host_grids(noise).items():
        levels = levels_at(levels_of, steps)
        if levels is not None and not any(
            other is not None and torch.allclose(levels, other, rtol=0.01, atol=0) for other in at.values()
        ):
            grids[name], at[name] = levels_of, levels
    more = [c for name in grids if name not in usual for c in candidates_on(name, None, grids[name], steps, noise)]
    return (*candidates(steps, noise), *more, *host_candidates(steps, noise, grids))


def _levels_on(grid: Grid, noise: Noise, steps: int) -> Tensor:
    return grid.levels(steps, noise)


def measure_peers(benchmark: Benchmark, unseen: Trial, steps: int) -> dict[str, dict[str, float]]:
    """The quality of the best peers on all unseen starts by name, and of ComfyUI's usual sampler."""
    ranked = unseen.first(benchmark.ranked)
    options = _ranked(benchmark, unseen, all_peers(steps, benchmark.noise))
    qualities = _finite_qualities(benchmark, ranked, options)
    by_frechet = sorted(qualities, key=lambda name: qualities[name]["frechet"])
    by_name, (errors, methods, frechets) = {c.name: c for c in options}, _MEASURED
    chosen = [*options[:errors], *best_of_methods(options)[:methods], *(by_name[n] for n in by_frechet[:frechets])]
    chosen += [c for c in all_peers(steps, benchmark.noise) if c.name == RECIPE[benchmark.noise.kind]]
    return _finite_qualities(benchmark, unseen, dict.fromkeys(chosen))


def best_peer(benchmark: Benchmark, unseen: Trial, steps: int) -> Candidate:
    """The peer with the lowest error on all unseen starts, of the three that are best on a few."""
    best = _ranked(benchmark, unseen, all_peers(steps, benchmark.noise))[: _MEASURED[0]]
    return min(best, key=lambda candidate: _error(unseen, candidate))


def _ranked(benchmark: Benchmark, unseen: Trial, options: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that pass the screening, best first."""
    screened = sorted(options, key=lambda candidate: _error(unseen.first(benchmark.screened), candidate))
    kept = dict.fromkeys([*screened[:_KEPT], *best_of_methods(screened)])
    return sorted(kept, key=lambda candidate: _error(unseen.first(benchmark.ranked), candidate))


def _error(trial: Trial, candidate: Candidate) -> float:
    error = rmse(trial, candidate.table)
    return error if math.isfinite(error) else math.inf


def _finite_qualities(benchmark: Benchmark, trial: Trial, peers: Iterable[Candidate]) -> dict[str, dict[str, float]]:
    """The quality of candidates by name, without those whose states overflow."""
    ends = {candidate.name: trial.ends(candidate.table) for candidate in peers}
    finite = {name: end for name, end in ends.items() if bool(end.isfinite().all())}
    return {name: quality_of_ends(benchmark, trial, end) for name, end in finite.items()}


def best_value(point: dict[str, Any], key: str) -> float:
    """The lowest value of a measure among the peers at a point of `fidelity`."""
    return min(peer[key] for peer in point["peers"].values())
