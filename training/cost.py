"""Cost of a fit, estimated in advance: network calls, their duration, disk space."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from torch import Tensor

from .data.batch_limit import BatchLimit, Memory
from .data.samples import Samples
from .data.teacher import PATH_NUMBERS
from .job import FitJob
from .optimise.gradient import GradientDescent
from .optimise.losses import make_objective
from .spaces import make_space
from .starts.candidates import scan_calls
from .starts.choose import start_calls

__all__ = ["most_calls", "seconds_of_call", "seconds_of_change", "usual_calls", "work_bytes"]

_GRADIENT_CHECK_RUNS = 11  # a gradient and up to eight differences, and three runs to measure rounding
_UPDATE_PASSES = 3  # a forward pass, and a backward pass that counts as two


def most_calls(job: FitJob) -> int:
    """The largest number of network calls of a fit, one per sample and call; the optimizer may stop earlier."""
    settings, noise, knots = job.settings, job.noise, max(1, len(job.settings.guidance))
    held_out, screening = job.held_out, min(job.effort.screening, job.blocks[0])
    total = knots * sum(scan_calls(job.peers(n), screening) for n in settings.steps)
    for first_knot in [True, *[False] * (knots - 1)]:
        optimizer, samples = job.optimizer_at(first_knot=first_knot), job.samples_at(first_knot=first_knot)
        total += job.teacher_calls(samples + held_out, first_knot=first_knot)
        for n in settings.steps:
            total += (5 + (settings.usual is not None)) * n * held_out  # before, after, three peers, the usual sampler
            error_is_known = settings.loss == "l2" and not isinstance(optimizer, GradientDescent)
            total += (1 + job.effort.compared + (not error_is_known)) * n * samples  # classical solvers, and the result
            if first_knot and job.initial == "path":
                total += start_calls(n, noise, job.blocks[0])
            space = make_space(settings.family, n, noise, next(iter(noise.usual_grids().values())), job.history)
            if isinstance(optimizer, GradientDescent):
                total += n * samples * (1 + optimizer.epochs * _UPDATE_PASSES)
                total += _GRADIENT_CHECK_RUNS * n * min(4, samples)
            else:
                total += optimizer.most_calls(space)
                if first_knot and job.initial == "path":
                    total += (job.starts(n) - 1) * optimizer.first_calls(space)
    return total


def usual_calls(job: FitJob) -> int:
    """The network calls that a fit usually takes; measured: 0.69 to 0.96 of the largest number."""
    part = 1.0 if isinstance(job.optimizer, GradientDescent) else 0.87
    return 100 * math.ceil(part * most_calls(job) / 100)


def work_bytes(job: FitJob) -> int:
    """Size of a fit's working files: the teacher's states in float32, twice for safety, and the journal."""
    numbers, count = job.samples.x[0].numel(), len(job.samples)
    states = count * numbers * (job.path_teacher.steps if make_objective(job.settings.loss).needs_trajectory else 1)
    paths = job.blocks[0] * job.path_teacher.steps * min(numbers, PATH_NUMBERS)
    return 2 * 4 * (states + paths) * max(1, len(job.settings.guidance)) + 2**26


def seconds_of_call(denoiser: Callable[..., Tensor], batch: Samples, hint: str, memory: Memory) -> float:
    """Seconds per sample of a call: the faster of two microbatches, after one to warm up; halved as the fit's are.

    `hint` is the remedy if the model fails, as it does with prompts encoded for another model.
    """

    def work(start: int, stop: int) -> float:
        rows, seconds = batch.rows(start, stop), []
        for _ in range(3):
            began = time.perf_counter()
            float(denoiser(rows.x, 0.5 * rows.x.new_ones([len(rows)]), **rows.extra_args).flatten()[0])  # waits
            seconds.append((time.perf_counter() - began) / len(rows))
        return min(seconds[1:])

    try:
        return next(BatchLimit(memory=memory).each(len(batch), len(batch), work))
    except (RuntimeError, KeyError, MemoryError) as error:
        if memory.is_out(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the model fails on its first call ({reason}): {hint}") from error


def seconds_of_change(
    denoiser: Callable[..., Tensor], batch: Samples, levels: tuple[float, float], call: float
) -> float:
    """Seconds to change from one of two models to the other and back, beyond two calls of `call` seconds.

    `levels` are noise levels of the two; the call before was at the second.
    """
    one, start = batch.rows(0, 1), time.perf_counter()
    for level in levels:
        float(denoiser(one.x, level * one.x.new_ones([1]), **one.extra_args).flatten()[0])
    return max(0.0, time.perf_counter() - start - 2 * call)
