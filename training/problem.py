"""One fit's problem: a space, samples with their reference, an objective. Evaluates losses and normal equations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ..samplers import SolverTable, sample_table
from ..samplers.multistep import Denoiser, continue_table
from .objective import Objective
from .processes import Processes
from .samples import CountedDenoiser, Samples
from .spaces import Restart, Space, is_valid
from .teacher import Reference

__all__ = ["Normal", "Problem", "Run"]

_Result = TypeVar("_Result")


class Normal(NamedTuple):
    """Normal equations at a point: J^T W J [P, P], J^T W r [P], the mean loss; float64 on the CPU."""

    matrix: Tensor
    gradient: Tensor
    loss: float


class Run(NamedTuple):
    """A run of a table: states x_0 ... x_N, entries h_0 ... h_{N-1}."""

    states: list[Tensor]
    entries: list[Tensor]


@dataclass(frozen=True, eq=False)
class Problem:
    """Samples to be matched by the tables of a space.

    Args:
        model: The denoiser.
        space: Free parameters.
        samples: This process's starts.
        reference: The teacher's states for them.
        objective: The loss.
        total: Number of samples over all processes.
        processes: This process's place among them.
    """

    model: CountedDenoiser
    space: Space
    samples: Samples
    reference: Reference
    objective: Objective
    total: int
    processes: Processes = field(default_factory=Processes)

    def first(self, count: int) -> Problem:
        """Returns the problem of the first `count` samples of all processes."""
        return self.between(0, count)

    def between(self, start: int, stop: int) -> Problem:
        """Returns the problem of the samples start ... stop - 1 of all processes."""
        stop = min(stop, self.total)
        low, high = (len(self.processes.first(self.samples, count)) for count in (start, stop))
        part, reference = self.samples.rows(low, high), self.reference.rows(low, high)
        return replace(self, samples=part, reference=reference, total=stop - start)

    def loss(self, theta: Tensor) -> float:
        """Returns the mean loss over all samples; inf where the parameters make no table or no finite states."""
        if not is_valid(self.space, theta):
            return float("inf")
        table = self.space.table(theta)
        total = torch.zeros((), dtype=torch.float64)
        for part in self._each(lambda start, batch: self._rho(table, self.run(table, batch).states, start, len(batch))):
            total += part
        mean = float(self.processes.sums(total)) / self.total
        return mean if mean == mean else float("inf")

    def errors(self, table: SolverTable) -> Tensor:
        """Returns the mean square distance to the teacher's end of each of this process's samples, shape [S]."""

        def errors(start: int, batch: Samples) -> Tensor:
            end = sample_table(self.model, batch.x, table, batch.extra_args, disable=True)
            return (end - self.reference.rows(start, start + len(batch)).end).cpu().double().flatten(1).square().mean(1)

        parts = list(self._each(errors))
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def normal(self, theta: Tensor, difference: float, two_sided: bool = False) -> Normal:
        """Returns the normal equations; the Jacobian is made of differences of size `difference`, forward or two-sided.

        In memory at a time: one microbatch's run, and as many residuals of it as there are parameters.
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

        for parts in self._each(sums):
            matrix, gradient, loss = matrix + parts[0], gradient + parts[1], loss + parts[2]
        # One sum over processes for all three.
        together = self.processes.sums(torch.cat([matrix.flatten(), gradient, loss[None]])) / self.total
        return Normal(together[: size * size].view(size, size), together[size * size : -1], float(together[-1]))

    def _each(self, work: Callable[[int, Samples], _Result]) -> Iterator[_Result]:
        """Yields `work(first row, microbatch)` of microbatches that fit into memory."""
        size, rows = self.samples.microbatch, self.samples.rows
        return self.model.room.each(len(self.samples), size, lambda start, stop: work(start, rows(start, stop)))

    def _step(self, theta: Tensor, step: Tensor, two_sided: bool) -> Tensor:
        """Returns a step of one parameter, halved until the tables that it leads to are valid."""
        for _ in range(20):
            if is_valid(self.space, theta + step) and (not two_sided or is_valid(self.space, theta - step)):
                break
            step = step / 2
        return step

    def run(self, table: SolverTable, batch: Samples, model: Denoiser | None = None) -> Run:
        """Returns a run of a table over a microbatch, through `model` in place of the problem's own if given."""
        states, entries = [], []

        def keep(step: dict) -> None:
            x, denoised = step["x"], step["denoised"]
            states.append(x)
            entries.append(denoised if table.history == "denoised" else (x - denoised) / table.sigmas[step["i"]].item())

        end = sample_table(model or self.model, batch.x, table, batch.extra_args, keep, disable=True)
        return Run([*states, end], entries)

    def _departed(self, table: SolverTable, run: Run, batch: Samples, reference: Reference, restart: Restart) -> Tensor:
        """Returns the residual of a run that leaves `run` where `restart` says."""
        later: list[Tensor] = []
        start, history = restart.step, dict(enumerate(run.entries[: restart.known]))
        end = continue_table(
            self.model, run.states[start], table, history, start, batch.extra_args, lambda s: later.append(s["x"]), True
        )
        missing = len(run.states) - 1 - len(later)  # states that the callback has not seen: they are the base run's
        return self._residual(table, [*run.states[:missing], *later, end], reference)

    def _residual(self, table: SolverTable, states: list[Tensor], reference: Reference) -> Tensor:
        return self.objective.residual(states[1:], table.levels[1:], reference)

    def _rho(self, table: SolverTable, states: list[Tensor], start: int, count: int) -> Tensor:
        residual = self._residual(table, states, self.reference.rows(start, start + count))
        return self.objective.rho(residual).cpu().double().sum()
