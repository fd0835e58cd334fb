"""What a fit is asked for: one record that validates itself and travels whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import index
from pathlib import Path

from torch import Tensor

from ..samplers import Solver
from ..samplers.schedules import Noise
from .data.teacher import Teacher
from .optimise.gradient import OPTIMIZERS, GradientDescent
from .optimise.levenberg_marquardt import GaussNewton
from .optimise.losses import make_objective
from .spaces import FIRST_HISTORY, SPACES, make_space, usual_history
from .starts.choose import resolve_initial

__all__ = ["OPTIMIZER_NAMES", "FitSettings", "Optimizer", "make_optimizer"]

MOST_STEPS = 100  # calls of a solver: beyond, nothing is left to learn, and a Jacobian takes days
OPTIMIZER_NAMES = ("gauss-newton", *OPTIMIZERS)

Optimizer = GaussNewton | GradientDescent


def make_optimizer(optimizer: str | Optimizer, seed: int, rate: float = 3e-2) -> Optimizer:
    """The settings of an optimizer by its name; settings are returned as they are.

    The gradient ones make 40 passes over the samples, in an order by `seed`, at a learning `rate`; Lion's is 1e-2.
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    if optimizer not in OPTIMIZER_NAMES:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZER_NAMES)}, got {optimizer!r}")
    if optimizer == "gauss-newton":
        return GaussNewton()
    return GradientDescent(optimizer, rate=1e-2 if optimizer == "lion" else rate, epochs=40, seed=seed)


@dataclass(frozen=True)
class FitSettings:
    """What is fitted, and how: arguments of `fit_solver`, with teacher and optimizer as objects.

    `steps` become ascending, each once. `seed` is that of the starts, where a command or a node draws them.

    Raises:
        ValueError: A setting breaks a rule.
    """

    family: str = next(iter(SPACES))
    steps: tuple[int, ...] = (4, 6, 8)
    history: int | None = None
    teacher: Teacher = Teacher()  # noqa: RUF009 - immutable
    optimizer: Optimizer = GaussNewton()  # noqa: RUF009 - immutable
    loss: str | Callable[[Tensor], Tensor] = "l2"
    initial: str | Path | Solver = "scan"
    learn_grid: bool = False
    held_out: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.family not in SPACES:
            raise ValueError(f"family must be one of {', '.join(SPACES)}, got {self.family!r}")
        steps = tuple(sorted({index(n) for n in self.steps}))
        if not steps or steps[0] < 1 or steps[-1] > MOST_STEPS:
            raise ValueError(f"steps must be counts from 1 to {MOST_STEPS}, got {list(self.steps)}")
        object.__setattr__(self, "steps", steps)
        if self.history is not None and index(self.history) < 1:
            raise ValueError(f"history must be at least 1, got {self.history}")
        make_objective(self.loss)

    @property
    def staged_optimizer(self) -> GaussNewton | None:
        """The optimizer of a fit that may begin with a short history and go on with a longer one; None for others.

        What a user starts from stays whole, and the papers' recipes know no windows.
        """
        from_scan = isinstance(self.initial, str) and self.initial == "scan"
        return self.optimizer if from_scan and isinstance(self.optimizer, GaussNewton) else None

    def resolved(self, samples: int, noise: Noise) -> FitSettings:
        """These settings for so many samples on a noise schedule, with nothing left open.

        Raises:
            ValueError: No sample is left to fit to or to judge, or there is no such start.
        """
        held_out = max(1, samples // 4) if self.held_out is None else index(self.held_out)
        if not 0 < held_out < samples:
            raise ValueError(f"held_out must be from 1 to {samples - 1} ({samples} samples given), got {held_out}")
        usual = usual_history(samples - held_out) if self.staged_optimizer else FIRST_HISTORY
        history = usual if self.history is None else index(self.history)
        grid = next(iter(noise.usual_grids().values()))
        for n in self.steps:  # refuses what no family has
            make_space(self.family, n, noise, grid, history, self.learn_grid)
        initial = resolve_initial(self.initial, self.family, self.steps, noise, history, self.learn_grid)
        return replace(self, history=history, held_out=held_out, initial=initial)
