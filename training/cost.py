"""Cost of a fit, estimated in advance: network calls and their duration."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from .data.batch_limit import is_out_of_memory
from .data.samples import Samples
from .job import FitJob, Optimizer
from .optimise.gradient import GradientDescent
from .optimise.levenberg_marquardt import LevenbergMarquardt
from .spaces import FIRST_HISTORY, make_space
from .starts.candidates import SCAN_SAMPLES, candidates, scan_calls
from .starts.choose import KEPT_STARTS, PROXY_STEPS, START_COUNT, START_ITERATIONS, START_SAMPLES

__all__ = ["duration", "most_calls", "seconds_of_call"]

_PROBE_SAMPLES = 16  # samples on which rounding noise is measured, with three runs each
_HELD_OUT_RUNS = 27  # each method at its best grid, other leaders of the scan, before and after
_GRADIENT_CHECK_RUNS = 11  # a gradient and up to eight differences
_UPDATE_PASSES = 3  # a forward pass, and a backward pass that counts as two


def most_calls(job: FitJob) -> int:
    """An upper bound of the network calls of a fit, one per sample and call.

    Most fits need far fewer: they take fewer iterations, and rarely more than one damped step in each.
    """
    settings, noise, fitted, held_out, history = job.settings, job.noise, job.fitted, job.held_out, job.history
    family, learn_grid, optimizer = settings.family, settings.learn_grid, settings.optimizer
    staged = settings.staged_optimizer
    total = settings.teacher.calls * (fitted + held_out)
    few, start_optimizer = min(2 * START_SAMPLES, fitted), LevenbergMarquardt()  # twice: half precision
    for n in settings.steps:
        options = list(candidates(n, noise))
        grid = next(c.grid for c in options if c.grid and (not learn_grid or c.grid.shape_parameter))
        jacobians = [  # two runs per parameter (half precision), from its restart point on
            n
            + 2 * sum(n - restart.entries for restart in make_space(family, n, noise, grid, window, learn_grid).restart)
            for window in (history, n, min(history, FIRST_HISTORY))
        ]
        total += scan_calls(options, min(SCAN_SAMPLES, fitted)) + n * _HELD_OUT_RUNS * held_out
        turns = 2 if n >= PROXY_STEPS else 1  # DyWeight's starts are tried too if those of DS-Solver cannot be used
        for starts, iterations in zip((START_COUNT, KEPT_STARTS), START_ITERATIONS, strict=True):
            total += turns * starts * _descent(start_optimizer, n, jacobians[0], few, few, iterations)
        main = optimizer
        if staged and min(n, history) > FIRST_HISTORY:  # a short history is fitted to the core first
            total += _descent(staged, n, jacobians[2], min(staged.core, fitted), held_out)
            main = replace(staged, skip_core=True)
        total += _descent(main, n, jacobians[0], fitted, held_out) + 5 * n * fitted
        # If the best classical solver is closer, the fit is repeated from it with its whole history.
        total += _descent(optimizer, n, jacobians[1], fitted, held_out) + 4 * n * fitted
    return total


def _descent(settings: Optimizer, n: int, jacobian: int, fitted: int, held_out: int, most: int | None = None) -> int:
    first = 3 * n * min(_PROBE_SAMPLES, fitted) + n * held_out
    if isinstance(settings, GradientDescent):
        return first + settings.epochs * fitted * _UPDATE_PASSES * n + _GRADIENT_CHECK_RUNS * n * min(4, fitted)
    core, most = min(settings.core, fitted), most or settings.iterations
    on_core = most * (core * (jacobian + settings.tries * n) + held_out * n)
    if fitted == core:
        return first + on_core
    on_all = most * (min(2 * core, fitted) * jacobian + settings.tries * n * fitted)
    return first + on_core * (not settings.skip_core) + on_all + n * (fitted + held_out)


def seconds_of_call(denoiser: Callable[..., Tensor], batch: Samples, hint: str) -> float:
    """Seconds per sample of a call: the faster of two microbatches, after one to warm up.

    `hint` is the remedy if the model fails, as it does with prompts encoded for another model.
    """
    seconds, x = [], batch.x
    try:
        for _ in range(3):
            start = time.perf_counter()
            float(denoiser(x, 0.5 * x.new_ones([len(x)]), **batch.extra_args).flatten()[0])  # waits for the device
            seconds.append((time.perf_counter() - start) / len(x))
    except (RuntimeError, KeyError, MemoryError) as error:
        if is_out_of_memory(error):
            if len(x) == 1:
                raise
            # The fit halves its batches too.
            return seconds_of_call(denoiser, batch.rows(0, len(x) // 2), hint)
        raise ValueError(f"the model fails on its first call ({str(error).splitlines()[0]}): {hint}") from error
    return min(seconds[1:])


def duration(seconds: float) -> str:
    """A duration as text."""
    if seconds < 5400:
        minutes = max(1, round(seconds / 60))
        return f"{minutes} minute{'s' * (minutes > 1)}"
    return f"{seconds / 3600:.1f} hours"
