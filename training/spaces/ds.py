"""Free parameters of DS-Solver: time steps and coefficients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...samplers import SolverTable
from ...samplers.conversion import with_denoised, with_derivatives
from ...samplers.families.ds import TIMES, ds_table
from ...samplers.files.card import StepCard
from ...samplers.schedules import Noise
from .base import Restart, Space, cut_to_window, resample_vector

__all__ = ["DSSpace"]


@dataclass(frozen=True)
class DSSpace(Space):
    """Time steps and coefficients inside a window, on flow and VP models; the grid has no effect.

    Vector: for each step i the coefficients c_ij of the newest `history` - 1 older entries, oldest first; then, except
    in the last step, the logit of the fraction of the remaining time that is left after it.
    """

    family = "ds"

    def __post_init__(self) -> None:
        if self.noise.kind not in TIMES:
            raise ValueError(
                f"DS-Solver is defined on {' and '.join(TIMES)} noise, got {self.noise.kind}: fit dyweight instead"
            )
        if self.steps < 2:
            raise ValueError("a DS solver of one step has nothing to learn: fit dyweight instead")

    @property
    def _cells(self) -> list[tuple[int, int]]:
        """(i, j) of every vector entry; j = -1 is the time step."""
        last = self.steps - 1
        return [
            (i, j) for i in range(self.steps) for j in [*range(max(0, i - self.history + 1), i), *([-1] * (i < last))]
        ]

    @property
    def restart(self) -> list[Restart]:  # noqa: D102 - see Space
        return [Restart(i, i + 1) for i, _ in self._cells]

    def _parts(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        cells = self._cells
        at = [n for n, (_, j) in enumerate(cells) if j >= 0]
        rows, columns = (torch.tensor([cells[n][k] for n in at], dtype=torch.long) for k in (0, 1))
        coeffs = torch.zeros(self.steps, self.steps, dtype=torch.float64).index_put((rows, columns), theta[at])
        first, last = TIMES[self.noise.kind]
        remaining = theta[[n for n, (_, j) in enumerate(cells) if j < 0]].sigmoid().cumprod(0)
        times = torch.cat([remaining.new_tensor([first]), last + (first - last) * remaining])
        timedeltas = -times.diff()
        return torch.cat([timedeltas, (1 - timedeltas.sum())[None]]), coeffs

    def table(self, theta: Tensor) -> SolverTable:  # noqa: D102 - see Space
        timedeltas, coeffs = self._parts(theta)
        if bool((timedeltas <= 1e-9).any()):
            raise ValueError(f"time steps must be positive, got {timedeltas.tolist()}")
        return ds_table(timedeltas, coeffs, self.noise)

    def initial(self, table: SolverTable) -> Tensor:  # noqa: D102 - see Space
        if self.noise.kind == "vp":  # the paper's form for VP: denoised entries at whole model times
            table = with_denoised(table)
            ratio = table.levels[1:] / table.levels[:-1]
            rows = table.coeffs / (1 - ratio)[:, None]
            times = self.noise.index_at(table.levels) / 1000
        else:
            rows = with_derivatives(table).coeffs / table.levels.diff()[:, None]
            times = table.levels
        return self._vector(cut_to_window(rows, self.history), times, 1e-4)

    def _vector(self, rows: Tensor, times: Tensor, least: float) -> Tensor:
        """The parameters of rows and times; each fraction of the remaining time is clamped to [least, 1 - least]."""
        first, last = TIMES[self.noise.kind]
        remaining = ((times[1:-1] - last) / (first - last)).clamp(least, 1 - least)
        logits = torch.cat([remaining[:1], remaining[1:] / remaining[:-1]]).clamp(least, 1 - least).logit()
        return torch.stack([logits[i] if j < 0 else rows[i, j] for i, j in self._cells])

    def from_file(self, tensors: Mapping[str, Tensor]) -> Tensor:  # noqa: D102 - see Space
        timedeltas, coeffs = tensors["timedeltas"], tensors["coeffs"]
        times = TIMES[self.noise.kind][0] - torch.cat([timedeltas.new_zeros(1), timedeltas.cumsum(0)])
        # Learned times must not move; the tiny bound only keeps the logits finite.
        return self._vector(cut_to_window(coeffs + torch.diag(1 - coeffs.sum(1)), self.history), times, 1e-12)

    def tensors(self, theta: Tensor) -> dict[str, Tensor]:  # noqa: D102 - see Space
        timedeltas, coeffs = self._parts(theta)
        return {"timedeltas": timedeltas, "coeffs": coeffs}

    def step_card(self, theta: Tensor) -> StepCard:  # noqa: D102 - see Space
        return StepCard(history=min(self.history, self.steps))

    @classmethod
    def can_start_from(cls, table: SolverTable, noise: Noise) -> bool:
        """As `Space`; times of VP models cannot end at sigma 0."""
        ends_at_0 = noise.kind == "vp" and float(table.levels[-1]) == 0
        return not ends_at_0 and super().can_start_from(table, noise)

    @classmethod
    def _resampled(cls, name: str, tensor: Tensor, steps: int) -> Tensor:
        if name != "timedeltas":
            return super()._resampled(name, tensor, steps)
        path = torch.cat([torch.zeros(1, dtype=torch.float64), tensor.cumsum(0)])
        return resample_vector(path, torch.linspace(0, len(tensor), steps + 1, dtype=torch.float64)).diff()
