"""What a fit starts from: the best of a few classical solvers, a named one, or an existing solver."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..samplers import Solver, SolverTable, load_solver
from .gauss_newton import COARSE, GaussNewton, difference_step
from .neighbour import resampled
from .scan import Candidate
from .spaces import Space, make_space
from .task import Task

__all__ = ["KEPT", "STARTS", "TRIED", "Start", "find_start"]

STARTS = 4  # candidates that a fit is started from, each on a grid of its own
KEPT = 2  # of these go on after a first iteration
TRIED = 12  # samples that starts are compared on; twice as many where the model's rounding blurs them
ITERATIONS = (1, 2)  # of all starts, of the kept ones


@dataclass(frozen=True)
class Start:
    """Free parameters on a space, the table that they stood for at first, and its name for people."""

    space: Space
    theta: Tensor
    table: SolverTable
    name: str


def find_start(task: Task, steps: int, order: list[Candidate], initial: str | Path | Solver) -> Start:
    """Returns where the fit for a step count starts.

    Args:
        task: The fit.
        steps: Network calls.
        order: The classical candidates, best first.
        initial: "scan", a candidate's name ("ipndm 3, shift 1") or its beginning ("ipndm 3"), or a solver.

    Raises:
        ValueError: A solver of another family or prediction type, or one that this family's space cannot hold.
    """
    order = [candidate for candidate in order if task.can_start_from(candidate)]
    if initial == "scan":
        return _best_start(task, steps, order)
    if isinstance(initial, str):
        for candidate in order:
            if candidate.name == initial or candidate.name.startswith(f"{initial},"):
                return _from_candidate(task, steps, candidate)
    return _from_solver(task, steps, initial if isinstance(initial, Solver) else load_solver(initial))


def _from_candidate(task: Task, steps: int, candidate: Candidate) -> Start:
    space = task.space(steps, candidate)
    theta = space.initial(candidate.table)
    return Start(space, theta, space.table(theta), candidate.name)


def _from_solver(task: Task, steps: int, solver: Solver) -> Start:
    """Returns a solver's parameters at its nearest step count, resampled to this one."""
    if solver.family != task.family or solver.prediction != task.noise.kind:
        raise ValueError(
            f"{solver.name} is a {solver.family} solver for {solver.prediction} models: start a {task.family} fit "
            f"on {task.noise.kind} noise from one of its kind"
        )
    nearest = min(solver.steps, key=lambda k: (abs(k - steps), k))
    step = solver.card.steps[nearest]
    if step.analytic_first or (step.divisor == "state" and task.family == "dyweight"):
        raise ValueError(f"{solver.name} divides by the state's level or has an analytic step: start from a scan")
    space = make_space(task.family, steps, task.noise, step.grid, task.history, task.learn_grid)
    theta = space.from_file(resampled(solver.parameters[nearest], steps))
    return Start(space, theta, space.table(theta), f"{solver.name} at {nearest} steps")


def _best_start(task: Task, steps: int, order: list[Candidate]) -> Start:
    """Returns the best start after a few iterations on a few samples.

    After one iteration of each, the best few go on: what a start leads to shows early, and not in its own error.
    """
    chosen: dict[str, Start] = {}
    for candidate in order:  # one per grid: the same grid leads to the same minimum
        grid = candidate.name.partition(", ")[2]
        if len(chosen) < STARTS and grid not in chosen:
            chosen[grid] = _from_candidate(task, steps, candidate)
    tried = list(chosen.values())
    difference = difference_step(task.on(tried[0].space)[0].first(TRIED), tried[0].theta)
    for turn, iterations in enumerate(ITERATIONS):
        scored = [
            _improved(task, start, iterations, difference, f"{steps}/start {turn} {start.name}") for start in tried
        ]
        for loss, start in scored:
            task.say(f"{steps} steps: start {start.name}, loss {loss:.3e}")
        tried = [start for _, start in sorted(scored, key=lambda pair: pair[0])[:KEPT]]
    return tried[0]


def _improved(task: Task, start: Start, iterations: int, difference: float, name: str) -> tuple[float, Start]:
    """Returns the loss after a few Gauss-Newton iterations, and the start with the parameters found."""
    count = 2 * TRIED if difference > COARSE else TRIED

    def work() -> dict[str, Tensor]:
        problem, _ = task.on(start.space)
        theta, loss = GaussNewton(iterations=iterations, difference=difference).fit(problem.first(count), start.theta)
        return {"theta": theta, "loss": torch.tensor(loss, dtype=torch.float64)}

    record = task.recorded(name, work)
    return float(record["loss"]), Start(start.space, record["theta"], start.table, start.name)
