"""The space of free parameters of each family. To add a family, write a module like ds.py and list it here."""

from __future__ import annotations

from collections.abc import Mapping

from ...samplers import Grid
from ...samplers.schedules import Noise
from .base import Space
from .ds import DSSpace
from .dyweight import DyWeightSpace

__all__ = ["FIRST_HISTORY", "SPACES", "Space", "make_space"]

SPACES: Mapping[str, type[Space]] = {space.family: space for space in (DyWeightSpace, DSSpace)}
FIRST_HISTORY = 3  # entries per step when a fit starts


def make_space(family: str, steps: int, noise: Noise, grid: Grid | None, history: int) -> Space:
    """The space of a family; ValueError if it is undefined for these steps, noise or grid."""
    if family not in SPACES:
        raise ValueError(f"family must be one of {', '.join(SPACES)}, got {family!r}")
    return SPACES[family](steps, noise, grid, history)
