"""The record of a family of learned solvers: its tensors, a check, and how parameters become a table.

To add a family, write a module like ds.py, list it in `__init__`, and add its free parameters to training/spaces/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

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
        title: Display name; the name of its sampler in the WebUI.
        sampler: Name of its sampler in ComfyUI's drop-downs, and of the k-diffusion function `sample_<sampler>`.
        about: What it learns, one clause for drop-downs and help.
        paper: Link to the paper.
        tensors: Names of the parameters that a file holds per step count, as in "7/weights".
        kinds: Kinds of noise schedule that it is defined on.
        check: `check(tensors, nfe, step_card)` raises ValueError if parameters break a rule of the family.
        table: `table(tensors, step_card, noise)` returns the SolverTable on a noise schedule.
        options: Its options in the card of a step count, with their defaults.
    """

    name: str
    title: str
    sampler: str
    about: str
    paper: str
    tensors: tuple[str, ...]
    kinds: tuple[str, ...]
    check: Callable[[Mapping[str, Tensor], int, StepCard], None]
    table: Callable[[Mapping[str, Tensor], StepCard, Noise], SolverTable]
    options: Mapping[str, object] = field(default_factory=dict)

    def option(self, step: StepCard, name: str) -> object:
        """A step count's option, or its default."""
        return step.options.get(name, self.options[name])
