"""What a fit will cost at most, in network calls, before it begins."""

from __future__ import annotations

from collections.abc import Sequence

from ..samplers.schedules import Noise
from .gauss_newton import GaussNewton
from .scan import FINALISTS, GLANCED, SCANNED, candidates
from .start import ITERATIONS, KEPT, STARTS, TRIED
from .teacher import Teacher

__all__ = ["expected_calls"]


def expected_calls(steps: Sequence[int], fitted: int, judged: int, noise: Noise, history: int, teacher: Teacher) -> int:
    """Returns an upper bound of the network calls of a Gauss-Newton fit, one per sample and call."""
    settings = GaussNewton()
    total = teacher.calls * (fitted + judged)
    for n in steps:
        rows = sum((n - 1 - i) * min(i + 1, history) + (n - i) for i in range(n))  # one restarted run per parameter
        jacobian, attempt = n + rows, 2 * n
        tried = sum(1 for _ in candidates(n, noise))
        total += n * (tried * min(GLANCED, fitted) + FINALISTS * min(SCANNED, fitted)) + n * 16 * judged
        jacobians = ITERATIONS[0] * STARTS + ITERATIONS[1] * KEPT
        total += min(TRIED, fitted) * (jacobians * (jacobian + attempt) + 4 * (STARTS + KEPT) * n)
        total += settings.iterations * (fitted * (jacobian + attempt) + judged * n) + 4 * n * (fitted + judged)
    return total
