"""Blend: one learned number per step, by which the newest derivative is extrapolated along the last difference."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..files.card import StepCard
from ..schedules import Noise
from ..table import SolverTable
from .base import Family


def blend_table(blend: Tensor, grid: Tensor) -> SolverTable:
    """x_{i+1} = x_i + (g_{i+1} - g_i) ((1 + b_i) h_i - b_i h_{i-1}), b_0 = 0; blend [N - 1] is b_1 ... b_{N-1}."""
    extra = torch.cat([blend.new_zeros(1), blend.double()])
    rows = torch.diag(1 + extra) - torch.diag(extra[1:], -1)
    coeffs = rows * grid.diff()[:, None]
    return SolverTable(grid, grid[:-1], torch.ones(len(extra), dtype=torch.float64), coeffs, "derivative")


def _check(tensors: Mapping[str, Tensor], nfe: int, step: StepCard) -> None:
    if tuple(tensors["blend"].shape) != (nfe - 1,) or step.grid is None:
        raise ValueError(f"blend must have a grid and {nfe - 1} numbers, got {list(tensors['blend'].shape)}")


def _table(tensors: Mapping[str, Tensor], step: StepCard, noise: Noise) -> SolverTable:
    assert step.grid is not None
    return blend_table(tensors["blend"], step.grid.levels(len(tensors["blend"]) + 1, noise))


FAMILY = Family(
    name="blend",
    title="Blend",
    sampler="blended",
    about="learns one number per step",
    paper="https://example.com/blend",
    tensors=("blend",),
    kinds=("flow", "vp", "edm"),
    check=_check,
    table=_table,
)
