"""A solver at several guidances: fitted at knots, used at them and between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from statistics import geometric_mean
from typing import Any

from learned_solvers.training.starts.candidates import rmse
from torch import Tensor

from .peers import peer_errors
from .setting import SEEDS, Setting, fit_as_users_do, unseen_trial
from .suite import BENCHMARKS

__all__ = ["knots", "leads"]

KNOTS = (1.0, 3.0, 5.0, 7.0, 10.0)
USED = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.5, 10.0)
ALONE = 3.0  # guidance of the solvers that are used everywhere
WAYS = ("knots", "dedicated", "alone")


class _CountedByGuidance:
    """A denoiser that counts network calls, one per sample and call, by the guidance that it is called at."""

    def __init__(self, model: Callable[..., Tensor]) -> None:
        self.model, self.calls = model, Counter[str]()

    def __call__(self, x: Tensor, sigma: Tensor, *, guidance: float, **extra_args: Any) -> Tensor:
        self.calls[f"{guidance:g}"] += len(x)
        return self.model(x, sigma, guidance=guidance, **extra_args)


def knots(name: str, setting: Setting) -> dict[str, Any]:
    """Errors at each guidance: of solvers with knots, of solvers fitted there or at 3 alone, of the best peer.

    `calls` has those of each knot, teacher included, in the order in which the knots were fitted; they and the errors
    have one number per seed of the fits' starts.
    """
    benchmark, (steps,) = BENCHMARKS[name], setting.steps
    counted = [_CountedByGuidance(benchmark.model().model) for _ in SEEDS]
    several = [
        fit_as_users_do(benchmark, steps, *KNOTS, seed=seed, model=model).solver
        for seed, model in zip(SEEDS, counted, strict=True)
    ]
    alone = [fit_as_users_do(benchmark, steps, ALONE, seed=seed).solver for seed in SEEDS]
    points = []
    for used in USED:
        unseen = unseen_trial(benchmark, used, setting)
        dedicated = [fit_as_users_do(benchmark, steps, used, seed=seed).solver for seed in SEEDS]
        ways = {"knots": several, "dedicated": dedicated, "alone": alone}
        (peer,) = peer_errors(benchmark, steps, unseen.first(setting.ranked), unseen)
        errors = {
            way: [rmse(unseen, solver.table(steps, benchmark.noise, guidance=used)) for solver in solvers]
            for way, solvers in ways.items()
        }
        points.append({"guidance": used, **errors, "peer": peer})
        print(
            name, f"guidance {used:g}:", {way: round(ratio, 2) for way, ratio in leads(points[-1]).items()}, flush=True
        )
    calls = {knot: [model.calls[knot] for model in counted] for knot in counted[0].calls}
    return {"network": name, "steps": steps, "calls": calls, "points": points}


def leads(point: Mapping[str, Any]) -> dict[str, float]:
    """The best peer's error divided by the solvers', in geometric mean over the seeds, at a point of `knots`."""
    return {way: point["peer"] / geometric_mean(point[way]) for way in WAYS}
