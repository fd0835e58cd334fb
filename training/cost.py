"""What a fit will cost, in network calls, before it begins."""

from __future__ import annotations

from collections.abc import Sequence

from ..samplers.schedules import Noise
from .gauss_newton import GaussNewton
from .gradient import GradientDescent
from .scan import SCANNED, candidates, scan_calls
from .spaces import make_space
from .start import ITERATIONS, KEPT, STARTS, TRIED
from .teacher import Teacher

__all__ = ["most_calls"]

_PROBED = 16  # samples on which rounding noise is measured, three runs each
_JUDGED = 27  # runs of the held-out samples: each method's best, close calls of the scan, before and after
_UPDATE = 3  # a forward pass, and a backward pass that counts as two


def most_calls(
    steps: Sequence[int],
    fitted: int,
    judged: int,
    noise: Noise,
    *,
    family: str = "dyweight",
    history: int = 3,
    learn_grid: bool = False,
    teacher: Teacher = Teacher(),  # noqa: B008 - immutable
    settings: GaussNewton | GradientDescent = GaussNewton(),  # noqa: B008 - immutable
) -> int:
    """Returns the network calls that a fit makes at most, one per sample and call.

    Most fits stop long before: they take fewer iterations and rarely more than one damped step in each.
    """
    total = teacher.calls * (fitted + judged)
    few, newton = min(TRIED, fitted), GaussNewton()
    for n in sorted(set(steps)):
        tried = list(candidates(n, noise))
        grid = next(c.grid for c in tried if c.grid and (not learn_grid or c.grid.shape_parameter))
        jacobians = [
            n + 2 * sum(n - restart.known for restart in make_space(family, n, noise, grid, window, learn_grid).restart)
            for window in (history, n)  # two runs per parameter (half precision), restarted where it departs
        ]
        total += scan_calls(tried, min(SCANNED, fitted)) + n * _JUDGED * judged
        for starts, iterations in zip((STARTS, KEPT), ITERATIONS, strict=True):
            total += starts * _descent(newton, n, jacobians[0], few, few, iterations)
        total += _descent(settings, n, jacobians[0], fitted, judged) + 5 * n * fitted
        if history < min(n, 4):  # the window cuts a classical solver's history: the fit may start again without it
            total += _descent(settings, n, jacobians[1], fitted, judged) + 2 * n * fitted
    return total


def _descent(
    settings: GaussNewton | GradientDescent,
    n: int,
    jacobian: int,
    fitted: int,
    judged: int,
    most: int | None = None,
) -> int:
    first = 3 * n * min(_PROBED, fitted) + n * judged
    if isinstance(settings, GradientDescent):
        return first + settings.epochs * fitted * _UPDATE * n + 5 * n * min(4, fitted)
    core = min(settings.core, fitted)
    beside = fitted * (jacobian + 2 * n) + judged * n if fitted > core else 0  # the pass over all
    return first + (most or settings.iterations) * (core * (jacobian + settings.tries * n) + judged * n) + beside
