"""What a fit starts from: the best of a few classical solvers, a named one, or an existing solver."""

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
from ..optimise.levenberg_marquardt import COARSE, GaussNewton, difference_step
from ..spaces import FIRST_HISTORY, SPACES, make_space
from ..spaces.base import Space, is_valid
from ..task import Task
from .candidates import Candidate, best_of_methods, candidates, carrier

__all__ = ["ITERATIONS", "KEPT", "MANY", "STARTS", "TRIED", "Start", "find_start", "resolve_initial"]

STARTS = 4  # candidates that a fit is started from, each on a grid of its own
KEPT = 2  # of these go on after a first iteration
TRIED = 12  # samples that starts are compared on; twice as many where the model's rounding blurs them
ITERATIONS = (1, 2)  # of all starts, of the kept ones
MANY = 8  # steps from which on starts are compared in a space's proxy


@dataclass(frozen=True)
class Start:
    """Free parameters on a space, the table that they stood for at first, and its name for people."""

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
    """The solver that `initial` names; its text where that is "scan" or the name of a classical solver.

    Refuses what a fit of these step counts cannot start from. With no `noise` yet, what any kind of model has is
    accepted.
    """
    if isinstance(initial, str) and not Path(initial).is_file() and initial not in list_solvers():
        if initial != "scan":
            noises = [noise] if noise else [FlowNoise(), VPNoise.stable_diffusion()]
            can_start = SPACES[family].can_start_from
            for n in steps if noise else [max(steps)]:
                known = [
                    c for kind in noises for c in candidates(n, kind) if can_start(c.table, c.grid, kind, learn_grid)
                ]
                if not any(_is_called(candidate, initial) for candidate in known):
                    methods = ", ".join(candidate.method for candidate in best_of_methods(known))
                    raise ValueError(
                        f"a {family} fit of {n} steps cannot start from {initial!r}: name scan, a classical solver "
                        f"({methods}), with or without a grid, a bundled solver ({', '.join(list_solvers())}) or a "
                        "solver file that exists"
                    )
        return initial
    solver = initial if isinstance(initial, Solver) else load_solver(initial)
    kind = solver.prediction if noise is None else noise.kind
    if solver.family != family or solver.prediction != kind:
        raise ValueError(
            f"{solver.name} is a {solver.family} solver for {solver.prediction} models: start a {family} fit "
            f"on {kind} noise from one of its kind"
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
    """Where the fit for a step count starts; `order` has the classical candidates, best first.

    `initial` is as `resolve_initial` returned it; of a classical solver the name ("ipndm 3, shift 1") or its beginning
    ("ipndm 3"), which means the best grid.
    """
    order = [candidate for candidate in order if task.can_start_from(candidate)]
    if isinstance(initial, Solver):
        count, step = _nearest(initial, steps)
        space = task.space_on(steps, step.grid)
        theta = _parameters(space, initial, steps)
        return Start(space, theta, space.table(theta), f"{initial.name} at {count} steps")
    if initial == "scan":
        return _best_start(task, steps, order)
    return _from_candidate(task, steps, next(candidate for candidate in order if _is_called(candidate, initial)))


def _is_called(candidate: Candidate, name: str) -> bool:
    return candidate.name == name or candidate.name.startswith(f"{name},")


def _nearest(solver: Solver, steps: int) -> tuple[int, StepCard]:
    """Returns the solver's step count that is nearest, and its card entry."""
    count = nearest_steps(solver.steps, steps)
    return count, solver.card.steps[count]


def _from_candidate(task: Task, steps: int, candidate: Candidate) -> Start:
    space = task.space(steps, candidate)
    theta = space.initial(candidate.table)
    return Start(space, theta, space.table(theta), candidate.name)


def _parameters(space: Space, solver: Solver, steps: int) -> Tensor:
    """Returns the parameters of a solver's nearest step count, resampled to this one."""
    return space.from_file(space.resampled(solver.parameters_at(_nearest(solver, steps)[0]), steps))


def _best_start(task: Task, steps: int, order: list[Candidate]) -> Start:
    """Returns the best start; of many steps compared in the space's proxy (DS-Solver's for DyWeight), where it exists.

    DS-Solver's rows always meet the next level, which leaves a third fewer parameters than DyWeight has: a few samples
    lead so many less astray, and their Jacobians cost less. In 10 calls at guidance 3 the photo patches of the
    benchmarks came a quarter nearer to the teacher, the digits about as near for two thirds of the calls; elsewhere,
    and with fewer steps, it decided little.
    """
    proxy = SPACES[task.family].proxy
    if proxy and steps >= MANY and not task.learn_grid and task.noise.kind in FAMILIES[proxy.family].kinds:
        times = replace(task, family=proxy.family)
        possible = [candidate for candidate in order if times.can_start_from(candidate)]
        if possible:
            best = _improved_start(times, steps, possible)
            table = best.space.table(best.theta)
            space = task.space_on(steps, carrier(table, task.noise))
            theta = space.initial(table)
            if is_valid(space, theta):  # else its cut history leads to levels that do not descend
                return replace(best, space=space, theta=theta)
    return _improved_start(task, steps, order)


def _improved_start(task: Task, steps: int, order: list[Candidate]) -> Start:
    """Returns the best start after a few iterations on a few samples.

    After one iteration of each, the best few go on: what a start leads to shows early, and not in its own error.
    """
    chosen: dict[str, Start] = {}
    for candidate in order:  # one per grid: the same grid leads to the same minimum
        if len(chosen) < STARTS and candidate.grid_name not in chosen:
            chosen[candidate.grid_name] = _from_candidate(task, steps, candidate)
    tried = list(chosen.values())

    def measure() -> dict[str, Tensor]:
        problem, _ = task.on(tried[0].space)
        return {"size": torch.tensor(difference_step(problem.first(TRIED), tried[0].theta), dtype=torch.float64)}

    difference = float(task.recorded(f"{steps}/{task.family} difference", measure)["size"])
    for turn, iterations in enumerate(ITERATIONS):
        name = f"{steps}/{task.family} start {turn}"
        scored = [_improved(task, start, iterations, difference, f"{name} {start.name}") for start in tried]
        for loss, start in scored:
            task.log(f"{steps} steps: start {start.name}, loss {loss:.3e}")
        tried = [start for _, start in sorted(scored, key=lambda pair: pair[0])[:KEPT]]
    return tried[0]


def _improved(task: Task, start: Start, iterations: int, difference: float, name: str) -> tuple[float, Start]:
    """Returns the loss that a few Gauss-Newton iterations lead to, and the start with the parameters found."""
    count = 2 * TRIED if difference > COARSE else TRIED

    def work() -> dict[str, Tensor]:
        problem, _ = task.on(start.space)
        theta, loss = GaussNewton(iterations=iterations, difference=difference).fit(problem.first(count), start.theta)
        return {"theta": theta, "loss": torch.tensor(loss, dtype=torch.float64)}

    record = task.recorded(name, work)
    return float(record["loss"]), Start(start.space, record["theta"], start.table, start.name)
