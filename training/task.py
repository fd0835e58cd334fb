"""What the fits of all step counts share: samples with the teacher's states, settings of the family, the journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..samplers import SolverTable
from .data.processes import Processes
from .data.samples import CountedDenoiser, Samples
from .data.teacher import Recipe, Reference, places_of
from .data.trial import Trial
from .job import FitJob
from .meter import Meter
from .optimise.levenberg_marquardt import Progress
from .optimise.losses import Objective
from .optimise.problem import Problem
from .spaces import Space
from .starts.candidates import rmse_and_median
from .starts.path import PATH_SAMPLES
from .store.journal import Journal, Record

__all__ = ["Task"]

_Result = TypeVar("_Result")


@dataclass(frozen=True, eq=False)
class Task:
    """A job at one guidance, with the model; the teacher runs where its states are asked for, once per sample."""

    job: FitJob
    samples: Samples
    model: CountedDenoiser
    objective: Objective
    processes: Processes
    journal: Journal
    log: Progress
    cache: Path | None
    prefix: str = ""
    meter: Meter = field(default_factory=Meter)
    _trials: dict[tuple[int, int], Trial] = field(default_factory=dict)
    _grid: Record = field(default_factory=dict)
    _path: list[Reference] = field(default_factory=list)

    def trial(self, start: int, stop: int) -> Trial:
        """The samples from start to stop - 1; the teacher's whole path of the first ones, which a fit starts from."""
        if (start, stop) not in self._trials:
            share = self.processes.share(self.samples.rows(start, stop))
            reference = self._run_uncounted(lambda: self._reference(share, path=start == 0))
            self._trials[start, stop] = Trial(self.model, share, reference, stop - start, self.processes)
        return self._trials[start, stop]

    def _reference(self, samples: Samples, *, path: bool) -> Reference:
        teacher, trajectory = self.job.teacher, self.objective.needs_trajectory
        if isinstance(teacher, Recipe):
            return teacher.reference(self.model, samples, cache=self.cache)
        return teacher.reference(
            self.model, samples, self.job.noise, trajectory=trajectory, path=path, cache=self.cache,
            levels=self.levels(),
        )  # fmt: skip

    def levels(self) -> Tensor:
        """The grid of the teacher whose path the fit starts from."""
        if "levels" not in self._grid:

            def work() -> Record:
                levels = self.job.path_teacher.grid(self.model, self.samples, self.job.noise)
                return {"levels": self.processes.from_first(levels)}

            self._grid.update(self._run_uncounted(lambda: self.recorded("grid", work)))
        return self._grid["levels"]

    def _run_uncounted(self, work: Callable[[], _Result]) -> _Result:
        """The result of `work`, whose network calls are the teacher's and not counted here."""
        calls = self.model.calls
        result = work()
        self.model.calls = calls
        return result

    def problem(self, space: Space) -> Callable[[int, int], Problem]:
        """The problem on a space of the samples from start to stop - 1."""
        return lambda start, stop: Problem.of(self.trial(start, stop), space, self.objective)

    def fitted(self, count: int) -> list[Trial]:
        """The first `count` samples, in the parts in which they were fitted to."""
        ends = [end for end in self.job.blocks if end <= count]
        return [self.trial(start, stop) for start, stop in zip([0, *ends[:-1]], ends, strict=True)]

    @property
    def held_out(self) -> Trial:
        """The samples that are evaluated on."""
        count = len(self.samples)
        return self.trial(count - self.job.held_out, count)

    def path(self) -> tuple[Samples, Reference]:
        """The first few samples with the teacher's path, the same in all processes."""
        first = self.trial(0, self.job.blocks[0])
        few = first.first(PATH_SAMPLES)
        if not self._path:
            states = self._run_uncounted(lambda: self._states(few))
            states = self.processes.gather(states.transpose(0, 1), few.samples, few.total)
            self._path.append(Reference(self.levels(), states.transpose(0, 1)))
        return self.samples.rows(0, few.total), self._path[0]

    def _states(self, few: Trial) -> Tensor:
        """This process's part of the teacher's path; of a recipe, the usual teacher's path and its own end."""
        if few.reference.path is not None:
            return few.reference.path
        path = self.job.path_teacher.reference(
            self.model, few.samples, self.job.noise, path=True, cache=self.cache, levels=self.levels()
        ).path
        assert path is not None
        places = places_of(self.samples.x[0].numel())
        return torch.cat([path[:-1], few.reference.states.flatten(2)[:, :, places]])

    def errors(self, name: str, trials: Sequence[Trial], tables: Sequence[SolverTable]) -> list[tuple[float, float]]:
        """RMSE and median of several tables over the samples of some trials, recorded under that name."""

        def work() -> Record:
            values = [rmse_and_median(trials, table) for table in tables]
            return {"errors": torch.tensor(values, dtype=torch.float64)}

        return [(error, median) for error, median in self.recorded(name, work)["errors"].tolist()]

    def recorded(self, name: str, work: Callable[[], Record]) -> Record:
        """The journal's record of that name, or else the result of `work`, which is then recorded."""
        record = self.resume(name)
        if record is None:
            record = work()
            self.keep(name, record)
        return record

    def resume(self, name: str) -> Record | None:
        """The journal's record of that name, or None; the count of network calls resumes from it."""
        record = self.journal.get(self.prefix + name)
        if record is not None:
            self.model.calls = int(record["calls"]) if self.processes.rank == 0 else 0
        return record

    def keep(self, name: str, record: Record) -> None:
        """Writes a record, with the network calls so far, to the journal."""
        calls = torch.tensor(float(self.calls()), dtype=torch.float64)
        self.journal.note("meter", self.meter.record())
        self.journal.put(self.prefix + name, {**record, "calls": calls})

    def calls(self) -> int:
        """The network calls of all processes so far; all processes must call this together."""
        return int(self.processes.sums(torch.tensor(float(self.model.calls), dtype=torch.float64)))
