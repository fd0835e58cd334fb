"""The space of free parameters of each family. To add a family, write a module like ds.py and list it here."""

from __future__ import annotations

from collections.abc import Mapping

from ...samplers import Grid
from ...samplers.schedules import Noise
from .base import Space
from .ds import DSSpace
from .dyweight import DyWeightSpace

__all__ = ["FIRST_HISTORY", "SPACES", "Space", "make_space", "usual_history"]

SPACES: Mapping[str, type[Space]] = {space.family: space for space in (DyWeightSpace, DSSpace)}
FIRST_HISTORY = 3  # entries per step when a fit starts
_LONG_HISTORY = 6  # with many samples; sampling then holds 8 latents, as iPNDM does
_MANY_SAMPLES = 256


def usual_history(samples: int) -> int:
    """The default window: how many of the newest entries a step may use when fitted to this number of samples.

    Each entry adds one parameter per step. Error of the benchmarks' photo patches at guidance 1 in 8 calls: 0.0049 with
    96 samples and 3 entries, 0.0048 with 480 and 3, 0.0039 with 480 and 6.
    """
    return _LONG_HISTORY if samples >= _MANY_SAMPLES else FIRST_HISTORY


def make_space(
    family: str, steps: int, noise: Noise, grid: Grid | None, history: int, learn_grid: bool = False
) -> Space:
    """The space of a family; ValueError if it is undefined for these steps, noise or grid."""
    if family not in SPACES:
        raise ValueError(f"family must be one of {', '.join(SPACES)}, got {family!r}")
    return SPACES[family](steps, noise, grid, history, learn_grid)
