"""The start of a fit: the best of a few classical solvers, a named one, or an existing solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ...samplers import FlowNoise, Solver, SolverTable, VPNoise, list_solvers, load_solver
from ...samplers.choose import nearest_steps
from ...samplers.families import FAMILIES
from ...samplers.files.card import StepCard
from ...samplers.schedules import Noise
from ..optimise.levenberg_marquardt import COARSE_DIFFERENCE, LevenbergMarquardt, difference_step
from ..spaces import FIRST_HISTORY, SPACES, make_space
from ..spaces.base import Space, is_valid
from ..task import Task
from .candidates import Candidate, best_of_methods, candidates, carrier_grid

__all__ = [
    "KEPT_STARTS",
    "PROXY_STEPS",
    "START_COUNT",
    "START_ITERATIONS",
    "START_SAMPLES",
    "Start",
    "find_start",
    "resolve_initial",
]

START_COUNT = 4  # starts that are compared, each on another grid
KEPT_STARTS = 2  # those that remain after the first iteration
START_SAMPLES = 12  # samples on which starts are compared; twice as many if the model's rounding blurs differences
START_ITERATIONS = (1, 2)  # of all starts, then of the kept ones
PROXY_STEPS = 8  # fewest steps for which starts are compared in a space's proxy


@dataclass(frozen=True)
class Start:
    """Free parameters on a space, the table that they were made from, and its display name."""

    space: Space
    theta: Tensor
    table: SolverTable
    name: str


def resolve_initial(
    initial: str | Path | Solver,
    family: str,
    steps: Sequence[int],
    noise: Noise | None = None,
    history: int = FIRST_HISTORY,
    learn_grid: bool = False,
) -> str | Solver:
    """The solver that `initial` names; "scan" and names of classical solvers are returned as they are.

    Refuses what a fit of these step counts cannot start from. While `noise` is unknown, a name is accepted if any kind
    of model has it.
    """
    if isinstance(initial, str) and not Path(initial).is_file() and initial not in list_solvers():
        if initial != "scan":
            noises = [noise] if noise else [FlowNoise(), VPNoise.stable_diffusion()]
            can_start = SPACES[family].can_start_from
            for n in steps if noise else [max(steps)]:
                options = [
                    c for kind in noises for c in candidates(n, kind) if can_start(c.table, c.grid, kind, learn_grid)
                ]
                if not any(_has_name(candidate, initial) for candidate in options):
                    methods = ", ".join(candidate.method for candidate in best_of_methods(options))
                    raise ValueError(
                        f"a {family} fit of {n} steps cannot start from {initial!r}: choose scan, a classical solver "
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
            space = make_space(family, n, noise, step.grid, history, learn_grid)
            if not bool((space.table(_parameters(space, solver, n)).levels.diff() < 0).all()):
                raise ValueError(f"{solver.name} in {n} steps has levels that do not descend: start from a scan")
    return solver


def find_start(task: Task, steps: int, order: list[Candidate], initial: str | Solver) -> Start:
    """The start of the fit for a step count; `order` has the classical candidates, best first.

    `initial` comes from `resolve_initial`; a classical solver is named with its grid ("ipndm 3, shift 1") or without
    ("ipndm 3"), which selects its best grid.
    """
    order = [candidate for candidate in order if task.can_start_from(candidate)]
    if isinstance(initial, Solver):
        count, step = _nearest(initial, steps)
        space = task.space_on(steps, step.grid)
        theta = _parameters(space, initial, steps)
        return Start(space, theta, space.table(theta), f"{initial.name} at {count} steps")
    if initial == "scan":
        return _best_start(task, steps, order)
    return _from_candidate(task, steps, next(candidate for candidate in order if _has_name(candidate, initial)))


def _has_name(candidate: Candidate, name: str) -> bool:
    return candidate.name == name or candidate.name.startswith(f"{name},")


def _nearest(solver: Solver, steps: int) -> tuple[int, StepCard]:
    """The solver's nearest step count, and its card entry."""
    count = nearest_steps(solver.steps, steps)
    return count, solver.card.steps[count]


def _from_candidate(task: Task, steps: int, candidate: Candidate) -> Start:
    space = task.space(steps, candidate)
    theta = space.initial(candidate.table)
    return Start(space, theta, space.table(theta), candidate.name)


def _parameters(space: Space, solver: Solver, steps: int) -> Tensor:
    """The parameters of a solver's nearest step count, resampled to this one."""
    return space.from_file(space.resampled(solver.parameters_at(_nearest(solver, steps)[0]), steps))


def _best_start(task: Task, steps: int, order: list[Candidate]) -> Start:
    """The best start; for many steps compared in the space's proxy (DS-Solver for DyWeight), if there is one.

    DS-Solver's rows always meet the next level, so it has a third fewer parameters than DyWeight: few samples overfit
    less, and Jacobians cost less. With 10 calls at guidance 3 this lowered the error of the benchmarks' photo patches
    by a quarter, and saved a third of the calls for the digits at about the same error; otherwise the effect was small.
    """
    proxy = SPACES[task.family].proxy
    if proxy and steps >= PROXY_STEPS and not task.learn_grid and task.noise.kind in FAMILIES[proxy.family].kinds:
        proxy_task = replace(task, family=proxy.family)
        possible = [candidate for candidate in order if proxy_task.can_start_from(candidate)]
        if possible:
            best = _improve_starts(proxy_task, steps, possible)
            table = best.space.table(best.theta)
            space = task.space_on(steps, carrier_grid(table, task.noise))
            theta = space.initial(table)
            if is_valid(space, theta):  # a cut history may lead to levels that do not descend
                return replace(best, space=space, theta=theta)
    return _improve_starts(task, steps, order)


def _improve_starts(task: Task, steps: int, order: list[Candidate]) -> Start:
    """The best start after a few iterations on a few samples.

    After one iteration each, only the best few continue: the loss after one iteration predicts the result, the loss of
    the start itself does not.
    """
    chosen: dict[str, Start] = {}
    for candidate in order:  # one per grid: starts on the same grid lead to the same minimum
        if len(chosen) < START_COUNT and candidate.grid_name not in chosen:
            chosen[candidate.grid_name] = _from_candidate(task, steps, candidate)
    starts = list(chosen.values())

    def measure() -> dict[str, Tensor]:
        problem, _ = task.problems(starts[0].space)
        size = difference_step(problem.first(START_SAMPLES), starts[0].theta)
        return {"size": torch.tensor(size, dtype=torch.float64)}

    difference = float(task.recorded(f"{steps}/{task.family} difference", measure)["size"])
    for turn, iterations in enumerate(START_ITERATIONS):
        name = f"{steps}/{task.family} start {turn}"
        scored = [_improve(task, start, iterations, difference, f"{name} {start.name}") for start in starts]
        for loss, start in scored:
            task.log(f"{steps} steps: initial solver {start.name}, loss {loss:.3e}")
        starts = [start for _, start in sorted(scored, key=lambda pair: pair[0])[:KEPT_STARTS]]
    return starts[0]


def _improve(task: Task, start: Start, iterations: int, difference: float, name: str) -> tuple[float, Start]:
    """The loss after a few Levenberg-Marquardt iterations, and the start with the new parameters."""
    count = 2 * START_SAMPLES if difference > COARSE_DIFFERENCE else START_SAMPLES

    def work() -> dict[str, Tensor]:
        problem, _ = task.problems(start.space)
        optimizer = LevenbergMarquardt(iterations=iterations, difference=difference)
        theta, loss = optimizer.fit(problem.first(count), start.theta)
        return {"theta": theta, "loss": torch.tensor(loss, dtype=torch.float64)}

    record = task.recorded(name, work)
    return float(record["loss"]), Start(start.space, record["theta"], start.table, start.name)
