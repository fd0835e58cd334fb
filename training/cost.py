"""What a fit will cost at most, in network calls, before it begins."""

from __future__ import annotations

from collections.abc import Sequence

from ..samplers.schedules import Noise
from .fit import SCANNED, START_ITERATIONS, STARTS
from .gauss_newton import GaussNewton
from .scan import candidates
from .teacher import Teacher

__all__ = ["expected_calls"]


def expected_calls(steps: Sequence[int], fitted: int, judged: int, noise: Noise, history: int, teacher: Teacher) -> int:
    """Returns an upper bound of the network calls of a Gauss-Newton fit, one per sample and call."""
    settings, scanned = GaussNewton(), min(SCANNED, fitted)
    total = teacher.calls * (fitted + judged)
    for n in steps:
        rows = sum((n - 1 - i) * min(i + 1, history) + (n - i) for i in range(n))  # one restarted run per parameter
        jacobian, attempt = n + rows, 2 * n
        tried = sum(1 for _ in candidates(n, noise))
        total += n * tried * scanned + n * 12 * judged
        total += STARTS * scanned * (START_ITERATIONS * (jacobian + attempt) + 4 * n)
        total += settings.iterations * (fitted * (jacobian + attempt) + judged * n) + 4 * n * (fitted + judged)
    return total
