"""The problem of a fit: a space, samples with their reference, an objective. Losses and normal equations."""

from __future__ import annotations

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

__all__ = ["Normal", "Problem"]


class Normal(NamedTuple):
    """Normal equations at a point: J^T W J [P, P], J^T W r [P], the mean loss; float64 on the CPU."""

    matrix: Tensor
    gradient: Tensor
    loss: float


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
        table = self.space.table(theta)
        empty = torch.zeros(0, dtype=torch.float64)  # for a process without a sample

        def batch_losses(start: int, batch: Samples) -> Tensor:
            reference = self.reference.rows(start, start + len(batch))
            return self.objective.rho(self._residual(table, self.run(table, batch).states, reference)).cpu().double()

        return self.processes.gather(torch.cat([empty, *self.each(batch_losses)]), self.samples, self.total)

    def normal(self, theta: Tensor, difference: float, two_sided: bool = False) -> Normal:
        """The normal equations; the Jacobian consists of differences of size `difference`, forward or two-sided.

        Held in memory at a time: one microbatch's run, and one residual of it per parameter.
        """
        size = len(theta)
        matrix = torch.zeros(size, size, dtype=torch.float64)
        gradient, loss = torch.zeros(size, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        base = self.space.table(theta)
        steps = [self._step(theta, unit * difference, two_sided) for unit in torch.eye(size, dtype=torch.float64)]
        ahead = [self.space.table(theta + step) for step in steps]
        behind = [self.space.table(theta - step) for step in steps] if two_sided else None

        def sums(start: int, batch: Samples) -> tuple[Tensor, Tensor, Tensor]:
            reference = self.reference.rows(start, start + len(batch))
            run = self.run(base, batch)
            residual = self._residual(base, run.states, reference)
            root = self.objective.weight(residual).sqrt()
            jacobian = residual.new_empty(size, *residual.shape)
            for k, restart in enumerate(self.space.restart):
                column = self._departed(ahead[k], run, batch, reference, restart)
                if behind is None:
                    column = (column - residual) / float(steps[k].sum())
                else:
                    column = column - self._departed(behind[k], run, batch, reference, restart)
                    column = column / (2 * float(steps[k].sum()))
                jacobian[k] = root * column
            # Means over the entries of a sample, sums over samples: the same scale as the loss.
            scale, flat = 1.0 / residual[0].numel(), jacobian.flatten(1)
            return (
                scale * (flat @ flat.T).cpu().double(),
                scale * (flat @ (root * residual).flatten()).cpu().double(),
                self.objective.rho(residual).cpu().double().sum(),
            )

        for parts in self.each(sums):
            matrix, gradient, loss = matrix + parts[0], gradient + parts[1], loss + parts[2]
        # One sum over processes for all three.
        together = self.processes.sums(torch.cat([matrix.flatten(), gradient, loss[None]])) / self.total
        return Normal(together[: size * size].view(size, size), together[size * size : -1], float(together[-1]))

    def _step(self, theta: Tensor, step: Tensor, two_sided: bool) -> Tensor:
        """A step of one parameter, halved until the tables that it leads to are valid."""
        for _ in range(20):
            if is_valid(self.space, theta + step) and (not two_sided or is_valid(self.space, theta - step)):
                break
            step = step / 2
        return step

    def _departed(self, table: SolverTable, run: Run, batch: Samples, reference: Reference, restart: Restart) -> Tensor:
        """The residual of a run that differs from `run` after `restart`."""
        later: list[Tensor] = []
        end = sample_table(
            self.model, run.states[restart.step], table, batch.extra_args, lambda step: later.append(step["x"]),
            disable=True, start=restart.step, history=dict(enumerate(run.entries[: restart.entries])),
        )  # fmt: skip
        missing = len(run.states) - 1 - len(later)  # states before the restart are the base run's
        return self._residual(table, [*run.states[:missing], *later, end], reference)

    def _residual(self, table: SolverTable, states: list[Tensor], reference: Reference) -> Tensor:
        return self.objective.residual(states[1:], table.levels[1:], reference)
