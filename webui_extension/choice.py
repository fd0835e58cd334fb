"""The choice of solver, grid and part of the grid for a pass of a job.

The X/Y/Z axis overrides the tab's accordion, which overrides the settings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from modules import shared
from modules.paths import data_path, models_path

from ..samplers import Guidance, Solver, SolverTable, choose_solver, part_of_table
from ..samplers.choose import Checkpoint, MissingSteps, nearest_steps
from ..samplers.families import FAMILIES
from ..samplers.files.folder import SolverFolder
from ..samplers.files.solver import SUFFIX
from ..samplers.files.write import has_suffix
from ..samplers.remarks import alternatives
from ..samplers.schedules import Noise
from .host_model import architecture, boundary_of, checkpoint_of

__all__ = ["AS_SET", "AUTO", "SOLVERS", "Part", "Pass", "Request", "make_pass", "requested_file", "wants_nearest"]

AUTO = "auto"
AS_SET = "as in Settings"
_FOLDER = Path(models_path) / "solver_weights"


SOLVERS = SolverFolder(
    (_FOLDER.relative_to(data_path) if _FOLDER.is_relative_to(data_path) else _FOLDER).as_posix(),
    list_files=lambda: sorted(p.relative_to(_FOLDER).as_posix() for p in _FOLDER.rglob("*") if has_suffix(p, SUFFIX)),
    path_of=lambda name: _FOLDER / name,
)


def requested_file(p: Any) -> str:
    """The name of the solver file that a job requests, or "auto"."""
    if (script := _script_of_inner(p)) is not None:
        return script.file
    for name in (getattr(p, "learned_solvers_axis", None), getattr(p, "learned_solvers_file", None)):
        if name and name != AS_SET:
            return name
    return getattr(shared.opts, "learned_solvers_file", None) or AUTO


def wants_nearest(p: Any) -> bool:
    """Whether an unsupported step count is rounded to the nearest instead of refused."""
    if (script := _script_of_inner(p)) is not None:
        return script.nearest
    return bool(getattr(p, "learned_solvers_nearest", False) or getattr(shared.opts, "learned_solvers_nearest", False))


def _script_of_inner(p: Any) -> Any:
    """The accordion's script in a job within a job, such as a detailer's, which runs no scripts; else None.

    The script has the choices of the outer job, which it has just processed.
    """
    if hasattr(p, "learned_solvers_file"):
        return None
    all_scripts = getattr(getattr(p, "scripts", None), "scripts", None) or ()
    return next((script for script in all_scripts if type(script).__name__ == "LearnedSolversScript"), None)


@dataclass(frozen=True)
class Request:
    """A file or "auto", for a sampler's family and a model."""

    file: str
    family: str
    noise: Noise
    architecture: str | None
    checkpoint: Checkpoint

    @classmethod
    def of(cls, p: Any, family: str, noise: Noise, sd_model: Any) -> Request:
        """What a job requests for a model of this noise schedule."""
        checkpoint = replace(checkpoint_of(sd_model), boundary=boundary_of(p, shared.opts))
        return cls(requested_file(p), family, noise, architecture(sd_model), checkpoint)

    def solver(self, steps: int, guidance: Guidance | None = None) -> Solver:
        """The solver for a step count; a named file may lack it: `Solver.table` then raises."""
        if self.file == AUTO:
            run: Any = {"architecture": self.architecture, "checkpoint": self.checkpoint, "guidance": guidance}
            return choose_solver(SOLVERS.loadable(), self.noise, steps, family=self.family, **run)
        solver = SOLVERS.load(self.file)
        if solver.family != self.family:
            family, other = FAMILIES[self.family], FAMILIES[solver.family]
            raise ValueError(
                f"{solver.name} is a {other.title} file: choose the sampler {other.title}, or a file for {family.title}"
            )
        return solver

    def alternatives(self, solver: Solver, steps: int) -> list[str]:
        """A clause with the other solvers that "auto" could have chosen; none without them."""
        return alternatives(SOLVERS.loadable(), solver, steps, self.architecture) if self.file == AUTO else []

    def nearest(self, steps: int) -> int:
        """The nearest step count that a solver for the job has; ValueError if there is no solver."""
        try:
            return nearest_steps(self.solver(steps).steps, steps)
        except MissingSteps as error:
            return error.nearest


class Part(NamedTuple):
    """The end of the grid that image-to-image runs: a number of model calls, for a denoising strength.

    `derived`: the host derived the steps of the whole grid from these two (hires fix, and the setting "do exactly the
    amount of steps"); otherwise the user chose them.
    """

    calls: int
    derived: bool
    strength: float


class Pass(NamedTuple):
    """A solver, the steps of its whole grid, and the table that is run: all of the grid or its end."""

    solver: Solver
    steps: int
    table: SolverTable

    @property
    def calls(self) -> str:
        """The number of model calls for display: "6", or "5 of 6"."""
        return f"{self.steps}" if self.table.nfe == self.steps else f"{self.table.nfe} of {self.steps}"


def make_pass(
    request: Request,
    steps: int,
    guidance: Guidance | None,
    *,
    part: Part | None,
    first: Solver | None,
    nearest: bool = False,
) -> Pass:
    """The pass for a request; the second pass of hires fix keeps `first`, the solver of the first.

    Few files have the step count that the host derives for hires fix. The nearest count replaces it, and the denoising
    strength sets how much of its end is run; of other parts only with `nearest`.
    """
    calls = part.calls if part else steps
    if part and not 0 <= part.strength <= 1:
        raise ValueError(f"denoising strength must be between 0 and 1, got {part.strength}")
    if part and (part.derived or nearest):
        count = nearest_steps(first.steps, steps) if first else request.nearest(steps)
        if count != steps:
            steps, calls = count, min(count, max(1, round(part.strength * count)))
    solver = first or request.solver(steps, guidance)
    table = solver.table(steps, request.noise, solver.guidance_of(guidance))
    if part and calls < table.steps:
        table = part_of_table(table, table.levels[-1 - calls].item(), table.sigma_end)
    return Pass(solver, steps, table)
