"""The families that can be fitted: a space of free parameters for each, and the way to it."""

from __future__ import annotations

from ...samplers import Grid
from ...samplers.schedules import Noise
from .base import Space
from .ds import DSSpace
from .dyweight import DyWeightSpace

__all__ = ["FIRST_HISTORY", "make_space", "usual_history"]

FIRST_HISTORY = 3  # entries that a fit begins with
_LONGER = 6  # entries that a step may use where a fit has many samples: it holds 8 latents then, as iPNDM
_SAMPLES = 256  # many


def usual_history(samples: int) -> int:
    """Returns how many of the newest entries a step of a solver that is fitted to so many samples may use.

    Each is a parameter more per step. The benchmarks' photo patches at guidance 1 in 8 calls came to an error of 0.0049
    with 96 samples and three entries, 0.0048 with 480 and three, 0.0039 with 480 and six.
    """
    return _LONGER if samples >= _SAMPLES else FIRST_HISTORY


def make_space(family: str, steps: int, noise: Noise, grid: Grid | None, history: int, learn_grid: bool) -> Space:
    """Returns the space of a family.

    Raises:
        ValueError: Unknown family, a missing grid, or a grid without a shape parameter to learn.
    """
    if family == "dyweight":
        if grid is None:
            raise ValueError("DyWeight needs a grid rule")
        return DyWeightSpace(steps, noise, grid, history, learn_grid)
    if family == "ds" and learn_grid:
        raise ValueError("a DS solver has times of its own and no grid to learn: leave learn_grid out, or fit dyweight")
    if family == "ds":
        return DSSpace(steps, noise, history)
    raise ValueError(f"family must be dyweight or ds, got {family!r}")
