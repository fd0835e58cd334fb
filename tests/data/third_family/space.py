"""The free parameters of Blend: one number per step, on a fixed grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...samplers import SolverTable
from ...samplers.conversion import with_derivatives
from ...samplers.families.blend import blend_table
from ...samplers.files.card import StepCard
from .base import Restart, Space


@dataclass(frozen=True)
class BlendSpace(Space):
    """Vector: b_1 ... b_{N-1}."""

    family = "blend"

    @property
    def restart(self) -> list[Restart]:
        return [Restart(i, i + 1) for i in range(1, self.steps)]

    def table(self, theta: Tensor) -> SolverTable:
        return blend_table(theta, self.grid.levels(self.steps, self.noise))

    def initial(self, table: SolverTable) -> Tensor:
        rows = with_derivatives(table).coeffs / table.levels.diff()[:, None]
        return -rows.tril(-1).sum(1)[1:]

    def from_file(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return tensors["blend"]

    def tensors(self, theta: Tensor) -> dict[str, Tensor]:
        return {"blend": theta}

    def step_card(self, theta: Tensor) -> StepCard:
        return StepCard(grid=self.grid, history=2)

    @classmethod
    def resampled(cls, tensors: Mapping[str, Tensor], steps: int) -> dict[str, Tensor]:
        return {"blend": torch.nn.functional.interpolate(tensors["blend"][None, None], steps - 1, mode="linear")[0, 0]}
