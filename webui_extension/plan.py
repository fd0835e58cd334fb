"""What one pass of a job will do: solver, grid, and which part of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..samplers import Solver, SolverTable, part_of_table
from ..samplers.choose import nearest_steps
from ..samplers.schedules import Noise
from .choice import fitting_solvers, solver_for

__all__ = ["Part", "Plan", "make_plan"]


@dataclass(frozen=True)
class Part:
    """Image-to-image as the host asks for it.

    Args:
        calls: Model calls at the end of the grid.
        derived: The host derived the whole grid's steps from calls and denoising strength (hires fix, and the setting
            "do exactly the amount of steps"); otherwise they are the user's own number.
    """

    calls: int
    derived: bool


@dataclass(frozen=True)
class Plan:
    """Solver, steps of its whole grid, and the table that will run: the whole of it, or its end."""

    solver: Solver
    steps: int
    table: SolverTable
    whole: bool

    @property
    def calls(self) -> str:
        """For people: "6", or "5 of 6"."""
        return f"{self.table.nfe}" if self.whole else f"{self.table.nfe} of {self.steps}"


def make_plan(
    p: Any, family: str, noise: Noise, architecture: str | None, steps: int, *, part: Part | None, first: Solver | None
) -> Plan:
    """Returns what a pass will do.

    Few files have the steps that the host derives for hires fix. The nearest count is taken then, and as much of its
    end as the denoising strength says.

    Args:
        p: The WebUI's job.
        family: The sampler's.
        noise: The model's noise schedule.
        architecture: The model's, in ComfyUI's spelling.
        steps: Of the whole grid, as the host asks.
        part: Image-to-image; None for the whole grid.
        first: The solver of hires fix's first pass, which the second keeps.

    Raises:
        ValueError: No solver for this model or these steps; the message lists what there is.
    """
    calls = None if part is None else part.calls
    if part is not None and not 0 <= p.denoising_strength <= 1:
        raise ValueError(f"denoising strength must be from 0 to 1, got {p.denoising_strength}")
    if part is not None and part.derived:
        fitting = [first] if first else fitting_solvers(p, family, noise, architecture)
        counts = {count for solver in fitting for count in solver.steps}
        if counts and steps not in counts:
            steps = nearest_steps(counts, steps)
            calls = min(steps, max(1, round(p.denoising_strength * steps)))
    solver = first or solver_for(p, family, noise, architecture, steps)
    table = solver.table(steps, noise)
    if calls is None or calls >= table.steps:
        return Plan(solver, steps, table, whole=True)
    end = part_of_table(table, table.levels[-1 - calls].item(), table.sigma_end)
    return Plan(solver, steps, end, whole=False)
