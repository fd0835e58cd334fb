"""A solver at several guidances: fitted at knots, used at them and between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from statistics import geometric_mean
from typing import Any, NamedTuple

from learned_solvers.training.starts.candidates import rmse
from torch import Tensor

from .peers import best_peer
from .setting import SEEDS, fit, unseen_trial
from .suite import BENCHMARKS

__all__ = ["Values", "knots", "leads"]

STEPS = 5


class Values(NamedTuple):
    """Guidances of the knots, of use, and of the solver that is fitted at one alone; seeds; unseen starts."""

    knots: tuple[float, ...] = (1.0, 3.0, 5.0, 7.0, 10.0)
    used: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.5, 10.0)
    alone: float = 3.0
    seeds: tuple[int, ...] = SEEDS
    unseen: int = 256


_EMOJI = Values((1.6, 2.5, 4.0, 6.4), (1.6, 2.0, 2.5, 3.2, 4.0, 5.0, 6.4), 4.0, (0,), 48)
"""The command's usual values at a usual guidance of 4."""
WAYS = ("knots", "dedicated", "alone")


class _CountedByGuidance:
    """A denoiser that counts network calls, one per sample and call, by the guidance that it is called at."""

    def __init__(self, model: Callable[..., Tensor]) -> None:
        self.model, self.calls = model, Counter[str]()

    def __call__(self, x: Tensor, sigma: Tensor, *, guidance: float, **extra_args: Any) -> Tensor:
        self.calls[f"{guidance:g}"] += len(x)
        return self.model(x, sigma, guidance=guidance, **extra_args)


def knots(name: str, steps: int = STEPS, values: Values | None = None) -> dict[str, Any]:
    """Errors at each guidance: of solvers with knots, of solvers fitted there or at one alone, of the best peer.

    `calls` has those of each knot, teacher included, in the order in which the knots were fitted; they and the errors
    have one number per seed of the fits' starts.
    """
    benchmark, values = BENCHMARKS[name], values or (_EMOJI if name == "emoji" else Values())
    counted = {seed: _CountedByGuidance(benchmark.model().model) for seed in values.seeds}
    several = [fit(benchmark, steps, *values.knots, seed=k, model=model).solver for k, model in counted.items()]
    alone = [fit(benchmark, steps, values.alone, seed=seed).solver for seed in values.seeds]
    points = []
    for used in values.used:
        unseen = unseen_trial(benchmark, used, values.unseen)
        dedicated = [fit(benchmark, steps, used, seed=seed).solver for seed in values.seeds]
        ways = {"knots": several, "dedicated": dedicated, "alone": alone}
        errors = {
            way: [rmse(unseen, solver.table(steps, benchmark.noise, guidance=used)) for solver in solvers]
            for way, solvers in ways.items()
        }
        points.append({"guidance": used, **errors, "peer": rmse(unseen, best_peer(benchmark, unseen, steps).table)})
        ratios = {way: round(ratio, 2) for way, ratio in leads(points[-1]).items()}
        print(f"{name}, guidance {used:g}: {ratios}", flush=True)
    calls = {knot: [model.calls[knot] for model in counted.values()] for knot in next(iter(counted.values())).calls}
    return {"network": name, "steps": steps, "calls": calls, "alone": values.alone, "points": points}


def leads(point: Mapping[str, Any]) -> dict[str, float]:
    """The best peer's error divided by the solvers', in geometric mean over the seeds, at a point of `knots`."""
    return {way: point["peer"] / geometric_mean(point[way]) for way in WAYS}
