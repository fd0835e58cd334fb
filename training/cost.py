"""What a fit will cost before it begins: network calls, and how long they take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from .data.batch_limit import is_out_of_memory
from .data.samples import Samples
from .job import FitJob
from .optimise.gradient import GradientDescent
from .optimise.levenberg_marquardt import GaussNewton
from .spaces import FIRST_HISTORY, make_space
from .starts.candidates import SCANNED, candidates, scan_calls
from .starts.choose import ITERATIONS, KEPT, MANY, STARTS, TRIED

__all__ = ["duration", "most_calls", "seconds_of_call"]

_PROBED = 16  # samples on which rounding noise is measured, three runs each
_JUDGED = 27  # runs of the held-out samples: each method's best, close calls of the scan, before and after
_CHECK = 11  # calls of the gradient's check, a gradient and up to eight differences
_UPDATE = 3  # a forward pass, and a backward pass that counts as two


def most_calls(job: FitJob) -> int:
    """Returns the network calls that a fit makes at most, one per sample and call.

    Most fits stop long before: they take fewer iterations and rarely more than one damped step in each.
    """
    settings, noise, fitted, judged, history = job.settings, job.noise, job.fitted, job.held_out, job.history
    family, learn_grid, optimizer = settings.family, settings.learn_grid, settings.optimizer
    staged = settings.staged_optimizer
    total = settings.teacher.calls * (fitted + judged)
    few, newton = min(2 * TRIED, fitted), GaussNewton()  # twice: half precision
    for n in settings.steps:
        tried = list(candidates(n, noise))
        grid = next(c.grid for c in tried if c.grid and (not learn_grid or c.grid.shape_parameter))
        jacobians = [  # two runs per parameter (half precision), restarted where it departs
            n + 2 * sum(n - restart.known for restart in make_space(family, n, noise, grid, window, learn_grid).restart)
            for window in (history, n, min(history, FIRST_HISTORY))
        ]
        total += scan_calls(tried, min(SCANNED, fitted)) + n * _JUDGED * judged
        turns = 2 if n >= MANY else 1  # DyWeight's own starts are tried too where it cannot go on from DS solvers
        for starts, iterations in zip((STARTS, KEPT), ITERATIONS, strict=True):
            total += turns * starts * _descent(newton, n, jacobians[0], few, few, iterations)
        main = optimizer
        if staged and min(n, history) > FIRST_HISTORY:  # a fit of few entries to the core comes before it
            total += _descent(staged, n, jacobians[2], min(staged.core, fitted), judged)
            main = replace(staged, near=True)
        total += _descent(main, n, jacobians[0], fitted, judged) + 5 * n * fitted
        # Where it misses the best classical solver, the fit starts again from that one with its whole history.
        total += _descent(optimizer, n, jacobians[1], fitted, judged) + 4 * n * fitted
    return total


def _descent(
    settings: GaussNewton | GradientDescent, n: int, jacobian: int, fitted: int, judged: int, most: int | None = None
) -> int:
    first = 3 * n * min(_PROBED, fitted) + n * judged
    if isinstance(settings, GradientDescent):
        return first + settings.epochs * fitted * _UPDATE * n + _CHECK * n * min(4, fitted)
    core, most = min(settings.core, fitted), most or settings.iterations
    on_core = most * (core * (jacobian + settings.tries * n) + judged * n)
    if fitted == core:
        return first + on_core
    on_all = most * (min(2 * core, fitted) * jacobian + settings.tries * n * fitted)
    return first + on_core * (not settings.near) + on_all + n * (fitted + judged)


def seconds_of_call(denoiser: Callable[..., Tensor], batch: Samples, hint: str) -> float:
    """The seconds of one call for one sample, the faster of two microbatches after one to warm up.

    `hint` says what to look at where the model fails, as it does on prompts that were encoded for another.
    """
    seconds, x = [], batch.x
    try:
        for _ in range(3):
            began = time.perf_counter()
            float(denoiser(x, 0.5 * x.new_ones([len(x)]), **batch.extra_args).flatten()[0])  # waits for the device
            seconds.append((time.perf_counter() - began) / len(x))
    except (RuntimeError, KeyError, MemoryError) as error:
        if is_out_of_memory(error):
            if len(x) == 1:
                raise
            # The fit will do the same.
            return seconds_of_call(denoiser, batch.rows(0, len(x) // 2), hint)
        raise ValueError(f"the model fails on its first call ({str(error).splitlines()[0]}): {hint}") from error
    return min(seconds[1:])


def duration(seconds: float) -> str:
    """Returns a time for people."""
    if seconds < 5400:
        minutes = max(1, round(seconds / 60))
        return f"{minutes} minute{'s' * (minutes > 1)}"
    return f"{seconds / 3600:.1f} hours"
