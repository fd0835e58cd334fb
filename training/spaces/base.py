"""What a fit may change: a flat vector of free parameters per family, and the way from it to a table.

Parameters are ordered by the step that they act on. Those of step i leave the states up to x_i unchanged, which is
what lets a difference restart from there: `restart` says, per parameter, from which step on and whether the model call
at that step stays the same too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ...samplers import Grid, SolverTable
from ...samplers.conversion import with_derivatives
from ...samplers.families import FAMILIES
from ...samplers.files.card import StepCard
from ...samplers.grids import interpolate
from ...samplers.schedules import Noise

__all__ = ["Restart", "Space", "is_valid", "resampled_vector", "windowed"]


class Restart(NamedTuple):
    """Where a run with one parameter changed departs from the unchanged run."""

    step: int  # the state x_step is the same
    known: int  # the entries h_j with j < known are the same


@dataclass(frozen=True)
class Space(ABC):
    """A family's free parameters for one step count, noise schedule and grid.

    Args:
        steps: Network calls N.
        noise: The model's noise schedule.
        grid: Rule of the grid; None for a family with times of its own.
        history: Newest entries that a step may use.
        learn_grid: Whether the grid's shape parameter is learned too.
    """

    family: ClassVar[str]
    options: ClassVar[Mapping[str, object]] = {}
    """Card options of the form that a fit learns."""
    proxy: ClassVar[type[Space] | None] = None
    """Space with fewer parameters in which starts of many steps are compared."""

    steps: int
    noise: Noise
    grid: Grid | None
    history: int
    learn_grid: bool = False

    @property
    @abstractmethod
    def restart(self) -> list[Restart]:
        """Where a run departs when one parameter changes, shape [P]."""

    @abstractmethod
    def table(self, theta: Tensor) -> SolverTable:
        """The table of a parameter vector, shape [P], float64; differentiable."""

    @abstractmethod
    def initial(self, table: SolverTable) -> Tensor:
        """The parameters of a table whose rows lead to descending levels, the space's own or not.

        Entries outside the window go to its oldest.
        """

    @abstractmethod
    def from_file(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The parameters of a solver file's tensors, at one guidance."""

    @abstractmethod
    def tensors(self, theta: Tensor) -> dict[str, Tensor]:
        """The tensors that a solver file stores, at one guidance."""

    @abstractmethod
    def step_card(self, theta: Tensor) -> StepCard:
        """The card entry: grid rule, options and history."""

    @classmethod
    def check_step(cls, name: str, step: StepCard) -> None:
        """Refuses a solver's step count whose card options a fit cannot go on with: others than `cls.options`."""
        defaults = FAMILIES[cls.family].options
        if {**defaults, **step.options} != {**defaults, **cls.options}:
            raise ValueError(
                f"{name} has options {dict(step.options) or 'none'} on its card, a fit goes on with "
                f"{dict(cls.options) or 'none'} only: start from a scan"
            )

    @classmethod
    def can_start_from(cls, table: SolverTable, grid: Grid | None, noise: Noise, learn_grid: bool) -> bool:
        """Whether the family has a classical solver's levels: they descend, and so do those its rows lead to.

        Those of ipndm_v may not. A grid that is learned needs a rule with a shape parameter.
        """
        rows = with_derivatives(table).coeffs.sum(1)
        reached = table.levels[0] + torch.cat([rows.new_zeros(1), rows.cumsum(0)])
        if bool((reached.diff() >= 0).any()) or bool((reached[:-1] <= 0).any()):
            return False
        if learn_grid and (grid is None or grid.shape_parameter is None):
            return False
        return bool((table.levels.diff() < 0).all())

    @classmethod
    def resampled(cls, tensors: Mapping[str, Tensor], steps: int) -> dict[str, Tensor]:
        """A solver file's tensors at one guidance for another number of steps; unchanged for the same number.

        Row i of the result is the row at the same place of the path, aligned at its newest entry; vectors with an
        entry per step are interpolated.
        """
        if len(next(iter(tensors.values()))) == steps:
            return dict(tensors)
        return {name: cls._resampled(name, tensor, steps) for name, tensor in tensors.items()}

    @classmethod
    def _resampled(cls, name: str, tensor: Tensor, steps: int) -> Tensor:
        places = torch.linspace(0, len(tensor) - 1, steps, dtype=torch.float64)
        if tensor.ndim == 1:
            return resampled_vector(tensor, places)
        rows = torch.zeros(steps, steps, dtype=torch.float64)
        for i, source in enumerate(places.round().long().tolist()):
            for back in range(source + 1):
                rows[i, max(0, i - back)] += tensor[source, source - back]
        return rows


def resampled_vector(values: Tensor, places: Tensor) -> Tensor:
    """Values at fractional indices, linear between the whole ones, shape of `places`."""
    if len(values) == 1:
        return values.expand(len(places)).clone()
    return interpolate(places, torch.arange(len(values), dtype=torch.float64), values)


def is_valid(space: Space, theta: Tensor) -> bool:
    """Whether the parameters make a table whose levels descend: one without has no parts for image-to-image."""
    try:
        return bool((space.table(theta).levels.diff() < 0).all())
    except ValueError:
        return False


def windowed(rows: Tensor, history: int) -> Tensor:
    """Rows, shape [N, N]: what is older than the window is added to its oldest entry, so that sums are kept."""
    rows = rows.clone()
    for i in range(history, len(rows)):
        oldest = i - history + 1
        rows[i, oldest] += rows[i, :oldest].sum()
        rows[i, :oldest] = 0
    return rows
