"""The families that can be fitted: a space of free parameters for each. A new one is a file like ds.py and its name."""

from __future__ import annotations

from collections.abc import Mapping

from ...samplers import Grid
from ...samplers.schedules import Noise
from .base import Space
from .ds import DSSpace
from .dyweight import DyWeightSpace

__all__ = ["FIRST_HISTORY", "SPACES", "Space", "make_space", "usual_history"]

SPACES: Mapping[str, type[Space]] = {space.family: space for space in (DyWeightSpace, DSSpace)}
FIRST_HISTORY = 3  # entries that a fit begins with
_LONGER_HISTORY = 6  # entries that a step may use where a fit has many samples: it holds 8 latents then, as iPNDM
_MANY_SAMPLES = 256


def usual_history(samples: int) -> int:
    """How many of the newest entries a step of a solver that is fitted to so many samples may use.

    Each is a parameter more per step. The benchmarks' photo patches at guidance 1 in 8 calls came to an error of 0.0049
    with 96 samples and three entries, 0.0048 with 480 and three, 0.0039 with 480 and six.
    """
    return _LONGER_HISTORY if samples >= _MANY_SAMPLES else FIRST_HISTORY


def make_space(
    family: str, steps: int, noise: Noise, grid: Grid | None, history: int, learn_grid: bool = False
) -> Space:
    """The space of a family; ValueError where it does not exist for these steps, noise or grid."""
    if family not in SPACES:
        raise ValueError(f"family must be one of {', '.join(SPACES)}, got {family!r}")
    return SPACES[family](steps, noise, grid, history, learn_grid)
