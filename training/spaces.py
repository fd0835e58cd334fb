"""The families that can be fitted: a space of free parameters for each, and the way to it."""

from __future__ import annotations

from ..samplers import Grid
from ..samplers.schedules import Noise
from .ds_space import DSSpace
from .dyweight_space import DyWeightSpace
from .space import Space

__all__ = ["make_space"]


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
