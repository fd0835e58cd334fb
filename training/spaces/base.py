"""Free parameters of a family: a flat vector, and the map from it to a table.

Parameters are ordered by the step that they act on. Those of step i leave the states up to x_i unchanged, so a finite
difference can restart from there: `restart` gives, per parameter, that step and whether its model call is reused too.
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

__all__ = ["Restart", "Space", "cut_to_window", "is_valid", "resample_vector"]

_MOST_ABOVE = 100.0  # times the highest level; fits of networks call them at up to 1.3 times, of toys at up to 8


class Restart(NamedTuple):
    """The point at which changing one parameter makes a run differ from the unchanged run."""

    step: int  # the state x_step is the same
    entries: int  # the first entries h_0, h_1, ... that are the same


@dataclass(frozen=True)
class Space(ABC):
    """A family's free parameters for one step count, noise schedule and grid.

    Args:
        steps: Network calls N.
        noise: The model's noise schedule.
        grid: Rule of the grid; None for a family with its own times.
        history: Newest entries that a step may use.
    """

    family: ClassVar[str]
    options: ClassVar[Mapping[str, object]] = {}
    """Card options of the form that a fit learns."""
    free_sums: ClassVar[bool] = False
    """Whether a row may lead to another level than the next one's."""

    steps: int
    noise: Noise
    grid: Grid | None
    history: int

    @property
    @abstractmethod
    def restart(self) -> list[Restart]:
        """The restart point of each parameter, P entries."""

    @abstractmethod
    def table(self, theta: Tensor) -> SolverTable:
        """The table of a parameter vector, shape [P], float64; differentiable."""

    @abstractmethod
    def initial(self, table: SolverTable) -> Tensor:
        """The parameters of a table with descending levels, which need not be the space's own.

        Entries outside the window are added to its oldest entry.
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
        """Refuses a step count whose card options differ from those that a fit learns, `cls.options`."""
        defaults = FAMILIES[cls.family].options
        if {**defaults, **step.options} != {**defaults, **cls.options}:
            raise ValueError(
                f"{name} has options {dict(step.options) or 'none'} on its card, but a fit needs "
                f"{dict(cls.options) or 'none'}: start from a scan"
            )

    @classmethod
    def can_start_from(cls, table: SolverTable, noise: Noise) -> bool:
        """Whether the family can represent a classical solver: its levels and those that its rows reach descend.

        The levels that ipndm_v's rows reach may not.
        """
        rows = with_derivatives(table).coeffs.sum(1)
        reached = table.levels[0] + torch.cat([rows.new_zeros(1), rows.cumsum(0)])
        if bool((reached.diff() >= 0).any()) or bool((reached[:-1] <= 0).any()):
            return False
        return bool((table.levels.diff() < 0).all())

    @classmethod
    def resampled(cls, tensors: Mapping[str, Tensor], steps: int) -> dict[str, Tensor]:
        """A solver file's tensors at one guidance, resampled to another step count; unchanged for the same count.

        Row i of the result is the row at the same fraction of the path, aligned at its newest entry. Vectors with one
        value per step are interpolated.
        """
        if len(next(iter(tensors.values()))) == steps:
            return dict(tensors)
        return {name: cls._resampled(name, tensor, steps) for name, tensor in tensors.items()}

    @classmethod
    def _resampled(cls, name: str, tensor: Tensor, steps: int) -> Tensor:
        positions = torch.linspace(0, len(tensor) - 1, steps, dtype=torch.float64)
        if tensor.ndim == 1:
            return resample_vector(tensor, positions)
        rows = torch.zeros(steps, steps, dtype=torch.float64)
        for i, source in enumerate(positions.round().long().tolist()):
            for back in range(source + 1):
                rows[i, max(0, i - back)] += tensor[source, source - back]
        return rows


def resample_vector(values: Tensor, positions: Tensor) -> Tensor:
    """Values at fractional indices, linear between whole ones, shape of `positions`."""
    if len(values) == 1:
        return values.expand(len(positions)).clone()
    return interpolate(positions, torch.arange(len(values), dtype=torch.float64), values)


def is_valid(space: Space, theta: Tensor) -> bool:
    """Whether the parameters make a table with descending levels and no call far above the model's highest level.

    Other levels cannot be split for image-to-image; a model may fail at levels that it does not have.
    """
    try:
        table = space.table(theta)
    except ValueError:
        return False
    descends = bool((table.levels.diff() < 0).all())
    return descends and float(table.sigmas.max()) <= _MOST_ABOVE * space.noise.sigma_max


def cut_to_window(rows: Tensor, history: int) -> Tensor:
    """Rows [N, N] cut to the window; older coefficients are added to its oldest entry, which keeps each row's sum."""
    rows = rows.clone()
    for i in range(history, len(rows)):
        oldest = i - history + 1
        rows[i, oldest] += rows[i, :oldest].sum()
        rows[i, :oldest] = 0
    return rows
