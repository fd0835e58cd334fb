"""What the fits of all step counts share: samples to fit to and to judge by, the family's settings, the journal."""

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
from .starts.candidates import Candidate, carrier, rmse_and_median
from .store.journal import Journal, Record

__all__ = ["Task"]


@dataclass(frozen=True, eq=False)
class Task:
    """One fit's samples, to fit to and to judge by, and its settings, before a step count is chosen."""

    fitted: Trial
    judged: Trial
    objective: Objective
    noise: Noise
    family: str
    history: int
    learn_grid: bool
    journal: Journal
    log: Progress

    def space(self, steps: int, candidate: Candidate, history: int | None = None) -> Space:
        """The free parameters on a candidate's grid; on one that carries its levels where it has no rule."""
        return self.space_on(steps, candidate.grid or carrier(candidate.table, self.noise), history)

    def space_on(self, steps: int, grid: Grid | None, history: int | None = None) -> Space:
        """The free parameters on a grid, which DS-Solver does without."""
        return make_space(self.family, steps, self.noise, grid, history or self.history, self.learn_grid)

    def can_start_from(self, candidate: Candidate) -> bool:
        """Whether the family has the candidate's levels."""
        return SPACES[self.family].can_start_from(candidate.table, candidate.grid, self.noise, self.learn_grid)

    def on(self, space: Space) -> tuple[Problem, Problem]:
        """The problems of both kinds of samples on a space."""
        return Problem.of(self.fitted, space, self.objective), Problem.of(self.judged, space, self.objective)

    def errors(self, name: str, trial: Trial, tables: Sequence[SolverTable]) -> list[tuple[float, float]]:
        """Tables' RMSE and median to the teacher, recorded under that name."""

        def work() -> Record:
            return {"errors": torch.tensor([rmse_and_median(trial, table) for table in tables], dtype=torch.float64)}

        return [(error, median) for error, median in self.recorded(name, work)["errors"].tolist()]

    def error(self, name: str, trial: Trial, table: SolverTable) -> float:
        """A table's RMSE to the teacher, recorded under that name."""
        return self.errors(name, trial, [table])[0][0]

    def recorded(self, name: str, work: Callable[[], Record]) -> Record:
        """The journal's record of that name, or what `work` finds, which is kept."""
        record = self.resume(name)
        if record is None:
            record = work()
            self.keep(name, record)
        return record

    def resume(self, name: str) -> Record | None:
        """The journal's record of that name, or None; network calls are counted on from it."""
        record = self.journal.get(name)
        if record is not None:
            self.fitted.model.calls = int(record["calls"]) if self.fitted.processes.rank == 0 else 0
        return record

    def keep(self, name: str, record: Record) -> None:
        """Writes a record, with the network calls so far, to the journal."""
        self.journal.put(name, {**record, "calls": torch.tensor(float(self.calls()), dtype=torch.float64)})

    def calls(self) -> int:
        """The network calls so far of all processes, each of which must ask."""
        return int(self.fitted.processes.sums(torch.tensor(float(self.fitted.model.calls), dtype=torch.float64)))
