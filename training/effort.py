"""How much a fit spends: samples, starts, peers and iterations, chosen together by one word."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from .optimise.levenberg_marquardt import LevenbergMarquardt

__all__ = ["EFFORTS", "Effort"]

_LARGE = 3000  # numbers of a sample


@dataclass(frozen=True)
class Effort:
    """The settings that an effort stands for.

    Args:
        optimizer: Samples and iterations.
        held_out: Samples that are evaluated on and not fitted to.
        teacher: Steps of the teacher for each step of the longest solver, if it is not given.
        starts: Starts from the teacher's path that get a Jacobian before one is chosen, at four steps and fewer.
        screening: Samples on which the classical solvers are ranked.
        compared: The best of them, which the result must not be worse than.
        all_peers: Whether every classical solver on every grid is ranked, instead of those in common use.
        large: The optimizer for samples of 3000 numbers and more, which differ less from each other, and one start.
    """

    optimizer: LevenbergMarquardt
    held_out: int
    teacher: int = 6
    starts: int = 1
    screening: int = 4
    compared: int = 1
    all_peers: bool = False
    large: LevenbergMarquardt | None = None

    def for_numbers(self, numbers: int) -> Effort:
        """The settings for samples of that many numbers."""
        if self.large is None or numbers < _LARGE:
            return self
        return replace(self, optimizer=self.large, starts=1)

    def sizes(self, samples: int | None) -> tuple[int, int]:
        """Samples to fit to, at most, and to hold out; of a given number of the former, a third of it in addition."""
        if samples is None:
            return self.optimizer.samples, self.held_out
        return samples, math.ceil(samples / 3)


EFFORTS: Mapping[str, Effort] = {
    "quick": Effort(
        LevenbergMarquardt(samples=10, first=6),
        held_out=4,
        screening=2,
        large=LevenbergMarquardt(samples=4, first=4, work=1.4),
    ),
    "default": Effort(
        LevenbergMarquardt(),
        held_out=4,
        starts=2,
        screening=2,
        large=LevenbergMarquardt(samples=10, first=6, work=1.4),
    ),
    "thorough": Effort(
        LevenbergMarquardt(samples=300, first=16, batch=16, work=4.0, similar=-1.0),
        held_out=32,
        teacher=12,
        starts=2,
        screening=16,
        compared=3,
        all_peers=True,
    ),
}
