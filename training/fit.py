"""`fit_solver`: learns a solver for a denoiser, for one or more step counts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..samplers import Solver
from ..samplers.files.card import VERSION, Card, StepCard
from ..samplers.schedules import Noise
from .checks import check_card, check_kinds, check_settings, check_size
from .data.processes import Processes
from .data.samples import CountedDenoiser, Samples
from .data.teacher import Teacher
from .data.trial import Trial
from .optimise.gradient import OPTIMIZERS, GradientDescent
from .optimise.levenberg_marquardt import GaussNewton, Progress
from .optimise.losses import make_objective
from .report import FitResult, Peer, StepReport
from .spaces import FIRST_HISTORY, make_space, usual_history
from .spaces.base import Space
from .starts.candidates import SCANNED, Candidate, best_of_methods, candidates, grids_of, rank
from .starts.choose import Start, find_start, resolve_initial
from .store.content import add_content
from .store.journal import Journal, Record
from .task import Task

__all__ = ["fit_solver"]

_EPOCHS = 40  # of a gradient optimizer that is named by a text


@torch.no_grad()
def fit_solver(
    model: Callable[..., Tensor],
    x: Tensor,
    *,
    noise: Noise,
    family: str = "dyweight",
    steps: Sequence[int] = (4, 6, 8),
    history: int | None = None,
    teacher: str = "heun",
    teacher_steps: int = 60,
    optimizer: str | GaussNewton | GradientDescent = "gauss-newton",
    loss: str | Callable[[Tensor], Tensor] = "l2",
    initial: str | Path | Solver = "scan",
    learn_grid: bool = False,
    extra_args: Mapping[str, Any] | None = None,
    held_out: int | None = None,
    microbatch: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    cache: str | Path | None = None,
    journal: str | Path | None = None,
    processes: Processes | None = None,
    card: Mapping[str, Any] | None = None,
) -> FitResult:
    """Returns a solver fitted to a many-step teacher; its card says so where a classical one is closer on the samples.

    Args:
        model: k-diffusion denoiser, `model(x, sigma, **extra_args) -> denoised`.
        x: Starting states at the model's highest noise level, shape [S, ...]; 64 are usually enough;
            256 to fit to and more mostly come nearer.
        noise: The model's noise schedule.
        family: "dyweight" or "ds".
        steps: Step counts, in network calls.
        history: Newest entries that a step may use. None: 3; where a fit by Gauss-Newton starts from a scan and has 256
            samples and more to fit to, held_out not counted, 6.
        teacher: "euler", "heun", "dpmpp_2m" or "ipndm".
        teacher_steps: Its steps.
        optimizer: "gauss-newton" (forward passes only); "adam", "adamw" or "lion", 40 passes over the samples; or a
            settings object.
        loss: "l2", "l1", "huber", "trajectory", or a feature function of the end states.
        initial: "scan" tries the classical solvers on many grids and starts from the best few; the name of one of
            them ("ipndm 3, shift 1"); or a solver (object, name or file) to go on from, its nearest step count, of two
            the larger.
        learn_grid: DyWeight: learn the grid's shift (flow) or rho (VP, EDM) too.
        extra_args: For the model; tensors with S rows and lists of length S are per sample, all else goes to each call.
            Tensors and lists have S rows or one.
        held_out: The last so many samples judge and are not fitted to. None: a quarter.
        microbatch: Samples per model call. None: all.
        seed: Of the order of samples in the gradient ways.
        progress: Told what happens, a line at a time.
        cache: Folder for the teacher's end states; give every model its own.
        journal: File that keeps what has been found, so that a fit that was interrupted goes on and ends with the same
            file, the day of its card included; deleted by no one. One of other settings, starts, noise, initial or
            extra_args is refused (but objects of kinds that are not known here count by their type); the model is not
            compared: give every model its own.
        processes: This process's place among several, `join_processes()` under torchrun; `leave()` it at the end.
        card: Further card entries: model_family, checkpoint, guidance, resolution, source, licence, note.

    Raises:
        TypeError: An argument is of another kind, or what the model returns is.
        ValueError: A setting breaks a rule; the message names it and the remedy.
    """
    counts = {"history": history, "teacher_steps": teacher_steps, "held_out": held_out, "microbatch": microbatch}
    check_kinds(x, noise, steps, {**counts, "seed": seed}, extra_args, card)
    steps, seed, teacher_steps = [int(n) for n in steps], int(seed), int(teacher_steps)
    history, held_out, microbatch = (None if n is None else int(n) for n in (history, held_out, microbatch))
    cache, journal = (None if place is None else Path(place) for place in (cache, journal))
    processes, say = processes or Processes(), progress or (lambda line: None)
    counted = CountedDenoiser(model, x.dtype, say)
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    held = max(1, len(x) // 4) if held_out is None else held_out
    chosen = _optimizer(optimizer, seed)
    if history is None:
        history = usual_history(len(x) - held) if _newton_from_scan(initial, chosen) else FIRST_HISTORY
    check_settings(x, held, steps, history, microbatch, extra_args or {})
    check_size(x, noise)
    for n in steps:  # refuses what no family has
        make_space(family, n, noise, grids_of(noise)[0][1], history, learn_grid)
    facts = {
        "model_family": "unknown", "checkpoint": "unknown", "package_version": VERSION,
        "source": "fitted with Learned Solvers", **(card or {}),
    }  # fmt: skip
    check_card(family, noise, facts)
    source = resolve_initial(initial, family, steps, noise, history, learn_grid)
    settings = {
        "family": family, "steps": list(steps), "history": history, "teacher": [teacher, teacher_steps],
        "optimizer": repr(optimizer), "loss": _name_of(loss), "learn_grid": learn_grid,
        "samples": [list(x.shape), held], "seed": seed, "version": VERSION,
    }  # fmt: skip
    if journal is not None:
        begun_from = [source.card, source.parameters] if isinstance(source, Solver) else source
        held_by = {"noise": noise, "starts": x, "initial": begun_from, "extra_args": extra_args or {}}
        settings |= {name: _digest(value) for name, value in held_by.items()}
    notes = Journal(journal, settings, processes.from_first, writes=processes.rank == 0)
    if notes.resumed:
        say(f"going on with the fit in {journal}")
    day = _day(notes)
    objective, tutor = make_objective(loss), Teacher(teacher, teacher_steps)
    say(f"teacher: {teacher}, {teacher_steps} steps, {tutor.calls * len(x)} network calls")

    def trial(start: int, stop: int) -> Trial:
        samples = processes.own(Samples(x, extra_args or {}, microbatch or len(x)).rows(start, stop))
        reference = tutor.reference(counted, samples, noise, trajectory=objective.needs_trajectory, cache=cache)
        return Trial(counted, samples, reference, stop - start, processes)

    fitted, judged = trial(0, len(x) - held), trial(len(x) - held, len(x))
    task = Task(fitted, judged, objective, noise, family, history, learn_grid, notes, say)
    reference = {"teacher": teacher, "teacher_steps": teacher_steps}
    parameters, cards, reports = {}, {}, {}
    for n in sorted(set(steps)):
        parameters[n], own, reports[n] = _fit_steps(task, n, source, chosen)
        cards[n] = replace(own, loss=loss if isinstance(loss, str) else "features", **reference)
    solver = Solver(f"{family}_fitted", Card(family, noise.kind, steps=cards, **{"date": day, **facts}), parameters)
    return FitResult(solver, reports, tutor.calls * len(x), held)


def _digest(value: Any) -> str:
    """Returns a hash, the same in every process; objects of unknown kinds count by their type alone."""
    digest = sha256()
    add_content(digest, value, lambda other: type(other).__qualname__)
    return digest.hexdigest()


def _day(notes: Journal) -> str:
    """Returns the day on which the fit began; an interrupted one keeps it, so that its file is the same to the byte."""
    day = notes.get("date") or notes.put("date", {"day": torch.tensor(date.today().toordinal())})
    return date.fromordinal(int(day["day"])).isoformat()


def _name_of(loss: str | Callable[[Tensor], Tensor]) -> str:
    """Returns a name that is the same in every process."""
    return loss if isinstance(loss, str) else getattr(loss, "__qualname__", type(loss).__qualname__)


def _optimizer(optimizer: str | GaussNewton | GradientDescent, seed: int) -> GaussNewton | GradientDescent:
    if isinstance(optimizer, GaussNewton | GradientDescent):
        return optimizer
    if optimizer == "gauss-newton":
        return GaussNewton()
    if isinstance(optimizer, str) and optimizer in OPTIMIZERS:
        return GradientDescent(optimizer, rate=1e-2 if optimizer == "lion" else 3e-2, epochs=_EPOCHS, seed=seed)
    raise ValueError(f"optimizer must be gauss-newton, {', '.join(OPTIMIZERS)}, got {optimizer!r}")


def _newton_from_scan(initial: str | Path | Solver, optimizer: GaussNewton | GradientDescent) -> GaussNewton | None:
    """Returns the optimizer of a fit that can begin with few entries and go on with more; None for others.

    What a user starts from stays whole, and the papers' recipes know no windows.
    """
    return optimizer if initial == "scan" and isinstance(optimizer, GaussNewton) else None


def _fit_steps(
    task: Task, n: int, initial: str | Solver, optimizer: GaussNewton | GradientDescent
) -> tuple[dict[str, Tensor], StepCard, StepReport]:
    """Returns parameters, card entry and report for n steps."""
    began, task.fitted.model.calls = time.monotonic(), 0
    order = _scanned(task, n)
    peers = _peers(task, n, order)
    task.say(f"{n} steps: best classical solver {peers[0].name}, held-out error {peers[0].error:.4f}")
    newton = _newton_from_scan(initial, optimizer) if min(n, task.history) > FIRST_HISTORY else None
    start = find_start(replace(task, history=FIRST_HISTORY) if newton else task, n, order, initial)
    before = task.error(f"{n}/before", task.judged, start.table)
    if newton:
        space, theta = _in_turns(task, n, start, newton)
    else:
        space, theta = start.space, _run(task, start.space, start.theta, optimizer, f"{n}/main")
    space, theta, note, again = _not_worse(task, n, order, space, theta, optimizer)
    ((after, median),) = task.errors(f"{n}/after", task.judged, [space.table(theta)])
    ratio = peers[0].error / max(after, 1e-300)
    task.say(f"{n} steps: held-out error {before:.4f} -> {after:.4f}, 1/{ratio:.2f} of the best peer's")
    calls = task.calls()
    errors = {"error_before": before, "error_after": after, "error_best_peer": peers[0].error}
    errors = {name: error for name, error in errors.items() if math.isfinite(error)}  # a card has no infinite ones
    card = replace(space.step_card(theta), **errors, best_peer=peers[0].name, network_calls=calls, note=note)
    name = f"{start.name}, then {again}" if again else start.name
    report = StepReport(before, after, median, tuple(peers), calls, time.monotonic() - began, name)
    return space.tensors(theta), card, report


def _in_turns(task: Task, n: int, start: Start, optimizer: GaussNewton) -> tuple[Space, Tensor]:
    """Returns the result of a fit of few entries to a core of the samples, and from there of all entries to all.

    Many parameters at once follow the few samples of a beginning, and end in worse minima.
    """
    few = replace(task, fitted=task.fitted.first(optimizer.core))
    theta = _run(few, start.space, start.theta, optimizer, f"{n}/main")
    grid = start.space.step_card(theta).grid
    space = task.space_on(n, grid)
    theta = space.from_file(start.space.tensors(theta))
    task.say(f"{n} steps: going on with a history of {min(n, task.history)}")
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


def _run(task: Task, space: Space, theta: Tensor, optimizer: GaussNewton | GradientDescent, name: str) -> Tensor:
    """Returns the fitted parameters, from the journal or going on from it."""
    problem, judge = task.on(space)

    def save(record: Record) -> None:
        task.keep(name, record)

    def work() -> Record:
        state = task.notes.get(name)
        if state is not None:
            task.count_from(state)
            state = {key: value for key, value in state.items() if key != "calls"}
        return {"theta": optimizer.fit(problem, theta, judge, task.say, state, save)[0]}

    return task.recorded(f"{name}/result", work)["theta"]


def _not_worse(
    task: Task, n: int, order: list[Candidate], space: Space, theta: Tensor, optimizer: GaussNewton | GradientDescent
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
        task.say(f"{n} steps: starting again from {best.name} with its whole history")
        again = _run(task, wide, wide.initial(best.table), optimizer, f"{n}/wide")
        error = task.error(f"{n}/wide/reached", task.fitted, wide.table(again))
        if error < reached:
            space, theta, reached, start = wide, again, error, f"{best.name}, whole history"
    if reached <= bound:
        return space, theta, None, start
    note = (
        f"Error {reached:.4g} on the fit's samples; {best.name} has {bound:.4g}: use that one, or fit to more samples."
    )
    task.say(f"{n} steps: {note}")
    return space, theta, note, start
