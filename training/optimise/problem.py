"""The problem of a fit: a space, samples with their reference, an objective. Losses and linearisations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import torch
from torch import Tensor

from ...samplers import SolverTable
from ...samplers.loop import sample_table
from ..data.samples import Samples
from ..data.teacher import Reference
from ..data.trial import Run, Trial
from ..spaces.base import Restart, Space, is_valid
from .losses import Objective

__all__ = ["Linearisation", "Problem", "Residuals", "jacobian_calls"]

_SKETCH = 4096  # numbers of a residual that are kept; longer ones are sketched


class Residuals(NamedTuple):
    """Weighted residuals r [B, K] with |r_b|^2 the weighted mean square of sample b, and its loss [B]; on the CPU."""

    residual: Tensor
    losses: Tensor


class Linearisation(NamedTuple):
    """Residuals at a point and their derivatives [B, P, K], of all processes, on the CPU."""

    residual: Tensor
    losses: Tensor
    jacobian: Tensor


def jacobian_calls(space: Space) -> int:
    """Network calls per sample of a linearisation: a run, and from its restart point on one per parameter."""
    return space.steps + sum(space.steps - restart.entries for restart in space.restart)


@dataclass(frozen=True, eq=False)
class Problem(Trial):
    """Samples that the tables of a space are fitted to."""

    space: Space = field(kw_only=True)
    objective: Objective = field(kw_only=True)

    @classmethod
    def of(cls, trial: Trial, space: Space, objective: Objective) -> Problem:
        """The problem of a trial's samples on a space."""
        parts = {entry.name: getattr(trial, entry.name) for entry in fields(Trial)}
        return cls(**parts, space=space, objective=objective)

    def loss(self, theta: Tensor) -> float:
        """The mean loss over all samples; inf if the parameters make no table or no finite states."""
        mean = float(self.losses(theta).sum()) / self.total
        return mean if mean == mean else float("inf")

    def losses(self, theta: Tensor) -> Tensor:
        """The loss of each sample of all processes, shape [total], float64; inf if there is no table."""
        if not is_valid(self.space, theta):
            return torch.full([self.total], float("inf"), dtype=torch.float64)
        return self.residuals(theta).losses

    def residuals(self, theta: Tensor) -> Residuals:
        """The residuals and losses of all processes at parameters that make a table."""
        table, sketch = self.space.table(theta), _Sketch()

        def work(batch: Samples, reference: Reference) -> tuple[Tensor, ...]:
            residual = self._residual(table, self.run(table, batch).states, reference)
            root = self.objective.weight(residual).sqrt()
            return sketch(root * residual).cpu(), self.objective.rho(residual).cpu().double()

        return Residuals(*self._gather(work, len(Residuals._fields)))

    def linearise(self, theta: Tensor, difference: float) -> Linearisation:
        """The residuals and their derivatives by forward differences of that size.

        The device holds one microbatch's run and residual, the CPU at most 4096 numbers per sample and parameter. A
        longer residual is multiplied by a random matrix with orthogonal rows on average (count sketch),
        which keeps lengths and angles to 2 %.
        """
        base = self.space.table(theta)
        steps = [self._step(theta, unit * difference) for unit in torch.eye(len(theta), dtype=torch.float64)]
        tables = [self.space.table(theta + step) for step in steps]
        sizes, sketch = [float(step.sum()) for step in steps], _Sketch()

        def work(batch: Samples, reference: Reference) -> tuple[Tensor, ...]:
            run = self.run(base, batch)
            residual = self._residual(base, run.states, reference)
            root = self.objective.weight(residual).sqrt()
            columns = []
            for table, size, restart in zip(tables, sizes, self.space.restart, strict=True):
                changed = self._changed_residual(table, run, batch, reference, restart)
                columns.append(sketch(root * (changed - residual) / size))
            losses = self.objective.rho(residual)
            return sketch(root * residual).cpu(), losses.cpu().double(), torch.stack(columns, 1).cpu()

        return Linearisation(*self._gather(work, len(Linearisation._fields)))

    def _gather(self, work: Callable[[Samples, Reference], tuple[Tensor, ...]], count: int) -> list[Tensor]:
        """The `count` results of a function of microbatches for the samples of all processes, in their order."""
        parts = [torch.cat(part) for part in zip(*self.each(work), strict=True)]
        return [self.processes.gather(part, self.samples, self.total) for part in parts or [None] * count]

    def _step(self, theta: Tensor, step: Tensor) -> Tensor:
        """A step of one parameter, halved until the table that it leads to is valid."""
        for _ in range(20):
            if is_valid(self.space, theta + step):
                break
            step = step / 2
        return step

    def _changed_residual(
        self, table: SolverTable, run: Run, batch: Samples, reference: Reference, restart: Restart
    ) -> Tensor:
        """The residual of a run that differs from `run` after `restart`."""
        later: list[Tensor] = []

        def keep(step: dict) -> None:
            if self.objective.needs_trajectory:
                later.append(step["x"])

        end = sample_table(
            self.model, run.states[restart.step], table, batch.extra_args, keep, disable=True, start=restart.step,
            history=dict(enumerate(run.entries[: restart.entries])),
        )  # fmt: skip
        missing = len(run.states) - 1 - len(later)  # states before the restart are the base run's
        return self._residual(table, [*run.states[:missing], *later, end], reference)

    def _residual(self, table: SolverTable, states: list[Tensor], reference: Reference) -> Tensor:
        return self.objective.residual(states[1:], table.levels[1:], reference)


class _Sketch:
    """Residuals [B, ...] as rows of at most 4096 numbers with the same mean square, shape [B, K], on their device."""

    def __init__(self) -> None:
        self._map: tuple[Tensor, Tensor] | None = None

    def __call__(self, residual: Tensor) -> Tensor:
        flat = residual.flatten(1)
        size = flat.shape[1]
        if size > _SKETCH:
            if self._map is None:
                generator = torch.Generator().manual_seed(0)
                target = torch.randint(_SKETCH, [size], generator=generator).to(flat.device)
                sign = 2 * torch.randint(2, [size], generator=generator) - 1
                self._map = target, sign.to(flat.dtype).to(flat.device)
            target, sign = self._map
            flat = flat.new_zeros(len(flat), _SKETCH).index_add_(1, target, flat * sign)
        return flat / size**0.5
