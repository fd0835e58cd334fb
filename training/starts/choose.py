"""The start of a fit: from the teacher's path, a named classical solver, or an existing solver."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...samplers import FlowNoise, Grid, Solver, SolverTable, VPNoise, list_solvers, load_solver
from ...samplers.choose import nearest_steps
from ...samplers.files.card import StepCard
from ...samplers.schedules import Noise
from ..data.samples import Samples
from ..data.teacher import Reference
from ..spaces import FIRST_HISTORY, SPACES, make_space
from ..spaces.base import Space, is_valid
from ..store.journal import Record
from .candidates import Candidate, best_of_methods, candidates, carrier_grid
from .path import MOST_LEVELS, PATH_SAMPLES, closed_loop, path_levels

if TYPE_CHECKING:
    from ..task import Task

__all__ = ["Start", "find_starts", "resolve_initial", "start_calls"]

_GRIDS = {"flow": ("shift 0.5", "shift 1", "shift 3"), "vp": ("polynomial 5", "polynomial 7", "uniform time")}


@dataclass(frozen=True)
class Start:
    """Free parameters on a space, and their display name."""

    space: Space
    theta: Tensor
    name: str


def resolve_initial(
    initial: str | Path | Solver,
    family: str,
    steps: Sequence[int],
    noise: Noise | None = None,
    history: int = FIRST_HISTORY,
) -> str | Solver:
    """The solver that `initial` names; "path" and names of classical solvers are returned as they are.

    Refuses what a fit of these step counts cannot start from. While `noise` is unknown, a name is accepted if any kind
    of model has it.
    """
    if isinstance(initial, str) and not Path(initial).is_file() and initial not in list_solvers():
        if initial != "path":
            noises = [noise] if noise else [FlowNoise(), VPNoise.stable_diffusion()]
            can_start = SPACES[family].can_start_from
            for n in steps if noise else [max(steps)]:
                options = [c for kind in noises for c in candidates(n, kind) if can_start(c.table, kind)]
                if not any(_has_name(candidate, initial) for candidate in options):
                    methods = ", ".join(candidate.method for candidate in best_of_methods(options))
                    raise ValueError(
                        f"a {family} fit of {n} steps cannot start from {initial!r}: choose path, a classical solver "
                        f"({methods}), with or without a grid, a bundled solver ({', '.join(list_solvers())}) or an "
                        "existing solver file"
                    )
        return initial
    solver = initial if isinstance(initial, Solver) else load_solver(initial)
    kind = solver.prediction if noise is None else noise.kind
    if solver.family != family or solver.prediction != kind:
        raise ValueError(
            f"{solver.name} is a {solver.family} solver for {solver.prediction} models: start a {family} fit on "
            f"{kind} noise from a {family} solver for {kind} models"
        )
    for n in steps:
        step = _nearest(solver, n)[1]
        SPACES[family].check_step(solver.name, step)
        if noise is not None:
            space = make_space(family, n, noise, step.grid, history)
            if not is_valid(space, _parameters(space, solver, n)):
                raise ValueError(
                    f"{solver.name} in {n} steps has levels that do not descend, or calls far above the model's "
                    "highest level: start from the path"
                )
    return solver


def find_starts(task: Task, steps: int, order: Sequence[Candidate]) -> list[Start]:
    """The starts of the fit for a step count, most promising first; one unless the path offers more.

    `order` has the classical solvers that were screened, best first.

    A classical solver is named with its grid ("ipndm 3, shift 1") or without ("ipndm 3"), which selects its best grid.
    """
    job, initial = task.job, task.job.initial
    if isinstance(initial, Solver):
        count, step = _nearest(initial, steps)
        space = job.space_on(steps, step.grid)
        return [Start(space, _parameters(space, initial, steps), f"{initial.name} at {count} steps")]
    if initial == "path":
        if starts := _from_path(task, steps):
            return starts
        initial = next(c.name for c in (*order, *candidates(steps, job.noise)) if job.can_start_from(c))
        task.log(f"{steps} steps: no levels descend along the teacher's path, starting from {initial}")
    options = [c for c in (*order, *candidates(steps, job.noise)) if job.can_start_from(c) and _has_name(c, initial)]
    space = job.space(steps, options[0])
    return [Start(space, space.initial(options[0].table), options[0].name)]


def _has_name(candidate: Candidate, name: str) -> bool:
    return candidate.name == name or candidate.name.startswith(f"{name},")


def _nearest(solver: Solver, steps: int) -> tuple[int, StepCard]:
    """The solver's nearest step count, and its card entry."""
    count = nearest_steps(solver.steps, steps)
    return count, solver.card.steps[count]


def _parameters(space: Space, solver: Solver, steps: int) -> Tensor:
    """The parameters of a solver's nearest step count, resampled to this one."""
    return space.from_file(space.resampled(solver.parameters_at(_nearest(solver, steps)[0]), steps))


def start_calls(steps: int, noise: Noise, samples: int) -> int:
    """The largest number of network calls of a start from the path, one per sample and call."""
    return steps * min(PATH_SAMPLES, samples) * (1 + len(_grids(steps, noise)))


def _grids(steps: int, noise: Noise) -> dict[str, Grid]:
    """The usual grids that a fit may start on: those whose last step is not a tiny one, which a fit cannot move."""
    names = _GRIDS.get(noise.kind, _GRIDS["vp"])
    grids = {}
    for name, grid in noise.usual_grids().items():
        if name in names:
            try:
                grid.levels(steps, noise)
            except ValueError:
                continue
            grids[name] = grid
    return grids


def _from_path(task: Task, steps: int) -> list[Start]:
    """The best of a few grids, on each of which every row is regressed to the teacher's path; none if none descends."""
    job, options = task.job, _grids(steps, task.job.noise)

    def work() -> Record:
        samples, path = task.path()
        levels = [grid.levels(steps, job.noise) for grid in options.values()]
        if min(len(path.levels), MOST_LEVELS) > steps + 1:
            levels.append(path_levels(path, steps, job.noise, job.history))
        nearest = None if task.processes.rank else _nearest_to_path(task, samples, path, levels)
        return task.processes.from_first(nearest)

    record, starts = task.recorded(f"{steps}/start", work), []
    for levels, coeffs in zip(record["levels"], record["coeffs"], strict=True):
        usual = [name for name, grid in options.items() if grid.levels(steps, job.noise).equal(levels)]
        name = usual[0] if usual else "levels of the teacher's path"
        table = SolverTable(levels, levels[:-1], torch.ones_like(levels[1:]), coeffs, "derivative")
        space = job.space_on(steps, options.get(name) or carrier_grid(table, job.noise))
        starts.append(Start(space, space.initial(table), name))
    return starts


def _nearest_to_path(task: Task, samples: Samples, path: Reference, options: Sequence[Tensor]) -> Record:
    """Levels [k, N + 1] and coefficients [k, N, N] of the solvers that end nearest to the teacher, best first."""
    job, solvers = task.job, list[tuple[float, SolverTable]]()
    family = SPACES[job.settings.family]
    for levels in options:
        table, error = closed_loop(task.model, samples, path, levels, job.history, free_sums=family.free_sums)
        if math.isfinite(error) and family.can_start_from(table, job.noise):
            solvers.append((error, table))
    if not solvers:
        return {"levels": torch.zeros(0), "coeffs": torch.zeros(0)}
    best = [table for _, table in sorted(solvers, key=lambda pair: pair[0])[: job.starts(len(options[0]) - 1)]]
    return {"levels": torch.stack([t.levels for t in best]), "coeffs": torch.stack([t.coeffs for t in best])}
