"""Samples beside the teacher's states for them: what solvers are judged on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ...samplers import SolverTable, sample_table
from ...samplers.loop import Denoiser
from .processes import Processes
from .samples import CountedDenoiser, Samples
from .teacher import Reference

__all__ = ["Run", "Trial"]

_Result = TypeVar("_Result")
_Own = TypeVar("_Own", bound="Trial")


class Run(NamedTuple):
    """A run of a table: states x_0 ... x_N, entries h_0 ... h_{N-1}."""

    states: list[Tensor]
    entries: list[Tensor]


@dataclass(frozen=True, eq=False)
class Trial:
    """This process's samples with the teacher's states for them; `total` counts those of all processes."""

    model: CountedDenoiser
    samples: Samples
    reference: Reference
    total: int
    processes: Processes = field(default_factory=Processes)

    def first(self: _Own, count: int) -> _Own:
        """Returns the first `count` samples of all processes."""
        count = min(count, self.total)
        samples = self.processes.first(self.samples, count)
        return replace(self, samples=samples, reference=self.reference.rows(0, len(samples)), total=count)

    def pick(self: _Own, rows: Tensor) -> _Own:
        """Returns the samples of a list of numbers of all processes' samples; with several, only for `normal`."""
        places = self.processes.places(rows, self.samples, self.total)
        return replace(self, samples=self.samples.pick(places), reference=self.reference.pick(places), total=len(rows))

    def ends(self, table: SolverTable) -> Tensor:
        """A table's end state of each of this process's samples, shape [S, ...]."""
        return torch.cat(list(self.each(lambda start, batch: self._end(table, batch))))

    def errors(self, table: SolverTable) -> Tensor:
        """The mean square distance to the teacher's end of each of this process's samples, shape [S]."""

        def squares(start: int, batch: Samples) -> Tensor:
            distance = self._end(table, batch) - self.reference.rows(start, start + len(batch)).end
            return distance.cpu().double().flatten(1).square().mean(1)

        none = torch.zeros(0, dtype=torch.float64)  # for a process without a sample
        return torch.cat([none, *self.each(squares)])

    def _end(self, table: SolverTable, batch: Samples) -> Tensor:
        return sample_table(self.model, batch.x, table, batch.extra_args, disable=True)

    def run(self, table: SolverTable, batch: Samples, model: Denoiser | None = None) -> Run:
        """Returns a run of a table over a microbatch, through `model` in place of the own one if given."""
        states, entries = [], []

        def keep(step: dict) -> None:
            x, denoised = step["x"], step["denoised"]
            states.append(x)
            entries.append(denoised if table.entry == "denoised" else (x - denoised) / table.sigmas[step["i"]].item())

        end = sample_table(model or self.model, batch.x, table, batch.extra_args, keep, disable=True)
        return Run([*states, end], entries)

    def each(self, work: Callable[[int, Samples], _Result]) -> Iterator[_Result]:
        """Yields `work(first row, microbatch)` of microbatches that fit into memory."""
        size, rows = self.samples.microbatch, self.samples.rows
        return self.model.batch_limit.each(len(self.samples), size, lambda start, stop: work(start, rows(start, stop)))
