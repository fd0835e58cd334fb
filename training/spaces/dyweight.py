"""Free parameters of DyWeight: weights, times and, on request, the shape of the grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...samplers import Grid, SolverTable
from ...samplers.conversion import with_derivatives
from ...samplers.families.dyweight import dyweight_table
from ...samplers.files.card import StepCard
from .base import Restart, Space, cut_to_window
from .ds import DSSpace

__all__ = ["DyWeightSpace"]


@dataclass(frozen=True)
class DyWeightSpace(Space):
    """Weights inside a window and log t_scale per step; the shape of the grid may be learned too.

    Vector: for each step i the weights w_ij of the newest `history` entries, oldest first, then log s_i. With
    `learn_grid` the log of the grid's shape parameter comes last.
    """

    family = "dyweight"
    options = {"divisor": "call"}  # noqa: RUF012
    proxy = DSSpace
    grid: Grid  # required, unlike in `Space`

    def __post_init__(self) -> None:
        if self.grid is None:
            raise ValueError("DyWeight needs a grid rule: specify one")
        if self.learn_grid and self.grid.shape_parameter is None:
            raise ValueError(f"the {self.grid.rule} grid has no shape to learn: use flow_shift, karras or polynomial")

    @property
    def _cells(self) -> list[tuple[int, int]]:
        """(i, j) of every vector entry; j = -1 is t_scale."""
        return [(i, j) for i in range(self.steps) for j in [*range(max(0, i - self.history + 1), i + 1), -1]]

    @property
    def restart(self) -> list[Restart]:  # noqa: D102 - see Space
        restarts = [Restart(i, i if j < 0 else i + 1) for i, j in self._cells]
        return [*restarts, Restart(0, 1)] if self.learn_grid else restarts

    def _parts(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cells = self._cells
        at = [n for n, (_, j) in enumerate(cells) if j >= 0]
        rows, columns = (torch.tensor([cells[n][k] for n in at]) for k in (0, 1))
        weights = torch.zeros(self.steps, self.steps, dtype=torch.float64).index_put((rows, columns), theta[at])
        t_scale = theta[[n for n, (_, j) in enumerate(cells) if j < 0]].exp()
        if self.learn_grid:
            return weights, t_scale, self.grid.reshaped_levels(self.steps, self.noise, theta[-1].exp())
        return weights, t_scale, self.grid.levels(self.steps, self.noise)

    def table(self, theta: Tensor) -> SolverTable:  # noqa: D102 - see Space
        weights, t_scale, levels = self._parts(theta)
        return dyweight_table(weights, t_scale, levels, divisor="call")

    def initial(self, table: SolverTable) -> Tensor:  # noqa: D102 - see Space
        coeffs = cut_to_window(with_derivatives(table).coeffs, self.history)
        levels = self.grid.levels(self.steps, self.noise)
        reached = levels[0] + torch.cat([levels.new_zeros(1), coeffs.sum(1).cumsum(0)[:-1]])
        return self._vector(coeffs / (levels[1:] - reached)[:, None], table.sigmas / reached)

    def from_file(self, tensors: Mapping[str, Tensor]) -> Tensor:  # noqa: D102 - see Space
        return self._vector(cut_to_window(tensors["weights"], self.history), tensors["t_scale"])

    def _vector(self, weights: Tensor, t_scale: Tensor) -> Tensor:
        values = [t_scale[i].log() if j < 0 else weights[i, j] for i, j in self._cells]
        if self.learn_grid:
            shape = self.grid.parameters[self.grid.shape_parameter or ""]
            values.append(torch.tensor(shape, dtype=torch.float64).log())
        return torch.stack(values)

    def tensors(self, theta: Tensor) -> dict[str, Tensor]:  # noqa: D102 - see Space
        weights, t_scale, _ = self._parts(theta)
        return {"weights": weights, "t_scale": t_scale}

    def step_card(self, theta: Tensor) -> StepCard:  # noqa: D102 - see Space
        grid = self.grid
        if self.learn_grid:
            grid = replace(grid, parameters={grid.shape_parameter or "": float(theta[-1].exp())})
        return StepCard(grid=grid, options=dict(self.options), history=min(self.history, self.steps))
