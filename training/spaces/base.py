"""What a fit may change: a flat vector of free parameters per family, and the way from it to a table.

Parameters are ordered by the step that they act on. Those of step i leave the states up to x_i unchanged, which is
what lets a difference restart from there: `restart` says, per parameter, from which step on and whether the model call
at that step stays the same too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...samplers import SolverTable
from ...samplers.files.card import StepCard

__all__ = ["Restart", "Space", "is_valid", "resampled", "windowed"]


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


def is_valid(space: Space, theta: Tensor) -> bool:
    """Whether the parameters make a table whose levels descend: one without has no parts for image-to-image."""
    try:
        return bool((space.table(theta).levels.diff() < 0).all())
    except ValueError:
        return False


def windowed(rows: Tensor, history: int) -> Tensor:
    """Returns rows, shape [N, N]: what is older than the window is added to its oldest entry, so that sums are kept."""
    rows = rows.clone()
    for i in range(history, len(rows)):
        oldest = i - history + 1
        rows[i, oldest] += rows[i, :oldest].sum()
        rows[i, :oldest] = 0
    return rows


def resampled(tensors: Mapping[str, Tensor], steps: int) -> dict[str, Tensor]:
    """Returns a solver file's tensors for another number of steps; unchanged for the same number.

    Row i of the result is the row at the same place of the path, aligned at its newest entry; per-step vectors are
    interpolated, and time deltas are those of the interpolated path.
    """
    own = len(next(iter(tensors.values())))
    if own == steps:
        return dict(tensors)
    places = torch.linspace(0, own - 1, steps, dtype=torch.float64)
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name == "timedeltas":
            path = torch.cat([torch.zeros(1, dtype=torch.float64), tensor.cumsum(0)])
            made[name] = _interpolated(path, torch.linspace(0, own, steps + 1, dtype=torch.float64)).diff()
        elif tensor.ndim == 1:
            made[name] = _interpolated(tensor, places)
        else:
            made[name] = _rows(tensor, places.round().long().tolist())
    return made


def _rows(matrix: Tensor, sources: list[int]) -> Tensor:
    made = torch.zeros(len(sources), len(sources), dtype=torch.float64)
    for i, source in enumerate(sources):
        for back in range(source + 1):
            made[i, max(0, i - back)] += matrix[source, source - back]
    return made


def _interpolated(values: Tensor, places: Tensor) -> Tensor:
    low = places.floor().long().clamp(max=max(0, len(values) - 2))
    high = (low + 1).clamp(max=len(values) - 1)
    return torch.lerp(values[low], values[high], places - low)
