"""Quality per call: fitted solvers, published ones and the best stock samplers at equal calls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import geometric_mean
from typing import Any

from learned_solvers.samplers import load_solver

from .peers import best_value, measure_peers
from .quality import quality
from .record import read_records
from .setting import STEPS, fit, unseen_trial
from .suite import BENCHMARKS

__all__ = ["calls_needed", "fidelity", "lead", "ours", "points"]

Point = dict[str, Any]


def fidelity(
    name: str,
    guidance: float,
    steps: Sequence[int] = STEPS,
    fits: Sequence[tuple[str, str, int]] = (),
    unseen: int | None = None,
) -> dict[str, Any]:
    """The quality of fits, published solvers and peers on unseen starts.

    Args:
        name: The network.
        guidance: The guidance.
        steps: Step counts.
        fits: Families, efforts and seeds of the fits; the network's if empty.
        unseen: Number of unseen starts; the network's if None.
    """
    benchmark = BENCHMARKS[name]
    trial = unseen_trial(benchmark, guidance, unseen)
    published = {file: load_solver(file) for file in benchmark.published}
    points: dict[int, Point] = {n: {"steps": n, "fits": []} for n in steps}
    for family, effort, seed in fits or benchmark.fits:
        result = fit(benchmark, tuple(steps), guidance, effort=effort, seed=seed, family=family)
        for n, report in result.report.items():
            cost = {"samples": report.samples, "network_calls": report.network_calls, "seconds": report.seconds}
            measures = quality(benchmark, trial, result.solver.table(n, benchmark.noise))
            points[n]["fits"].append({"family": family, "effort": effort, "seed": seed, **cost, **measures})
            print(f"{name} {guidance:g}, {n} steps: {family} {effort} {measures['error']:.4f}", flush=True)
    for n, point in points.items():
        tables = {
            file: solver.table(n, benchmark.published_noise) for file, solver in published.items() if n in solver.steps
        }
        point["published"] = {file: quality(benchmark, trial, table) for file, table in tables.items()}
        point["peers"] = measure_peers(benchmark, trial, n)
        print(f"{name} {guidance:g}, {n} steps: best peer {best_value(point, 'error'):.4f}", flush=True)
    return {"network": name, "guidance": guidance, "points": list(points.values())}


def points(effort: str = "default") -> dict[tuple[str, float, int], Point]:
    """The recorded points with fits of an effort, by network, guidance and steps, in the order of the networks."""
    records = read_records("fidelity").values()
    records = sorted(records, key=lambda r: (list(BENCHMARKS).index(r["network"]), r["guidance"]))
    at = {(r["network"], r["guidance"], p["steps"]): p for r in records for p in r["points"]}
    return {place: point for place, point in at.items() if any(run["effort"] == effort for run in point["fits"])}


def ours(point: Point, key: str = "error", effort: str = "default", family: str = "dyweight") -> float:
    """The geometric mean of a measure over the seeds of such fits; NaN without one."""
    values = [run[key] for run in point["fits"] if (run["family"], run["effort"]) == (family, effort)]
    return geometric_mean(values) if values else math.nan


def lead(point: Point, key: str = "error", effort: str = "default") -> float:
    """The best peer's measure divided by the fitted solver's; NaN without such a fit."""
    return best_value(point, key) / ours(point, key, effort)


def calls_needed(curve: Mapping[int, float], error: float) -> float | None:
    """The calls at which a curve of errors by calls reaches an error, log-linear between them; None if it does not."""
    for (fewer, above), (more, below) in pairwise(sorted(curve.items())):
        if above >= error >= below:
            return fewer + (more - fewer) * math.log(above / error) / math.log(above / below)
    return None
