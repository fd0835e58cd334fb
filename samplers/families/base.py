"""What a family of learned solvers is: names of its tensors, a check, and the way from parameters to a table.

To add a third family, write one file like searched.py and name its FAMILY in solver_file.py. Then it runs from files.
What can be chosen or fitted is named apart: its sampler in k_diffusion.py and in nodes/ (SAMPLERS of dropdown.py, and
registration.py), its space in training/ (a file like ds_space.py, make_space of spaces.py, --family of fit_weights.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..files.card import StepCard
from ..schedules import Noise
from ..table import SolverTable

__all__ = ["Family"]


@dataclass(frozen=True)
class Family:
    """A family of learned solvers.

    Args:
        name: As in cards and file names.
        title: As people write it.
        tensors: Names of the parameters that a file holds per step count, as in "7/weights".
        kinds: Kinds of noise schedule that it is defined on.
        check: `check(tensors, nfe, step_card)` raises ValueError where parameters break a rule of the family.
        table: `table(tensors, step_card, noise)` returns the SolverTable on a noise schedule.
    """

    name: str
    title: str
    tensors: tuple[str, ...]
    kinds: tuple[str, ...]
    check: Callable[[Mapping[str, Tensor], int, StepCard], None]
    table: Callable[[Mapping[str, Tensor], StepCard, Noise], SolverTable]
