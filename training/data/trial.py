"""Samples with the teacher's states for them, on which solvers are evaluated."""

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
_Trial = TypeVar("_Trial", bound="Trial")


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

    def first(self: _Trial, count: int) -> _Trial:
        """The first `count` samples of all processes."""
        count = min(count, self.total)
        samples = self.processes.first(self.samples, count)
        return replace(self, samples=samples, reference=self.reference.rows(0, len(samples)), total=count)

    def pick(self: _Trial, rows: Tensor) -> _Trial:
        """The samples with the given global numbers. With several processes, valid for `normal` only."""
        local = self.processes.local_rows(rows, self.samples, self.total)
        return replace(self, samples=self.samples.pick(local), reference=self.reference.pick(local), total=len(rows))

    def ends(self, table: SolverTable) -> Tensor:
        """A table's end states for this process's samples, shape [S, ...], on the CPU."""
        parts = self.each(lambda batch, _: self._end(table, batch).cpu())
        return torch.cat([self.samples.x[:0].cpu(), *parts])

    def errors(self, table: SolverTable) -> Tensor:
        """Mean square distance of each of this process's samples to the teacher's end, shape [S]."""

        def squares(batch: Samples, reference: Reference) -> Tensor:
            distance = self._end(table, batch) - reference.end
            return distance.cpu().double().flatten(1).square().mean(1)

        empty = torch.zeros(0, dtype=torch.float64)  # for a process without a sample
        return torch.cat([empty, *self.each(squares)])

    def _end(self, table: SolverTable, batch: Samples) -> Tensor:
        return sample_table(self.model, batch.x, table, batch.extra_args, disable=True)

    def run(self, table: SolverTable, batch: Samples, model: Denoiser | None = None) -> Run:
        """A run of a table over a microbatch, through `model` if given, else the trial's."""
        states, entries = [], []

        def keep(step: dict) -> None:
            x, denoised = step["x"], step["denoised"]
            states.append(x)
            entries.append(denoised if table.entry == "denoised" else (x - denoised) / table.sigmas[step["i"]].item())

        end = sample_table(model or self.model, batch.x, table, batch.extra_args, keep, disable=True)
        return Run([*states, end], entries)

    def each(self, work: Callable[[Samples, Reference], _Result]) -> Iterator[_Result]:
        """Yields `work(samples, reference)` for microbatches that fit into memory, on the model's device."""

        def part(start: int, stop: int) -> _Result:
            batch = self.samples.rows(start, stop).loaded()
            return work(batch, self.reference.rows(start, stop).loaded(batch))

        return self.model.each(self.samples, part)
