"""Fits as users make them, and starts that no fit has seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from learned_solvers.training import EFFORTS, fit_solver
from learned_solvers.training.data.teacher import Teacher
from learned_solvers.training.data.trial import Trial
from learned_solvers.training.report import FitResult
from torch import Tensor, float32
from torch import dtype as Dtype

from .suite import Benchmark

__all__ = ["SEEDS", "STEPS", "TEACHER", "fit", "unseen_trial"]

STEPS = (3, 4, 5, 6, 8, 10)
SEEDS = (0, 1, 2)  # of the starts of fits: these are few, so that the results vary
TEACHER = Teacher("ode", 100)  # of the unseen starts; finer than that of any default fit
_UNSEEN_SEED = 99  # fits have smaller ones


def unseen_trial(benchmark: Benchmark, guidance: float, count: int | None = None) -> Trial:
    """Starts that no fit uses, with the teacher's end states, on the float32 network."""
    model, samples = benchmark.model(), benchmark.starts(count or benchmark.unseen, _UNSEEN_SEED, guidance)
    return Trial(model, samples, TEACHER.reference(model, samples, benchmark.noise), len(samples))


def fit(
    benchmark: Benchmark,
    steps: int | tuple[int, ...],
    *guidance: float,
    effort: str = "default",
    samples: int | None = None,
    seed: int = 0,
    family: str = "dyweight",
    dtype: Dtype = float32,
    model: Callable[..., Tensor] | None = None,
) -> FitResult:
    """A fit with an effort's settings and the usual teacher, as the command and the node make it.

    Args:
        benchmark: The network.
        steps: Step counts, fitted together as by one command: they share the teacher.
        guidance: The guidance, or several as knots.
        effort: A key of EFFORTS.
        samples: Number of samples, as `--samples` sets it; None: the effort's.
        seed: Seed of the starts.
        family: The solver family.
        dtype: Of the network.
        model: A denoiser that calls the network; None: the network itself.
    """
    settings = EFFORTS[effort].for_numbers(math.prod(benchmark.shape))
    fitted, held_out = settings.sizes(samples)
    starts = benchmark.starts(fitted + held_out, seed, guidance[0])
    return fit_solver(
        model or benchmark.model(dtype).model, starts.x.to(dtype), noise=benchmark.noise, family=family,
        steps=(steps,) if isinstance(steps, int) else steps, effort=effort, held_out=held_out, guidance=guidance,
        optimizer=replace(settings.optimizer, samples=fitted), guidance_argument="guidance",
        extra_args=starts.extra_args, microbatch=benchmark.microbatch,
    )  # fmt: skip
