"""`fit_solver`: learns a solver for a denoiser, for one or more step counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..samplers import Solver, SolverTable, VPNoise, load_solver
from ..samplers.card import Card, StepCard
from ..samplers.schedules import Noise
from ..samplers.version import VERSION
from .gauss_newton import GaussNewton, Progress
from .gradient import OPTIMIZERS, GradientDescent
from .journal import Journal
from .neighbour import resampled
from .objective import make_objective
from .problem import Problem
from .processes import Processes
from .samples import CountedDenoiser, Samples
from .scan import Candidate, candidates, rank, rmse
from .spaces import Space, make_space
from .teacher import Reference, Teacher

__all__ = ["FitResult", "Peer", "StepReport", "fit_solver"]

SCANNED = 32  # samples that candidates are tried on
STARTS = 3  # candidates that a fit is started from
START_ITERATIONS = 2


@dataclass(frozen=True)
class Peer:
    """A classical solver: its name with its grid, and its error on the held-out samples."""

    name: str
    error: float


@dataclass(frozen=True)
class StepReport:
    """What a fit found for one step count; errors are RMSE to the teacher's end over held-out samples.

    Args:
        error_before: Of the start of the fit.
        error_after: Of the fitted solver.
        peers: Classical solvers at equal calls, each at its best grid, best first.
        network_calls: Samples times calls of this step count, with the scan, without the teacher.
        seconds: Spent by this process.
        start: What the fit started from.
    """

    error_before: float
    error_after: float
    peers: tuple[Peer, ...]
    network_calls: int
    seconds: float
    start: str


@dataclass(frozen=True)
class FitResult:
    """A fitted solver and how it was found.

    Args:
        solver: Ready to save and to sample with.
        report: Per step count.
        teacher_calls: Network calls of the teacher, over all samples, shared by all step counts.
    """

    solver: Solver
    report: Mapping[int, StepReport]
    teacher_calls: int


def fit_solver(
    model: Callable[..., Tensor],
    x: Tensor,
    *,
    noise: Noise,
    family: str = "dyweight",
    steps: Sequence[int] = (4, 6, 8),
    history: int = 3,
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
    cache: Path | None = None,
    journal: Path | None = None,
    processes: Processes | None = None,
    card: Mapping[str, Any] | None = None,
) -> FitResult:
    """Returns a solver fitted to a many-step teacher, never worse than the best classical one on the fit's samples.

    Args:
        model: k-diffusion denoiser, `model(x, sigma, **extra_args) -> denoised`.
        x: Starting states at the model's highest noise level, shape [S, ...]; 64 are usually enough.
        noise: The model's noise schedule.
        family: "dyweight" or "ds".
        steps: Step counts, in network calls.
        history: Newest entries that a step may use; 3 is as good as all of them.
        teacher: "euler", "heun", "dpmpp_2m" or "ipndm".
        teacher_steps: Its steps.
        optimizer: "gauss-newton" (forward passes only), "adam", "adamw", "lion", or a settings object.
        loss: "l2", "l1", "huber", "trajectory", or a feature function of the end states.
        initial: "scan" tries the classical solvers on many grids and starts from the best few; the name of one of
            them ("ipndm 3, shift 1"); or a solver (object, name or file) to go on from, its nearest step count.
        learn_grid: DyWeight: learn the grid's shift (flow) or rho (VP, EDM) too.
        extra_args: For the model; tensors with S rows and lists of length S are per sample.
        held_out: The last so many samples judge and are not fitted to. None: a quarter.
        microbatch: Samples per model call. None: all.
        seed: Of the order of samples in the gradient ways.
        progress: Told what happens, a line at a time.
        cache: Folder for the teacher's end states; give every model its own.
        journal: File that keeps what has been found, so that a fit that was interrupted goes on; deleted by no one.
        processes: This process's place among several, `join_processes()` under torchrun.
        card: Further card entries: model_family, checkpoint, guidance, resolution, source, licence, note.

    Raises:
        ValueError: A setting breaks a rule; the message names it and the remedy.
    """
    processes, say = processes or Processes(), progress or (lambda line: None)
    counted = CountedDenoiser(model, x.dtype)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    held = max(1, len(x) // 4) if held_out is None else held_out
    if not 0 < held < len(x):
        raise ValueError(f"held_out must leave samples on both sides of {len(x)}, got {held}")
    if not steps or min(steps) < 1:
        raise ValueError(f"steps must be counts of at least 1, got {list(steps)}")
    everything = Samples(x, extra_args or {}, microbatch or len(x))
    settings = {
        "family": family, "steps": list(steps), "history": history, "teacher": [teacher, teacher_steps],
        "optimizer": repr(optimizer), "loss": str(loss), "initial": str(initial), "learn_grid": learn_grid,
        "samples": [list(x.shape), held], "seed": seed, "start": float(x.double().square().sum()), "version": VERSION,
    }  # fmt: skip
    notes = Journal(journal, settings, processes.from_first, writes=processes.rank == 0)
    if notes.resumed:
        say(f"going on with the fit in {journal}")
    make = _maker(optimizer, seed)
    objective = make_objective(loss)
    fitted, judged = (
        processes.own(everything.rows(0, len(x) - held)),
        processes.own(everything.rows(len(x) - held, len(x))),
    )
    tutor = Teacher(teacher, teacher_steps)
    say(f"teacher: {teacher}, {teacher_steps} steps, {tutor.calls * len(x)} network calls")
    keep = objective.needs_trajectory
    targets = [tutor.reference(counted, part, noise, trajectory=keep, cache=cache) for part in (fitted, judged)]
    common = (counted, noise, family, history, learn_grid, objective)
    fit = _Fit(*common, fitted, judged, targets[0], targets[1], processes, make, say)
    parameters, cards, reports = {}, {}, {}
    for n in sorted(set(steps)):
        parameters[n], cards[n], reports[n] = fit.one(n, len(x) - held, held, initial, notes)
        own = {
            "teacher": teacher,
            "teacher_steps": teacher_steps,
            "loss": loss if isinstance(loss, str) else "features",
        }
        cards[n] = replace(cards[n], **own)
    facts = {
        "model_family": "unknown", "checkpoint": "unknown", "date": date.today().isoformat(),
        "package_version": VERSION, "source": "fitted with Learned Solvers", **(card or {}),
    }  # fmt: skip
    solver = Solver(f"{family}_fitted", Card(family, noise.kind, steps=cards, **facts), parameters)
    return FitResult(solver, reports, tutor.calls * len(x))


def _maker(optimizer: str | GaussNewton | GradientDescent, seed: int) -> GaussNewton | GradientDescent:
    if not isinstance(optimizer, str):
        return optimizer
    if optimizer == "gauss-newton":
        return GaussNewton()
    if optimizer in OPTIMIZERS:
        return GradientDescent(optimizer, rate=1e-2 if optimizer == "lion" else 3e-2, seed=seed)
    raise ValueError(f"optimizer must be gauss-newton, {', '.join(OPTIMIZERS)}, got {optimizer!r}")


@dataclass(frozen=True, eq=False)
class _Fit:
    """What the fits of all step counts share."""

    model: CountedDenoiser
    noise: Noise
    family: str
    history: int
    learn_grid: bool
    objective: Any
    fitted: Samples
    judged: Samples
    fitted_reference: Reference
    judged_reference: Reference
    processes: Processes
    optimizer: GaussNewton | GradientDescent
    say: Progress

    def one(
        self, n: int, fitted: int, judged: int, initial: str | Path | Solver, notes: Journal
    ) -> tuple[dict[str, Tensor], StepCard, StepReport]:
        """Returns parameters, card entry and report for n steps; `fitted`, `judged`: samples of all processes."""
        began, self.model.calls = time.monotonic(), 0
        judge = self._problem(None, self.judged, self.judged_reference, judged)
        tried = list(candidates(n, self.noise))
        scanned = notes.get(f"{n}/scan")
        if scanned is None:
            part, count = self.processes.first(self.fitted, min(SCANNED, fitted)), min(SCANNED, fitted)
            problem = self._problem(None, part, self.fitted_reference.rows(0, len(part)), count)
            order = rank(problem, tried)
            scanned = {"order": torch.tensor([tried.index(c) for _, c in order]), "calls": self._calls()}
            notes.put(f"{n}/scan", scanned)
        self._count_from(scanned)
        order = [tried[i] for i in scanned["order"].tolist()]
        peers = self._peers(judge, order)
        self.say(f"{n} steps: best classical solver {peers[0].name}, held-out error {peers[0].error:.4f}")
        space, theta, name, first = self._start(n, order, initial, fitted, notes)
        problems = (
            self._problem(space, self.fitted, self.fitted_reference, fitted),
            self._problem(space, self.judged, self.judged_reference, judged),
        )
        before = rmse(judge, first)
        theta, _ = self._run(problems, theta, notes, f"{n}/main")
        space, theta, note = self._not_worse(n, order, space, theta, problems, notes)
        after = rmse(judge, space.table(theta))
        self.say(
            f"{n} steps: held-out error {before:.4f} -> {after:.4f}, 1/{peers[0].error / after:.2f} of the best peer's"
        )
        calls = int(self._calls())
        card = replace(
            space.step_card(theta), error_before=before, error_after=after, best_peer=peers[0].name,
            error_best_peer=peers[0].error, network_calls=calls, note=note,
        )  # fmt: skip
        report = StepReport(before, after, tuple(peers), calls, time.monotonic() - began, name)
        return space.tensors(theta), card, report

    def _problem(self, space: Space | None, samples: Samples, reference: Reference, total: int) -> Problem:
        probe = len(self.processes.first(samples, min(16, total)))
        sums = self.processes.sums
        return Problem(self.model, space, samples, reference, self.objective, total, sums, probe)  # pyright: ignore

    def _calls(self) -> Tensor:
        """Returns the network calls so far of all processes."""
        return self.processes.sums(torch.tensor(float(self.model.calls), dtype=torch.float64))

    def _count_from(self, record: dict[str, Tensor]) -> None:
        """Counts on from a record, so that a resumed fit reports what an uninterrupted one does."""
        self.model.calls = int(record["calls"]) if self.processes.rank == 0 else 0

    def _peers(self, judge: Problem, order: list[Candidate]) -> list[Peer]:
        """Returns each method's best grid by the scan, judged on the held-out samples."""
        best: dict[str, Candidate] = {}
        for candidate in order:
            best.setdefault(candidate.name.partition(",")[0], candidate)
        # Close calls in the scan are judged too, so that the peer is not the weaker for the few scanned samples.
        shown = {c.name: c for c in [*best.values(), *order[:8]]}
        return sorted((Peer(name, rmse(judge, c.table)) for name, c in shown.items()), key=lambda peer: peer.error)

    def _start(
        self, n: int, order: list[Candidate], initial: str | Path | Solver, fitted: int, notes: Journal
    ) -> tuple[Space, Tensor, str, SolverTable]:
        """Returns the space, the parameters, the name and the table of what the fit starts from."""
        if isinstance(initial, str) and initial == "scan":
            return self._best_start(n, order, fitted, notes)
        named = [
            c for c in order if isinstance(initial, str) and (c.name == initial or c.name.startswith(f"{initial},"))
        ]
        if named:
            space = self._space(n, named[0])
            return space, space.initial(named[0].table), named[0].name, named[0].table
        solver = initial if isinstance(initial, Solver) else load_solver(initial)
        if solver.family != self.family or solver.prediction != self.noise.kind:
            raise ValueError(
                f"{solver.name} is a {solver.family} solver for {solver.prediction} models: start a {self.family} fit "
                f"on {self.noise.kind} noise from one of its kind"
            )
        nearest = min(solver.steps, key=lambda k: (abs(k - n), k))
        step = solver.card.steps[nearest]
        if step.analytic_first or (step.divisor == "state" and self.family == "dyweight"):
            raise ValueError(f"{solver.name} divides by the state's level or has an analytic step: start from a scan")
        space = make_space(self.family, n, self.noise, step.grid, self.history, self.learn_grid)
        tensors = resampled(solver.parameters[nearest], n)
        theta = space.from_file(tensors)
        return space, theta, f"{solver.name} at {nearest} steps", space.table(theta)

    def _space(self, n: int, candidate: Candidate, history: int | None = None) -> Space:
        return make_space(self.family, n, self.noise, candidate.grid, history or self.history, self.learn_grid)

    def _best_start(
        self, n: int, order: list[Candidate], fitted: int, notes: Journal
    ) -> tuple[Space, Tensor, str, SolverTable]:
        """Returns the best of a few starts after a short fit on the scanned samples."""
        chosen: list[Candidate] = []
        for candidate in order:  # one per grid: the same grid leads to the same minimum
            if candidate.grid not in [c.grid for c in chosen] and self._can_start(candidate):
                chosen.append(candidate)
        found = []
        for k, candidate in enumerate(chosen[:STARTS]):
            space = self._space(n, candidate)
            record = notes.get(f"{n}/start {k}")
            if record is None:
                count = min(SCANNED, fitted)
                part = self.processes.first(self.fitted, count)
                problem = self._problem(space, part, self.fitted_reference.rows(0, len(part)), count)
                short = GaussNewton(iterations=START_ITERATIONS)
                theta, loss = short.fit(problem, space.initial(candidate.table))
                record = {"theta": theta, "loss": torch.tensor(loss, dtype=torch.float64), "calls": self._calls()}
                notes.put(f"{n}/start {k}", record)
            self._count_from(record)
            self.say(f"{n} steps: start {candidate.name}, loss {float(record['loss']):.3e}")
            found.append((float(record["loss"]), k, space, record["theta"], candidate))
        _, _, space, theta, candidate = min(found, key=lambda entry: entry[:2])
        return space, theta, candidate.name, candidate.table

    def _run(self, problems: tuple[Problem, Problem], theta: Tensor, notes: Journal, name: str) -> tuple[Tensor, float]:
        """Returns the fitted parameters and their held-out loss, going on from the journal."""
        state = notes.get(name)
        if state is not None:
            self._count_from(state)
            state = {k: v for k, v in state.items() if k != "calls"}

        def save(record: dict[str, Tensor]) -> None:
            notes.put(name, {**record, "calls": self._calls()})

        return self.optimizer.fit(problems[0], theta, problems[1], self.say, state, save)

    def _not_worse(
        self,
        n: int,
        order: list[Candidate],
        space: Space,
        theta: Tensor,
        problems: tuple[Problem, Problem],
        notes: Journal,
    ) -> tuple[Space, Tensor, str | None]:
        """Returns a result that is no worse than the best classical solver on the fit's own samples.

        A window can cut a classical solver's history; then the fit starts again from the whole of it. DS-Solver on VP
        models ends its grid above 0 and may still fall short: the note says so.
        """
        best = min(order[:3], key=lambda c: rmse(problems[0], c.table))
        bound = rmse(problems[0], best.table)
        if rmse(problems[0], space.table(theta)) <= bound:
            return space, theta, None
        if self._can_start(best):
            space = self._space(n, best, history=n)
            self.say(f"{n} steps: starting again from {best.name} with its whole history")
            wide = (replace(problems[0], space=space), replace(problems[1], space=space))
            theta, _ = self._run(wide, space.initial(best.table), notes, f"{n}/wide")
            if rmse(problems[0], space.table(theta)) <= bound:
                return space, theta, None
        reached = rmse(problems[0], space.table(theta))
        note = f"Error {reached:.4g} on the fit's samples; {best.name} has {bound:.4g}: use that one, or fit dyweight."
        self.say(f"{n} steps: {note}")
        return space, theta, note

    def _can_start(self, candidate: Candidate) -> bool:
        """Whether the family has the candidate's levels: DS-Solver on VP models cannot end at 0."""
        return not (self.family == "ds" and isinstance(self.noise, VPNoise) and candidate.table.sigma_end == 0)
