"""What a fit may change: a flat vector of free parameters per family, and the way from it to a table.

Parameters are ordered by the step that they act on. Those of step i leave the states up to x_i unchanged, which is
what lets a difference restart from there: `restart` says, per parameter, from which step on and whether the model call
at that step stays the same too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..samplers import FlowNoise, Grid, SolverTable, VPNoise
from ..samplers.card import StepCard
from ..samplers.conversion import with_denoised, with_derivatives
from ..samplers.dyweight import dyweight_table
from ..samplers.schedules import Noise
from ..samplers.searched import VP_TIMES, ds_flow_table, ds_vp_table

__all__ = ["DSSpace", "DyWeightSpace", "Restart", "Space", "is_valid", "make_space"]


class Restart(NamedTuple):
    """Where a run with one parameter changed departs from the unchanged run.

    Args:
        step: The state x_step is the same.
        known: The entries h_j with j < known are the same.
    """

    step: int
    known: int


class Space(Protocol):
    """A family's free parameters for one step count, noise schedule and grid."""

    @property
    def restart(self) -> list[Restart]:
        """Where a run departs when one parameter changes, shape [P]."""
        ...

    def table(self, theta: Tensor) -> SolverTable:
        """Returns the table of a parameter vector, shape [P], float64; differentiable."""
        ...

    def initial(self, table: SolverTable) -> Tensor:
        """Returns the parameters of a table whose rows lead to descending levels, the space's own or not.

        Entries outside the window go to its oldest.
        """
        ...

    def from_file(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Returns the parameters of a solver file's tensors."""
        ...

    def tensors(self, theta: Tensor) -> dict[str, Tensor]:
        """Returns the tensors that a solver file stores."""
        ...

    def step_card(self, theta: Tensor) -> StepCard:
        """Returns the card entry: grid rule and history."""
        ...


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


def is_valid(space: Space, theta: Tensor) -> bool:
    """Whether the parameters make a table whose levels descend: one without has no parts for image-to-image."""
    try:
        return bool((space.table(theta).levels.diff() < 0).all())
    except ValueError:
        return False


def _windowed(rows: Tensor, history: int) -> Tensor:
    """Returns rows with everything older than the window added to the window's oldest entry, so that sums are kept."""
    rows = rows.clone()
    for i in range(history, len(rows)):
        oldest = i - history + 1
        rows[i, oldest] += rows[i, :oldest].sum()
        rows[i, :oldest] = 0
    return rows


@dataclass(frozen=True)
class DyWeightSpace:
    """Weights inside a window and log t_scale per step, on a grid whose shape may be learned too.

    Vector: for each step i the weights w_ij of the newest `history` entries, oldest first, then log s_i; last, if
    `learn_grid`, the log of the grid's shape parameter.
    """

    steps: int
    noise: Noise
    grid: Grid
    history: int
    learn_grid: bool = False

    def __post_init__(self) -> None:
        if self.learn_grid and self.grid.shape_parameter is None:
            raise ValueError(f"the {self.grid.rule} grid has no shape to learn: use flow_shift, karras or polynomial")

    @property
    def _cells(self) -> list[tuple[int, int]]:
        """(i, j) of every vector entry; j = -1 is t_scale."""
        return [(i, j) for i in range(self.steps) for j in [*range(max(0, i - self.history + 1), i + 1), -1]]

    @property
    def restart(self) -> list[Restart]:  # noqa: D102 - see Space
        own = [Restart(i, i if j < 0 else i + 1) for i, j in self._cells]
        return [*own, Restart(0, 1)] if self.learn_grid else own

    def _parts(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cells = self._cells
        at = [n for n, (_, j) in enumerate(cells) if j >= 0]
        rows, columns = (torch.tensor([cells[n][k] for n in at]) for k in (0, 1))
        weights = torch.zeros(self.steps, self.steps, dtype=torch.float64).index_put((rows, columns), theta[at])
        t_scale = theta[[n for n, (_, j) in enumerate(cells) if j < 0]].exp()
        if self.learn_grid:
            return weights, t_scale, self.grid.bent(self.steps, self.noise, theta[-1].exp())
        return weights, t_scale, self.grid.levels(self.steps, self.noise)

    def table(self, theta: Tensor) -> SolverTable:  # noqa: D102 - see Space
        weights, t_scale, levels = self._parts(theta)
        return dyweight_table(weights, t_scale, levels, divisor="call")

    def initial(self, table: SolverTable) -> Tensor:  # noqa: D102 - see Space
        coeffs = _windowed(with_derivatives(table).coeffs, self.history)
        levels = self.grid.levels(self.steps, self.noise)
        true = levels[0] + torch.cat([levels.new_zeros(1), coeffs.sum(1).cumsum(0)[:-1]])
        return self._vector(coeffs / (levels[1:] - true)[:, None], table.sigmas / true)

    def from_file(self, tensors: Mapping[str, Tensor]) -> Tensor:  # noqa: D102 - see Space
        return self._vector(_windowed(tensors["weights"], self.history), tensors["t_scale"])

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
        return StepCard(grid=grid, divisor="call", history=min(self.history, self.steps))


@dataclass(frozen=True)
class DSSpace:
    """Time steps and coefficients inside a window, on flow and VP models.

    Vector: for each step i the coefficients c_ij of the newest `history` - 1 older entries, oldest first, then, but
    in the last step, the logit of the part of the remaining time that is left after it.
    """

    steps: int
    noise: Noise
    history: int

    def __post_init__(self) -> None:
        if not isinstance(self.noise, FlowNoise | VPNoise):
            raise ValueError(f"DS-Solver is defined on flow and vp noise, got {self.noise.kind}: fit dyweight instead")
        if self.steps < 2:
            raise ValueError("a DS solver of one step has nothing to learn: fit dyweight instead")

    @property
    def _ends(self) -> tuple[float, float]:
        return (1.0, 0.0) if isinstance(self.noise, FlowNoise) else VP_TIMES

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
        first, last = self._ends
        left = theta[[n for n, (_, j) in enumerate(cells) if j < 0]].sigmoid().cumprod(0)
        times = torch.cat([left.new_tensor([first]), last + (first - last) * left])
        timedeltas = -times.diff()
        return torch.cat([timedeltas, (1 - timedeltas.sum())[None]]), coeffs

    def table(self, theta: Tensor) -> SolverTable:  # noqa: D102 - see Space
        timedeltas, coeffs = self._parts(theta)
        if bool((timedeltas <= 1e-9).any()):
            raise ValueError(f"time steps must be positive, got {timedeltas.tolist()}")
        if isinstance(self.noise, VPNoise):
            return ds_vp_table(timedeltas, coeffs, self.noise)
        return ds_flow_table(timedeltas, coeffs)

    def initial(self, table: SolverTable) -> Tensor:  # noqa: D102 - see Space
        if isinstance(self.noise, VPNoise):
            table = with_denoised(table)
            ratio = table.levels[1:] / table.levels[:-1]
            rows = table.coeffs / (1 - ratio)[:, None]
            times = self.noise.index_at(table.levels) / 1000
        else:
            rows = with_derivatives(table).coeffs / table.levels.diff()[:, None]
            times = table.levels
        return self._vector(_windowed(rows, self.history), times)

    def _vector(self, rows: Tensor, times: Tensor) -> Tensor:
        first, last = self._ends
        left = ((times[1:-1] - last) / (first - last)).clamp(1e-4, 1 - 1e-4)
        part = torch.cat([left[:1], left[1:] / left[:-1]]).clamp(1e-4, 1 - 1e-4).logit()
        return torch.stack([part[i] if j < 0 else rows[i, j] for i, j in self._cells])

    def from_file(self, tensors: Mapping[str, Tensor]) -> Tensor:  # noqa: D102 - see Space
        times = self._ends[0] - torch.cat([torch.zeros(1, dtype=torch.float64), tensors["timedeltas"].cumsum(0)])
        coeffs = tensors["coeffs"]
        return self._vector(_windowed(coeffs + torch.diag(1 - coeffs.sum(1)), self.history), times)

    def tensors(self, theta: Tensor) -> dict[str, Tensor]:  # noqa: D102 - see Space
        timedeltas, coeffs = self._parts(theta)
        return {"timedeltas": timedeltas, "coeffs": coeffs}

    def step_card(self, theta: Tensor) -> StepCard:  # noqa: D102 - see Space
        return StepCard(history=min(self.history, self.steps))
