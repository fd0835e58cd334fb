"""The fit of one step count: from the scan of the classical solvers to a result that is no worse than they are."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..samplers.files.card import StepCard
from .job import FitJob, Optimizer
from .optimise.levenberg_marquardt import GaussNewton
from .report import Peer, StepReport
from .spaces import FIRST_HISTORY
from .starts.candidates import SCANNED, Candidate, best_of_methods, candidates, rank
from .starts.choose import Start, find_start
from .store.journal import Record
from .task import Task

__all__ = ["fit_steps"]


def fit_steps(task: Task, n: int, job: FitJob) -> tuple[dict[str, Tensor], StepCard, StepReport]:
    """Parameters, card entry and report for n steps."""
    began, task.fitted.model.calls = time.monotonic(), 0
    optimizer, teacher, loss = job.settings.optimizer, job.settings.teacher, job.settings.loss
    staged = job.settings.staged_optimizer if min(n, task.history) > FIRST_HISTORY else None
    order = _scanned(task, n)
    peers = _peers(task, n, order)
    task.log(f"{n} steps: best classical solver {peers[0].name}, held-out error {peers[0].error:.4f}")
    start = find_start(replace(task, history=FIRST_HISTORY) if staged else task, n, order, job.initial)
    before = task.error(f"{n}/before", task.judged, start.table)
    fitted = _fit_in_stages(task, n, start, staged) if staged else _run(task, start, optimizer, f"{n}/main")
    fitted, note = _not_worse(task, n, order[0], fitted, optimizer)
    ((after, median),) = task.errors(f"{n}/after", task.judged, [fitted.space.table(fitted.theta)])
    ratio = peers[0].error / max(after, 1e-300)
    task.log(f"{n} steps: held-out error {before:.4f} -> {after:.4f}, 1/{ratio:.2f} of the best peer's")
    calls = task.calls()
    errors = {"error_before": before, "error_after": after, "error_best_peer": peers[0].error}
    card = replace(
        fitted.space.step_card(fitted.theta),
        **{name: error for name, error in errors.items() if math.isfinite(error)},  # a card has no infinite ones
        best_peer=peers[0].name, network_calls=calls, note=note, teacher=teacher.method, teacher_steps=teacher.steps,
        loss=loss if isinstance(loss, str) else "features",
    )  # fmt: skip
    report = StepReport(before, after, median, tuple(peers), calls, time.monotonic() - began, fitted.name)
    return fitted.space.tensors(fitted.theta), card, report


def _scanned(task: Task, n: int) -> list[Candidate]:
    """The classical candidates, best first."""
    tried = list(candidates(n, task.noise))

    def work() -> Record:
        return {"order": torch.tensor([tried.index(c) for _, c in rank(task.fitted.first(SCANNED), tried)])}

    return [tried[i] for i in task.recorded(f"{n}/scan", work)["order"].tolist()]


def _peers(task: Task, n: int, order: list[Candidate]) -> list[Peer]:
    """Each method's best grid by the scan, judged on the held-out samples."""
    # Close calls in the scan are judged too, so that the peer is not the weaker for the few scanned samples.
    shown = {c.name: c for c in [*best_of_methods(order), *order[:6]]}
    errors = task.errors(f"{n}/peers", task.judged, [c.table for c in shown.values()])
    return sorted((Peer(name, *own) for name, own in zip(shown, errors, strict=True)), key=lambda peer: peer.error)


def _run(task: Task, start: Start, optimizer: Optimizer, name: str) -> Start:
    """A start with fitted parameters, from the journal or going on from it."""
    problem, judge = task.on(start.space)

    def work() -> Record:
        save = partial(task.keep, name)
        return {"theta": optimizer.fit(problem, start.theta, judge, task.log, task.resume(name), save)[0]}

    return replace(start, theta=task.recorded(f"{name}/result", work)["theta"])


def _fit_in_stages(task: Task, n: int, start: Start, optimizer: GaussNewton) -> Start:
    """Fits a short history to a core of the samples, then the whole history to all of them.

    Many parameters at once follow the few samples of a beginning, and end in worse minima.
    """
    short = _run(replace(task, fitted=task.fitted.first(optimizer.core)), start, optimizer, f"{n}/main")
    space = task.space_on(n, short.space.step_card(short.theta).grid)
    longer = replace(short, space=space, theta=space.from_file(short.space.tensors(short.theta)))
    task.log(f"{n} steps: going on with a history of {min(n, task.history)}")
    return _run(task, longer, replace(optimizer, near=True), f"{n}/window")


def _not_worse(task: Task, n: int, best: Candidate, fitted: Start, optimizer: Optimizer) -> tuple[Start, str | None]:
    """A result that is no worse than the best classical solver on the fit's own samples; else a note about it.

    A window can cut a classical solver's history; then the fit starts again from the whole of it. DS-Solver on VP
    models ends its grid above 0 and may still fall short.
    """
    bound = task.error(f"{n}/best peer", task.fitted, best.table)
    reached = task.error(f"{n}/reached", task.fitted, fitted.space.table(fitted.theta))
    if reached > bound and task.can_start_from(best):
        task.log(f"{n} steps: starting again from {best.name} with its whole history")
        space, name = task.space(n, best, history=n), f"{fitted.name}, then {best.name}, whole history"
        again = _run(task, Start(space, space.initial(best.table), best.table, name), optimizer, f"{n}/wide")
        error = task.error(f"{n}/wide/reached", task.fitted, space.table(again.theta))
        if error < reached:
            fitted, reached = again, error
    if reached <= bound:
        return fitted, None
    note = (
        f"Error {reached:.4g} on the fit's samples; {best.name} has {bound:.4g}: use that one, or fit to more samples."
    )
    task.log(f"{n} steps: {note}")
    return fitted, note
