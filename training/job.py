"""A fit as data: its settings, and everything else it needs except the model. Invalid combinations are refused here."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..samplers import Grid, Guidance, Solver, SolverTable
from ..samplers.files.card import VERSION, Card, StepCard
from ..samplers.schedules import Noise, check_noise
from .data.samples import Samples
from .data.teacher import TEACHERS, Recipe, Teacher
from .effort import EFFORTS, Effort
from .optimise.gradient import OPTIMIZERS, GradientDescent
from .optimise.levenberg_marquardt import LevenbergMarquardt
from .optimise.losses import make_objective
from .spaces import FIRST_HISTORY, SPACES, Space, make_space
from .starts.candidates import Candidate, UsualSampler, carrier_grid, peers_of
from .starts.choose import resolve_initial
from .starts.path import PATH_SAMPLES
from .store.content import content_hash

__all__ = ["OPTIMIZER_NAMES", "FitJob", "FitSettings", "Optimizer", "check_calls", "make_optimizer"]

MOST_STEPS = 100  # beyond, there is nothing to learn, and a Jacobian takes days
OPTIMIZER_NAMES = ("gauss-newton", *OPTIMIZERS)
HELD_BYTES = 2**29  # of a fit on the device, in addition to sampling
_FEW_STEPS = 4  # minima differ most there, and a Jacobian is cheap
_SIZE_CHECK_NUMBERS = 64  # fewest numbers whose root mean square is close to their standard deviation

Optimizer = LevenbergMarquardt | GradientDescent


def make_optimizer(optimizer: str | Optimizer, seed: int, rate: float = 3e-2) -> Optimizer | None:
    """The settings of an optimizer by its name; None for Levenberg-Marquardt as the effort has it.

    Gradient descent makes 40 passes over the samples, shuffled by `seed`, at a learning `rate`; Lion's is 1e-2.
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    if optimizer not in OPTIMIZER_NAMES:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZER_NAMES)}, got {optimizer!r}")
    if optimizer == "gauss-newton":
        return None
    return GradientDescent(optimizer, rate=1e-2 if optimizer == "lion" else rate, epochs=40, seed=seed)


def check_calls(teacher: Teacher | Recipe, longest: int) -> None:
    """Refuses a sampler that makes no more calls than the longest solver; a table or a function may."""
    is_table = isinstance(teacher, Recipe) and teacher.table is not None
    if 0 < teacher.calls <= longest and not is_table:
        raise ValueError(
            f"the teacher makes {teacher.calls} model calls ({teacher}), but must make more than the solver's "
            f"{longest}: give it more steps"
        )


@dataclass(frozen=True)
class FitSettings:
    """Arguments of `fit_solver`, with teacher and optimizer as objects; `steps` are sorted and deduplicated.

    `samples` is the number to fit to, at most, instead of the optimizer's.
    """

    family: str = next(iter(SPACES))
    steps: tuple[int, ...] = (4, 6, 8)
    history: int | None = None
    teacher: str | Teacher | Recipe | SolverTable | Callable[..., Tensor] = "ode"
    teacher_steps: int | None = None
    optimizer: Optimizer | None = None
    loss: str | Callable[[Tensor], Tensor] = "l2"
    initial: str | Path | Solver = "path"
    held_out: int | None = None
    seed: int = 0
    effort: str = "default"
    guidance: tuple[float, ...] = ()
    guidance_argument: str | None = None
    usual: UsualSampler | None = None
    samples: int | None = None

    def __post_init__(self) -> None:
        if self.family not in SPACES:
            raise ValueError(f"family must be one of {', '.join(SPACES)}, got {self.family!r}")
        steps = tuple(sorted(set(self.steps)))
        if not steps or steps[0] < 1 or steps[-1] > MOST_STEPS:
            raise ValueError(f"steps must be between 1 and {MOST_STEPS}, got {list(self.steps)}")
        object.__setattr__(self, "steps", steps)
        if self.effort not in EFFORTS:
            raise ValueError(f"effort must be one of {', '.join(EFFORTS)}, got {self.effort!r}")
        if self.history is not None and self.history < 1:
            raise ValueError(f"history must be at least 1, got {self.history}")
        knots = self.guidance
        if list(knots) != sorted(set(knots)) or (len(knots) > 1 and knots[0] <= 0):
            raise ValueError(f"several guidance values must be positive and ascending, got {list(knots)}")
        if len({f"{knot:g}" for knot in knots}) < len(knots):
            raise ValueError(f"guidance values must differ in their first six digits, got {list(knots)}")
        if len(knots) > 1 and not self.guidance_argument:
            raise ValueError(
                "several guidance values need guidance_argument: the name under which the model takes them"
            )
        needs_trajectory = make_objective(self.loss).needs_trajectory
        object.__setattr__(self, "teacher", self._teacher(steps[-1]))
        if needs_trajectory and not isinstance(self.teacher, Teacher):
            raise ValueError(
                f"the trajectory loss needs a path: choose a teacher of {', '.join(TEACHERS)}, or another loss"
            )
        if isinstance(self.teacher, Teacher | Recipe):  # always, see above
            check_calls(self.teacher, steps[-1])

    def _teacher(self, longest: int) -> Teacher | Recipe:
        if isinstance(self.teacher, Teacher | Recipe):
            return self.teacher
        if isinstance(self.teacher, str):
            return Teacher.of(self.teacher, self.teacher_steps, longest, EFFORTS[self.effort].teacher)
        return Recipe.of(self.teacher)


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
        family = settings.family
        check_noise(noise)
        _check_table(self.teacher, noise)
        _check_samples(self.samples, noise)
        held_out = settings.held_out
        held_out = max(1, min(self.effort.held_out, count // 4)) if held_out is None else held_out
        if not 0 < held_out < count:
            raise ValueError(f"held_out must be between 1 and {count - 1} ({count} samples given), got {held_out}")
        history = FIRST_HISTORY if settings.history is None else settings.history
        grid = next(iter(noise.usual_grids().values()))
        for n in settings.steps:  # refuses what the family does not support
            make_space(family, n, noise, grid, history)
        initial = resolve_initial(settings.initial, family, settings.steps, noise, history)
        card: dict[str, Any] = {"architecture": "unknown", "checkpoint": "unknown"}
        if settings.guidance:
            card["guidance"] = Guidance("cfg", settings.guidance)
        card |= {"source": "fitted with Learned Solvers", "package_version": VERSION, **self.card}
        free = [entry.name for entry in fields(Card) if entry.name not in ("family", "prediction", "steps")]
        if unknown := [name for name in card if name not in free]:
            raise ValueError(f"card has no entry {', '.join(map(str, unknown))}: choose from {', '.join(free)}")
        Card(family, noise.kind, steps={1: StepCard()}, **card)  # refuses wrong values before hours of fitting
        for name, value in {"history": history, "held_out": held_out, "initial": initial, "card": card}.items():
            object.__setattr__(self, name, value)

    @property
    def effort(self) -> Effort:
        """What the settings' effort stands for."""
        return EFFORTS[self.settings.effort].for_numbers(self.samples.x[0].numel())

    @property
    def teacher(self) -> Teacher | Recipe:
        """The teacher."""
        assert isinstance(self.settings.teacher, Teacher | Recipe)  # see FitSettings
        return self.settings.teacher

    @property
    def path_teacher(self) -> Teacher:
        """The teacher whose path a fit starts from: the teacher itself, or the usual one in addition to a recipe."""
        return self.teacher if isinstance(self.teacher, Teacher) else Teacher.of("ode", None, self.settings.steps[-1])

    def teacher_calls(self, samples: int, *, first_knot: bool) -> int:
        """Network calls of the teacher for the given number of samples at one guidance, and of a recipe's path."""
        calls, path = self.teacher.calls * samples, self.path_teacher
        if path is self.teacher:
            return calls + path.pilot_calls
        if not first_knot or self.initial != "path":
            return calls
        return calls + path.pilot_calls + path.calls * min(PATH_SAMPLES, self.blocks[0])

    def starts(self, steps: int) -> int:
        """Starts of which each gets a Jacobian before one is chosen; with many steps that costs too much."""
        return self.effort.starts if steps <= _FEW_STEPS else 1

    @property
    def first_knot(self) -> int:
        """The index of the knot that is fitted first: the middle one."""
        return len(self.settings.guidance) // 2

    def peers(self, steps: int) -> list[Candidate]:
        """The classical solvers to compare with."""
        return peers_of(steps, self.noise, every=self.effort.all_peers, usual=self.settings.usual)

    @property
    def fitted(self) -> int:
        """Number of samples that may be fitted to."""
        return len(self.samples) - self.held_out

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer, as the effort has it if none is given, with no more samples than there are."""
        optimizer = self.settings.optimizer or self.effort.optimizer
        if isinstance(optimizer, LevenbergMarquardt):
            return replace(optimizer, samples=min(self.settings.samples or optimizer.samples, self.fitted))
        return optimizer

    def optimizer_at(self, *, first_knot: bool) -> Optimizer:
        """The optimizer at a knot; next to a fitted one, with fewer samples and one Jacobian of each."""
        optimizer = self.optimizer
        if first_knot or isinstance(optimizer, GradientDescent):
            return optimizer
        half = max((end for end in self.blocks if 2 * end <= optimizer.samples), default=self.blocks[0])
        return replace(optimizer, samples=half, work=1.3)

    def samples_at(self, *, first_knot: bool) -> int:
        """The largest number of samples that are fitted to at a knot."""
        optimizer = self.optimizer_at(first_knot=first_knot)
        return optimizer.samples if isinstance(optimizer, LevenbergMarquardt) else self.fitted

    @property
    def blocks(self) -> list[int]:
        """Ends of the consecutive parts in which samples are fitted to."""
        optimizer = self.optimizer
        return optimizer.blocks() if isinstance(optimizer, LevenbergMarquardt) else [self.fitted]

    def space_on(self, steps: int, grid: Grid | None, history: int | None = None) -> Space:
        """The free parameters on a grid; DS-Solver needs none."""
        return make_space(self.settings.family, steps, self.noise, grid, history or self.history)

    def space(self, steps: int, candidate: Candidate, history: int | None = None) -> Space:
        """The free parameters on a candidate's grid; without a rule, on a grid that can represent its levels."""
        return self.space_on(steps, candidate.grid or carrier_grid(candidate.table, self.noise), history)

    def can_start_from(self, candidate: Candidate) -> bool:
        """Whether the family can represent the candidate's levels."""
        return SPACES[self.settings.family].can_start_from(candidate.table, self.noise)

    def on(self, device: torch.device, groups: Sequence[Hashable] = ()) -> FitJob:
        """The same job on the model's device.

        Of samples with a key in `groups`, those of one key share calls: they come one after the other in every part.
        """
        job = copy(self)  # already checked
        object.__setattr__(job, "samples", replace(self.samples, device=device).grouped(groups, self.blocks))
        return job

    @property
    def most_together(self) -> int:
        """Samples per call whose run and residual take half a gigabyte of the device, at most."""
        return max(1, HELD_BYTES // (self.samples.x[0].numel() * 4 * (3 * self.settings.steps[-1] + 8)))

    def content_hash(self) -> str:
        """Hash that is independent of process, microbatch and card; unknown objects count by name or type."""
        settings = replace(
            self.settings, history=self.history, held_out=self.held_out, initial=self.initial,
            optimizer=self.optimizer,
        )  # fmt: skip
        return content_hash(
            settings, self.samples.x, self.samples.extra_args, self.noise, VERSION,
            describe=lambda other: getattr(other, "__qualname__", type(other).__qualname__),
        )  # fmt: skip


def _check_table(teacher: Teacher | Recipe, noise: Noise) -> None:
    table = teacher.table if isinstance(teacher, Recipe) else None
    if table is not None and abs(float(table.levels[0]) / noise.sigma_max - 1) > 1e-3:
        raise ValueError(
            f"the teacher's table starts at noise level {float(table.levels[0]):.4g}, this {noise.kind} model at "
            f"{noise.sigma_max:.4g}: make the table for the model's schedule"
        )


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
