"""The fit for one step count: from the scan of the classical solvers to a result no worse than theirs."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..samplers.files.card import StepCard
from .job import FitJob, Optimizer
from .optimise.levenberg_marquardt import LevenbergMarquardt
from .report import Peer, StepReport
from .spaces import FIRST_HISTORY
from .starts.candidates import SCAN_SAMPLES, Candidate, best_of_methods, candidates, rank
from .starts.choose import Start, find_start
from .store.journal import Record
from .task import Task

__all__ = ["fit_steps"]


def fit_steps(task: Task, n: int, job: FitJob) -> tuple[dict[str, Tensor], StepCard, StepReport]:
    """Parameters, card entry and report for n steps."""
    start_time, task.fitted.model.calls = time.monotonic(), 0
    optimizer, teacher, loss = job.settings.optimizer, job.settings.teacher, job.settings.loss
    staged = job.settings.staged_optimizer if min(n, task.history) > FIRST_HISTORY else None
    order = _scan_candidates(task, n)
    peers = _evaluate_peers(task, n, order)
    task.log(f"{n} steps: best classical solver {peers[0].name}, held-out error {peers[0].error:.4f}")
    start = find_start(replace(task, history=FIRST_HISTORY) if staged else task, n, order, job.initial)
    before = task.error(f"{n}/before", task.held_out, start.table)
    fitted = _fit_in_stages(task, n, start, staged) if staged else _optimise(task, start, optimizer, f"{n}/main")
    fitted, note = _ensure_no_worse(task, n, order[0], fitted, optimizer)
    ((after, median),) = task.errors(f"{n}/after", task.held_out, [fitted.space.table(fitted.theta)])
    ratio = peers[0].error / max(after, 1e-300)
    task.log(f"{n} steps: held-out error {before:.4f} -> {after:.4f}, 1/{ratio:.2f} of the best classical solver's")
    calls = task.calls()
    errors = {"error_before": before, "error_after": after, "error_best_peer": peers[0].error}
    card = replace(
        fitted.space.step_card(fitted.theta),
        **{name: error for name, error in errors.items() if math.isfinite(error)},  # a card stores finite numbers only
        best_peer=peers[0].name, network_calls=calls, note=note, teacher=teacher.method, teacher_steps=teacher.steps,
        loss=loss if isinstance(loss, str) else "features",
    )  # fmt: skip
    report = StepReport(before, after, median, tuple(peers), calls, time.monotonic() - start_time, fitted.name)
    return fitted.space.tensors(fitted.theta), card, report


def _scan_candidates(task: Task, n: int) -> list[Candidate]:
    """The classical candidates, best first."""
    options = list(candidates(n, task.noise))

    def work() -> Record:
        ranked = rank(task.fitted.first(SCAN_SAMPLES), options)
        return {"order": torch.tensor([options.index(candidate) for _, candidate in ranked])}

    return [options[i] for i in task.recorded(f"{n}/scan", work)["order"].tolist()]


def _evaluate_peers(task: Task, n: int, order: list[Candidate]) -> list[Peer]:
    """Each method at its best grid by the scan, evaluated on the held-out samples."""
    # The scan sees few samples, so its other leaders are evaluated too: one of them may be the best peer.
    chosen = {c.name: c for c in [*best_of_methods(order), *order[:6]]}
    errors = task.errors(f"{n}/peers", task.held_out, [c.table for c in chosen.values()])
    return sorted((Peer(name, *pair) for name, pair in zip(chosen, errors, strict=True)), key=lambda peer: peer.error)


def _optimise(task: Task, start: Start, optimizer: Optimizer, name: str) -> Start:
    """A start with fitted parameters; a fit in the journal is resumed."""
    problem, held_out = task.problems(start.space)

    def work() -> Record:
        save = partial(task.keep, name)
        return {"theta": optimizer.fit(problem, start.theta, held_out, task.log, task.resume(name), save)[0]}

    return replace(start, theta=task.recorded(f"{name}/result", work)["theta"])


def _fit_in_stages(task: Task, n: int, start: Start, optimizer: LevenbergMarquardt) -> Start:
    """Fits a short history to a core of the samples, then the whole history to all of them.

    All parameters at once would overfit the few samples of the first iterations, and end in a worse minimum.
    """
    short = _optimise(replace(task, fitted=task.fitted.first(optimizer.core)), start, optimizer, f"{n}/main")
    space = task.space_on(n, short.space.step_card(short.theta).grid)
    longer = replace(short, space=space, theta=space.from_file(short.space.tensors(short.theta)))
    task.log(f"{n} steps: continuing with a history of {min(n, task.history)}")
    return _optimise(task, longer, replace(optimizer, skip_core=True), f"{n}/window")


def _ensure_no_worse(
    task: Task, n: int, best: Candidate, fitted: Start, optimizer: Optimizer
) -> tuple[Start, str | None]:
    """A result no worse than the best classical solver on the fitted samples, or a note that says otherwise.

    If a window cut the classical solver's history, the fit is repeated from its whole history. DS-Solver on VP models
    may still fall short, because its grid ends above 0.
    """
    bound = task.error(f"{n}/best peer", task.fitted, best.table)
    reached = task.error(f"{n}/reached", task.fitted, fitted.space.table(fitted.theta))
    if reached > bound and task.can_start_from(best):
        task.log(f"{n} steps: restarting from {best.name} with its whole history")
        space, name = task.space(n, best, history=n), f"{fitted.name}, then {best.name}, whole history"
        again = _optimise(task, Start(space, space.initial(best.table), best.table, name), optimizer, f"{n}/wide")
        error = task.error(f"{n}/wide/reached", task.fitted, space.table(again.theta))
        if error < reached:
            fitted, reached = again, error
    if reached <= bound:
        return fitted, None
    note = (
        f"Error {reached:.4g} on the fitted samples, but {bound:.4g} with {best.name}: use that solver, or fit to "
        "more samples."
    )
    task.log(f"{n} steps: {note}")
    return fitted, note
