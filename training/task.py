"""What the fits of all step counts share: fitted and held-out samples, settings of the family, the journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..samplers import Grid, SolverTable
from ..samplers.schedules import Noise
from .data.trial import Trial
from .optimise.levenberg_marquardt import Progress
from .optimise.losses import Objective
from .optimise.problem import Problem
from .spaces import SPACES, make_space
from .spaces.base import Space
from .starts.candidates import Candidate, carrier_grid, rmse_and_median
from .store.journal import Journal, Record

__all__ = ["Task"]


@dataclass(frozen=True, eq=False)
class Task:
    """Samples and settings of a fit that do not depend on the step count."""

    fitted: Trial
    held_out: Trial
    objective: Objective
    noise: Noise
    family: str
    history: int
    learn_grid: bool
    journal: Journal
    log: Progress

    def space(self, steps: int, candidate: Candidate, history: int | None = None) -> Space:
        """The free parameters on a candidate's grid; without a rule, on a grid that can represent its levels."""
        return self.space_on(steps, candidate.grid or carrier_grid(candidate.table, self.noise), history)

    def space_on(self, steps: int, grid: Grid | None, history: int | None = None) -> Space:
        """The free parameters on a grid; DS-Solver needs none."""
        return make_space(self.family, steps, self.noise, grid, history or self.history, self.learn_grid)

    def can_start_from(self, candidate: Candidate) -> bool:
        """Whether the family can represent the candidate's levels."""
        return SPACES[self.family].can_start_from(candidate.table, candidate.grid, self.noise, self.learn_grid)

    def problems(self, space: Space) -> tuple[Problem, Problem]:
        """The problems of the fitted and of the held-out samples on a space."""
        return Problem.of(self.fitted, space, self.objective), Problem.of(self.held_out, space, self.objective)

    def errors(self, name: str, trial: Trial, tables: Sequence[SolverTable]) -> list[tuple[float, float]]:
        """RMSE and median of several tables, recorded under that name."""

        def work() -> Record:
            return {"errors": torch.tensor([rmse_and_median(trial, table) for table in tables], dtype=torch.float64)}

        return [(error, median) for error, median in self.recorded(name, work)["errors"].tolist()]

    def error(self, name: str, trial: Trial, table: SolverTable) -> float:
        """RMSE of a table, recorded under that name."""
        return self.errors(name, trial, [table])[0][0]

    def recorded(self, name: str, work: Callable[[], Record]) -> Record:
        """The journal's record of that name, or else the result of `work`, which is then recorded."""
        record = self.resume(name)
        if record is None:
            record = work()
            self.keep(name, record)
        return record

    def resume(self, name: str) -> Record | None:
        """The journal's record of that name, or None; the count of network calls resumes from it."""
        record = self.journal.get(name)
        if record is not None:
            self.fitted.model.calls = int(record["calls"]) if self.fitted.processes.rank == 0 else 0
        return record

    def keep(self, name: str, record: Record) -> None:
        """Writes a record, with the network calls so far, to the journal."""
        self.journal.put(name, {**record, "calls": torch.tensor(float(self.calls()), dtype=torch.float64)})

    def calls(self) -> int:
        """The network calls of all processes so far; all processes must call this together."""
        return int(self.fitted.processes.sums(torch.tensor(float(self.fitted.model.calls), dtype=torch.float64)))
