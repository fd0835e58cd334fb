"""Free parameters of DyWeight: noise levels, weights and times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...samplers import Grid, SolverTable
from ...samplers.classical.adams import polynomial_weights
from ...samplers.conversion import with_derivatives
from ...samplers.families.dyweight import dyweight_table
from ...samplers.files.card import StepCard
from .base import Restart, Space, cut_to_window

__all__ = ["DyWeightSpace"]

_RATIO, _LEVEL = -1, -2
_ORDER = 3


@dataclass(frozen=True)
class DyWeightSpace(Space):
    """The levels that the steps lead to, coefficients relative to Adams-Bashforth, and the levels of the calls.

    Vector: for each step i the log of sigmas_i / levels_i, the deviations of coeffs_ij / (levels_{i+1} - levels_i) from
    those of Adams-Bashforth on the levels, for the newest `history` - 1 older entries, oldest first; then the log of
    levels_{i+1}. The newest entry's deviation makes the sum of the row 1. The last step has no free level, but
    the deviation of its newest entry.

    In DyWeight's own parameters, moving one level of a good solver takes a curved path through several rows; here it is
    one parameter, and Levenberg-Marquardt needs a third of the iterations.
    """

    family = "dyweight"
    options = {"divisor": "call"}  # noqa: RUF012
    free_sums = True
    grid: Grid  # required, unlike in `Space`; only the file's weights are relative to it

    def __post_init__(self) -> None:
        if self.grid is None:
            raise ValueError("DyWeight needs a grid rule: specify one")

    @property
    def _cells(self) -> list[tuple[int, int]]:
        """(i, j) of every vector entry."""
        last, cells = self.steps - 1, []
        for i in range(self.steps):
            older = range(max(0, i - self.history + 1), i)
            cells += [(i, j) for j in (_RATIO, *older, i if i == last else _LEVEL)]
        return cells

    @property
    def restart(self) -> list[Restart]:  # noqa: D102 - see Space
        return [Restart(i, i if j == _RATIO else i + 1) for i, j in self._cells]

    def _values(self, theta: Tensor, kind: int) -> Tensor:
        return theta[[n for n, (_, j) in enumerate(self._cells) if j == kind]]

    def _classical(self, levels: Tensor) -> Tensor:
        """Adams-Bashforth's coefficients as fractions of each step, shape [N, N]."""
        rows = []
        for i in range(self.steps):
            first = max(0, i + 1 - min(self.history, _ORDER))
            row = polynomial_weights(levels[first : i + 1], levels[i], levels[i + 1]) / (levels[i + 1] - levels[i])
            rows.append(torch.nn.functional.pad(row, (first, self.steps - 1 - i)))
        return torch.stack(rows)

    def _parts(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Levels [N + 1], levels of the calls [N] and coefficients [N, N]."""
        ends = self.grid.levels(self.steps, self.noise)
        levels = torch.cat([ends[:1], self._values(theta, _LEVEL).exp(), ends[-1:]])
        if bool((levels.detach().diff() >= 0).any()):
            raise ValueError(f"levels must descend, got {levels.tolist()}")
        at = [n for n, (_, j) in enumerate(self._cells) if j >= 0]
        rows, columns = (torch.tensor([self._cells[n][k] for n in at], dtype=torch.long) for k in (0, 1))
        deviations = torch.zeros(self.steps, self.steps, dtype=torch.float64).index_put((rows, columns), theta[at])
        newest = torch.cat([-deviations[:-1].sum(1), theta.new_zeros(1)])
        fractions = self._classical(levels) + deviations + torch.diag(newest)
        return levels, levels[:-1] * self._values(theta, _RATIO).exp(), fractions * levels.diff()[:, None]

    def table(self, theta: Tensor) -> SolverTable:  # noqa: D102 - see Space
        levels, sigmas, coeffs = self._parts(theta)
        return SolverTable(levels, sigmas, torch.ones(self.steps, dtype=torch.float64), coeffs, "derivative")

    def initial(self, table: SolverTable) -> Tensor:  # noqa: D102 - see Space
        return self._vector(cut_to_window(with_derivatives(table).coeffs, self.history), table.sigmas)

    def from_file(self, tensors: Mapping[str, Tensor]) -> Tensor:  # noqa: D102 - see Space
        weights, grid = cut_to_window(tensors["weights"], self.history), self.grid.levels(self.steps, self.noise)
        table = dyweight_table(weights, tensors["t_scale"], grid, divisor="call")
        return self._vector(table.coeffs, table.sigmas)

    def _vector(self, coeffs: Tensor, sigmas: Tensor) -> Tensor:
        ends = self.grid.levels(self.steps, self.noise)
        levels = torch.cat([ends[:1], ends[0] + coeffs.sum(1).cumsum(0)[:-1], ends[-1:]])
        deviations = coeffs / levels.diff()[:, None] - self._classical(levels)
        values = {_RATIO: (sigmas / levels[:-1]).log(), _LEVEL: levels[1:].log()}
        return torch.stack([values[j][i] if j < 0 else deviations[i, j] for i, j in self._cells])

    def tensors(self, theta: Tensor) -> dict[str, Tensor]:  # noqa: D102 - see Space
        levels, sigmas, coeffs = self._parts(theta)
        steps = self.grid.levels(self.steps, self.noise)[1:] - levels[:-1]
        return {"weights": coeffs / steps[:, None], "t_scale": sigmas / levels[:-1]}

    def step_card(self, theta: Tensor) -> StepCard:  # noqa: D102 - see Space
        return StepCard(grid=self.grid, options=dict(self.options), history=min(self.history, self.steps))
