"""A fit as data: its settings, and everything else it needs except the model. Invalid combinations are refused here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field, fields, replace
from operator import index
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..samplers import Solver
from ..samplers.files.card import VERSION, Card, StepCard
from ..samplers.schedules import Noise, check_noise
from .data.samples import Samples
from .data.teacher import Teacher
from .optimise.gradient import OPTIMIZERS, GradientDescent
from .optimise.levenberg_marquardt import LevenbergMarquardt
from .optimise.losses import make_objective
from .spaces import FIRST_HISTORY, SPACES, make_space, usual_history
from .starts.choose import resolve_initial
from .store.content import content_hash

__all__ = ["OPTIMIZER_NAMES", "FitJob", "FitSettings", "Optimizer", "make_optimizer"]

MOST_STEPS = 100  # beyond, there is nothing to learn, and a Jacobian takes days
OPTIMIZER_NAMES = ("gauss-newton", *OPTIMIZERS)
_SIZE_CHECK_NUMBERS = 64  # fewest numbers whose root mean square is close to their standard deviation

Optimizer = LevenbergMarquardt | GradientDescent


def make_optimizer(optimizer: str | Optimizer, seed: int, rate: float = 3e-2) -> Optimizer:
    """The settings of an optimizer by its name; settings are returned unchanged.

    Gradient descent makes 40 passes over the samples, shuffled by `seed`, at a learning `rate`; Lion's is 1e-2.
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    if optimizer not in OPTIMIZER_NAMES:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZER_NAMES)}, got {optimizer!r}")
    if optimizer == "gauss-newton":
        return LevenbergMarquardt()
    return GradientDescent(optimizer, rate=1e-2 if optimizer == "lion" else rate, epochs=40, seed=seed)


@dataclass(frozen=True)
class FitSettings:
    """Arguments of `fit_solver`, with teacher and optimizer as objects; `steps` are sorted and deduplicated."""

    family: str = next(iter(SPACES))
    steps: tuple[int, ...] = (4, 6, 8)
    history: int | None = None
    teacher: Teacher = Teacher()  # noqa: RUF009 - immutable
    optimizer: Optimizer = LevenbergMarquardt()  # noqa: RUF009 - immutable
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
            raise ValueError(f"steps must be between 1 and {MOST_STEPS}, got {list(self.steps)}")
        object.__setattr__(self, "steps", steps)
        if self.history is not None and index(self.history) < 1:
            raise ValueError(f"history must be at least 1, got {self.history}")
        make_objective(self.loss)

    @property
    def staged_optimizer(self) -> LevenbergMarquardt | None:
        """The optimizer of a fit that may start with a short history and continue with a longer one; else None.

        A start chosen by the user is not cut, and the papers' recipes have no windows.
        """
        return self.optimizer if self.initial == "scan" and isinstance(self.optimizer, LevenbergMarquardt) else None


@dataclass(frozen=True, eq=False)
class FitJob:
    """Everything about a fit except the model, with history, held_out and initial resolved.

    The last `held_out` samples are evaluated on, not fitted to; `card` has entries in addition to the usual ones.
    """

    settings: FitSettings
    samples: Samples
    noise: Noise
    card: Mapping[str, Any]
    history: int = field(init=False)
    held_out: int = field(init=False)
    initial: str | Solver = field(init=False)

    def __post_init__(self) -> None:
        settings, noise, count = self.settings, self.noise, len(self.samples.x)
        family, learn_grid = settings.family, settings.learn_grid
        check_noise(noise)
        _check_samples(self.samples, noise)
        held_out = max(1, count // 4) if settings.held_out is None else index(settings.held_out)
        if not 0 < held_out < count:
            raise ValueError(f"held_out must be between 1 and {count - 1} ({count} samples given), got {held_out}")
        usual = usual_history(count - held_out) if settings.staged_optimizer else FIRST_HISTORY
        history = usual if settings.history is None else index(settings.history)
        grid = next(iter(noise.usual_grids().values()))
        for n in settings.steps:  # refuses what the family does not support
            make_space(family, n, noise, grid, history, learn_grid)
        initial = resolve_initial(settings.initial, family, settings.steps, noise, history, learn_grid)
        card: dict[str, Any] = {"architecture": "unknown", "checkpoint": "unknown"}
        card |= {"source": "fitted with Learned Solvers", "package_version": VERSION, **self.card}
        free = [entry.name for entry in fields(Card) if entry.name not in ("family", "prediction", "steps")]
        if unknown := [name for name in card if name not in free]:
            raise ValueError(f"card has no entry {', '.join(map(str, unknown))}: choose from {', '.join(free)}")
        Card(family, noise.kind, steps={1: StepCard()}, **card)  # refuses wrong values before hours of fitting
        for name, value in {"history": history, "held_out": held_out, "initial": initial, "card": card}.items():
            object.__setattr__(self, name, value)

    @property
    def fitted(self) -> int:
        """Number of samples to fit to."""
        return len(self.samples) - self.held_out

    def on(self, device: torch.device) -> FitJob:
        """The same job with its starts on a device."""
        job = copy(self)  # already checked
        object.__setattr__(job, "samples", replace(self.samples, x=self.samples.x.to(device)))
        return job

    def content_hash(self) -> str:
        """Hash that is independent of process, microbatch and card; unknown objects count by name or type."""
        settings = replace(self.settings, history=self.history, held_out=self.held_out, initial=self.initial)
        return content_hash(
            settings, self.samples.x, self.samples.extra_args, self.noise, VERSION,
            describe=lambda other: getattr(other, "__qualname__", type(other).__qualname__),
        )  # fmt: skip


def _check_samples(samples: Samples, noise: Noise) -> None:
    """Refuses starts whose size is not that of noise at the highest level, and arguments with a wrong number of rows.

    Flow models are exempt, as their noise may have another scale, and so are starts of few numbers.
    """
    x = samples.x
    if not x.is_floating_point() or x.ndim < 2 or not bool(torch.isfinite(x.float()).all()):
        raise ValueError(
            f"x must hold finite floating-point numbers, one start per row, got {x.dtype} of shape {list(x.shape)}: "
            "draw new starts"
        )
    if noise.start_std is not None and x.numel() >= _SIZE_CHECK_NUMBERS:
        size = float(x.cpu().double().square().mean().sqrt())
        if not noise.start_std / 2 < size < 2 * math.sqrt(1 + noise.start_std**2):
            raise ValueError(
                f"x must hold starts at the model's highest noise level, of standard deviation {noise.start_std:.4g}, "
                f"got {size:.4g}: multiply unit noise by the level"
            )
    for name, value in samples.extra_args.items():
        # Strings, mappings, numbers and 0-d tensors have no rows.
        rows = len(value) if isinstance(value, Tensor | list | tuple) and getattr(value, "ndim", 1) else 1
        if rows not in (1, len(x)):
            raise ValueError(
                f"extra_args[{name!r}] must have one row per start ({len(x)}) or a single row, got {rows}: repeat its "
                f"rows, or bind a shared value to the model with functools.partial(model, {name}=...)"
            )
