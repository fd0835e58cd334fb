"""The fit of one step count: from the scan of the classical solvers to a result that is no worse than they are."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch
from torch import Tensor

from ..samplers import Solver
from ..samplers.files.card import StepCard
from .optimise.levenberg_marquardt import GaussNewton
from .report import Peer, StepReport
from .settings import FitSettings, Optimizer
from .spaces import FIRST_HISTORY
from .spaces.base import Space
from .starts.candidates import SCANNED, Candidate, best_of_methods, candidates, rank
from .starts.choose import Start, find_start
from .store.journal import Record
from .task import Task

__all__ = ["fit_steps"]


def fit_steps(task: Task, n: int, settings: FitSettings) -> tuple[dict[str, Tensor], StepCard, StepReport]:
    """Returns parameters, card entry and report for n steps."""
    began, task.fitted.model.calls = time.monotonic(), 0
    optimizer, staged = settings.optimizer, settings.staged_optimizer if min(n, task.history) > FIRST_HISTORY else None
    initial = settings.initial if isinstance(settings.initial, Solver) else str(settings.initial)
    order = _scanned(task, n)
    peers = _peers(task, n, order)
    task.log(f"{n} steps: best classical solver {peers[0].name}, held-out error {peers[0].error:.4f}")
    start = find_start(replace(task, history=FIRST_HISTORY) if staged else task, n, order, initial)
    before = task.error(f"{n}/before", task.judged, start.table)
    if staged:
        space, theta = _fit_in_two_stages(task, n, start, staged)
    else:
        space, theta = start.space, _run(task, start.space, start.theta, optimizer, f"{n}/main")
    space, theta, note, again = _not_worse(task, n, order, space, theta, optimizer)
    ((after, median),) = task.errors(f"{n}/after", task.judged, [space.table(theta)])
    ratio = peers[0].error / max(after, 1e-300)
    task.log(f"{n} steps: held-out error {before:.4f} -> {after:.4f}, 1/{ratio:.2f} of the best peer's")
    calls = task.calls()
    errors = {"error_before": before, "error_after": after, "error_best_peer": peers[0].error}
    errors = {name: error for name, error in errors.items() if math.isfinite(error)}  # a card has no infinite ones
    card = replace(space.step_card(theta), **errors, best_peer=peers[0].name, network_calls=calls, note=note)
    name = f"{start.name}, then {again}" if again else start.name
    report = StepReport(before, after, median, tuple(peers), calls, time.monotonic() - began, name)
    return space.tensors(theta), card, report


def _fit_in_two_stages(task: Task, n: int, start: Start, optimizer: GaussNewton) -> tuple[Space, Tensor]:
    """Fits a short history to a core of the samples, then the whole history to all of them.

    Many parameters at once follow the few samples of a beginning, and end in worse minima.
    """
    few = replace(task, fitted=task.fitted.first(optimizer.core))
    theta = _run(few, start.space, start.theta, optimizer, f"{n}/main")
    grid = start.space.step_card(theta).grid
    space = task.space_on(n, grid)
    theta = space.from_file(start.space.tensors(theta))
    task.log(f"{n} steps: going on with a history of {min(n, task.history)}")
    return space, _run(task, space, theta, replace(optimizer, near=True), f"{n}/window")


def _scanned(task: Task, n: int) -> list[Candidate]:
    """Returns the classical candidates, best first."""
    tried = list(candidates(n, task.noise))

    def work() -> Record:
        return {"order": torch.tensor([tried.index(c) for _, c in rank(task.fitted.first(SCANNED), tried)])}

    return [tried[i] for i in task.recorded(f"{n}/scan", work)["order"].tolist()]


def _peers(task: Task, n: int, order: list[Candidate]) -> list[Peer]:
    """Returns each method's best grid by the scan, judged on the held-out samples."""
    # Close calls in the scan are judged too, so that the peer is not the weaker for the few scanned samples.
    shown = {c.name: c for c in [*best_of_methods(order), *order[:6]]}
    errors = task.errors(f"{n}/peers", task.judged, [c.table for c in shown.values()])
    return sorted((Peer(name, *own) for name, own in zip(shown, errors, strict=True)), key=lambda peer: peer.error)


def _run(task: Task, space: Space, theta: Tensor, optimizer: Optimizer, name: str) -> Tensor:
    """Returns the fitted parameters, from the journal or going on from it."""
    problem, judge = task.on(space)

    def save(record: Record) -> None:
        task.keep(name, record)

    def work() -> Record:
        state = task.journal.get(name)
        if state is not None:
            task.count_from(state)
            state = {key: value for key, value in state.items() if key != "calls"}
        return {"theta": optimizer.fit(problem, theta, judge, task.log, state, save)[0]}

    return task.recorded(f"{name}/result", work)["theta"]


def _not_worse(
    task: Task, n: int, order: list[Candidate], space: Space, theta: Tensor, optimizer: Optimizer
) -> tuple[Space, Tensor, str | None, str | None]:
    """Returns a result that is no worse than the best classical solver on the fit's own samples.

    A window can cut a classical solver's history; then the fit starts again from the whole of it, and the last of what
    is returned names it. DS-Solver on VP models ends its grid above 0 and may still fall short: the note says so.
    """
    best = order[0]
    bound = task.error(f"{n}/best peer", task.fitted, best.table)
    reached, start = task.error(f"{n}/reached", task.fitted, space.table(theta)), None
    if reached > bound and task.can_start_from(best):
        wide = task.space(n, best, history=n)
        task.log(f"{n} steps: starting again from {best.name} with its whole history")
        again = _run(task, wide, wide.initial(best.table), optimizer, f"{n}/wide")
        error = task.error(f"{n}/wide/reached", task.fitted, wide.table(again))
        if error < reached:
            space, theta, reached, start = wide, again, error, f"{best.name}, whole history"
    if reached <= bound:
        return space, theta, None, start
    note = (
        f"Error {reached:.4g} on the fit's samples; {best.name} has {bound:.4g}: use that one, or fit to more samples."
    )
    task.log(f"{n} steps: {note}")
    return space, theta, note, start
