"""The fit for one step count: a start from the teacher's path, the optimizer, and a result no worse than its peers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from ..samplers import Grid, SolverTable
from ..samplers.conversion import with_derivatives
from ..samplers.files.card import StepCard
from .optimise.levenberg_marquardt import LevenbergMarquardt
from .report import Peer, StepReport
from .spaces.base import is_valid
from .starts.candidates import Candidate, rank, rmse_and_median
from .starts.choose import Start, find_starts
from .store.journal import Record
from .task import Task

__all__ = ["Fit", "fit_steps"]


@dataclass(frozen=True)
class Fit:
    """The result for one step count at one guidance."""

    start: Start
    theta: Tensor
    report: StepReport
    note: str | None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that a solver file stores."""
        return self.start.space.tensors(self.theta)


def fit_steps(tasks: Sequence[Task], n: int) -> tuple[dict[str, Tensor], StepCard, list[StepReport]]:
    """Parameters [K, ...], card entry and reports for n steps at K guidances; the middle one is fitted first."""
    middle = tasks[0].job.first_knot
    fits, knots = {middle: _fit(tasks[middle], n, None)}, tasks[middle].job.settings.guidance
    for k in [*range(middle + 1, len(tasks)), *range(middle - 1, -1, -1)]:
        fits[k] = _fit(tasks[k], n, fits[k - 1 if k > middle else k + 1])
    fit, job = fits[middle], tasks[middle].job
    heads = [f"Guidance {knot:g}: " for knot in knots] if len(tasks) > 1 else [""]
    note = " ".join(heads[k] + f.note for k, f in sorted(fits.items()) if f.note) or None
    settings = job.settings
    report = fit.report
    errors = {
        "error_before": report.error_before,
        "error_after": report.error_after,
        "error_best_peer": report.peers[0].error,
    }
    card = dataclasses.replace(
        fit.start.space.step_card(fit.theta),
        **{name: error for name, error in errors.items() if math.isfinite(error)},  # a card stores finite numbers only
        knots=settings.guidance if len(tasks) > 1 else (),
        best_peer=report.peers[0].name, network_calls=sum(f.report.network_calls for f in fits.values()), note=note,
        teacher=job.teacher.name, teacher_steps=job.teacher.steps,
        loss=settings.loss if isinstance(settings.loss, str) else "features",
    )  # fmt: skip
    ordered = [fits[k] for k in range(len(tasks))]
    tensors = {name: torch.stack([f.tensors[name] for f in ordered]) for name in fit.tensors}
    return tensors, card, [f.report for f in ordered]


def _fit(task: Task, n: int, neighbour: Fit | None) -> Fit:
    """The fit at one guidance; `neighbour` is the fit at the neighbouring guidance, which it then starts from."""
    task.model.calls = 0
    began = _moment(task, f"{n}/began")
    order = _screened_peers(task, n)
    starts = [_from_neighbour(task, n, neighbour)] if neighbour else find_starts(task, n, order)
    start, begun = _best_start(task, n, starts)
    theta = start.theta
    before = task.errors(f"{n}/before", [task.held_out], [start.space.table(theta)])[0][0]
    usual = task.job.settings.usual.name if task.job.settings.usual else ""
    compared = [*order[:3], *(c for c in order[3:] if c.name == usual)]
    of_peers = task.errors(f"{n}/of peers", [task.held_out], [c.table for c in compared])
    judged = sorted(zip(of_peers, compared, strict=True), key=lambda pair: pair[0][0])
    peers = [Peer(c.name, *pair, c.table) for pair, c in judged]
    fitted = _optimise(task, n, start, begun, first_knot=neighbour is None)
    order = [*(c for _, c in judged), *(c for c in order if c not in compared)]
    fitted, note = _ensure_no_worse(task, n, order, fitted, neighbour.start.space.grid if neighbour else None)
    start, theta = fitted.start, fitted.theta
    after, median = task.errors(f"{n}/after", [task.held_out], [start.space.table(theta)])[0]
    task.log(f"{n} steps: held-out error {after:.4f}, that of {peers[0].name} {peers[0].error:.4f}")
    report = StepReport(
        before,
        after,
        median,
        tuple(peers),
        task.calls(),
        _moment(task, f"{n}/ended") - began,
        start.name,
        fitted.samples,
        usual,
    )
    return Fit(start, theta, report, note)


def _moment(task: Task, name: str) -> float:
    """The seconds of all runs of the fit until one of them first came here, recorded under that name."""

    def work() -> Record:
        return {"seconds": torch.tensor(task.meter.seconds, dtype=torch.float64)}

    return float(task.recorded(name, work)["seconds"])


def _from_neighbour(task: Task, n: int, neighbour: Fit) -> Start:
    """A neighbour's result as a start, with the job's history."""
    space = task.job.space_on(n, neighbour.start.space.grid)
    theta = space.initial(neighbour.start.space.table(neighbour.theta))
    return Start(space, theta, neighbour.start.name)


def _screened_peers(task: Task, n: int) -> list[Candidate]:
    """The classical solvers to compare with, best first on a few samples."""
    options = task.job.peers(n)

    def work() -> Record:
        ranked = rank(task.trial(0, task.job.blocks[0]).first(task.job.effort.screening), options)
        return {"order": torch.tensor([options.index(candidate) for _, candidate in ranked])}

    return [options[i] for i in task.recorded(f"{n}/peers", work)["order"].tolist()]


class _Outcome(NamedTuple):
    """Parameters on the start's space, the number of samples that they were fitted to, and the RMSE on these."""

    start: Start
    theta: Tensor
    samples: int
    error: float


def _best_start(task: Task, n: int, starts: list[Start]) -> tuple[Start, Record | None]:
    """The start that is closest after its first Jacobian, and the state of its fit, which goes on from there."""
    optimizer = task.job.optimizer
    if len(starts) == 1 or not isinstance(optimizer, LevenbergMarquardt):
        return starts[0], None

    def begin(start: Start) -> Record:
        return optimizer.begin(task.problem(start.space), start.theta).record()

    begun = [task.recorded(f"{n}/begun/{k}", partial(begin, start)) for k, start in enumerate(starts)]
    best = min(range(len(starts)), key=lambda k: float(begun[k]["losses"].mean()))
    return starts[best], begun[best]


def _optimise(task: Task, n: int, start: Start, begun: Record | None, *, first_knot: bool) -> _Outcome:
    """The result of the optimizer; a fit in the journal is resumed."""
    theta = start.theta
    job, name = task.job, f"{n}/main"
    problem, optimizer = task.problem(start.space), job.optimizer_at(first_knot=first_knot)

    def work() -> Record:
        save, state = partial(task.keep, name), task.resume(name) or begun
        if isinstance(optimizer, LevenbergMarquardt):
            fitted = optimizer.fit(problem, theta, task.log, state, save)
            point, count, losses = fitted.theta, len(fitted.at.losses), fitted.at.losses
        else:
            point, _ = optimizer.fit(problem(0, job.fitted), theta, None, task.log, state, save)
            count, losses = job.fitted, None
        task.journal.drop(task.prefix + name)
        for k in range(job.starts(n)):
            task.journal.drop(f"{task.prefix}{n}/begun/{k}", keep=("losses", "calls"))  # which choose again
        if losses is None or job.settings.loss != "l2":
            error = rmse_and_median(task.fitted(count), start.space.table(point))[0]
        else:
            error = float(losses.mean().nan_to_num(nan=math.inf)) ** 0.5
        numbers = torch.tensor([count, error], dtype=torch.float64)
        return {"theta": point, "numbers": numbers}

    record = task.recorded(f"{name}/result", work)
    count, error = record["numbers"].tolist()
    return _Outcome(start, record["theta"], int(count), error)


def _ensure_no_worse(
    task: Task, n: int, order: Sequence[Candidate], fitted: _Outcome, grid: Grid | None
) -> tuple[_Outcome, str | None]:
    """A result no worse than the best classical solver on the fitted samples, or a note that says otherwise.

    The classical solver itself replaces a worse result, where the family can represent it: on its own grid at the first
    knot, on `grid`, which all knots share, at the others.
    """
    peers = list(islice(_as_they_are(task, n, order, grid), task.job.effort.compared))
    tables = [start.space.table(start.theta) for _, start in peers]
    if not any(_equal(table, order[0].table) for table in tables):
        tables.append(order[0].table)
    errors = [error for error, _ in task.errors(f"{n}/reached", task.fitted(fitted.samples), tables)]
    for error, (peer, start) in sorted(zip(errors, peers, strict=False), key=lambda pair: pair[0]):
        if error < fitted.error:
            task.log(f"{n} steps: {peer.name} is closer on the samples than the fit, and is taken as it is")
            start = dataclasses.replace(start, name=f"{fitted.start.name}, then {peer.name}")
            fitted = _Outcome(start, start.theta, fitted.samples, error)
    if fitted.error <= min(errors) * (1 + 1e-9):
        return fitted, None
    if not math.isfinite(fitted.error):
        note = "The end states of some fitted samples are not finite: fit without these starts."
    else:
        note = (
            f"Error {fitted.error:.4g} on the fitted samples, but {errors[-1]:.4g} with {order[0].name}: use that one, "
            "or fit to more samples."
        )
    task.log(f"{n} steps: {note}")
    return fitted, note


def _as_they_are(
    task: Task, n: int, order: Sequence[Candidate], grid: Grid | None
) -> Iterator[tuple[Candidate, Start]]:
    """The classical solvers whose levels the family can represent, as it represents them.

    That is exact, but for DS-Solver on VP models, whose times have ends of their own.
    """
    for peer in order:
        if task.job.can_start_from(peer):
            space = task.job.space_on(n, grid, history=n) if grid else task.job.space(n, peer, history=n)
            theta = space.initial(peer.table)
            if is_valid(space, theta) and all(bool(t.isfinite().all()) for t in space.tensors(theta).values()):
                yield peer, Start(space, theta, peer.name)


def _equal(one: SolverTable, other: SolverTable) -> bool:
    """Whether two tables lead to the same states, but for rounding."""
    pairs = zip(*((table.sigmas, with_derivatives(table).coeffs) for table in (one, other)), strict=True)
    return one.steps == other.steps and all(torch.allclose(*pair) for pair in pairs)
