"""`fit_solver`: fits a solver to a denoiser, for one or more step counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..samplers import Solver, SolverTable
from ..samplers.files.card import Card
from ..samplers.schedules import Noise
from .arguments import check_type, number, several, whole_number
from .comparison.measure import Result, fit_results
from .cost import most_calls
from .data.batch_limit import Memory
from .data.probe import check_is_function
from .data.processes import Processes
from .data.samples import CountedDenoiser, Samples
from .data.teacher import Recipe, Teacher
from .job import FitJob, FitSettings, Optimizer, make_optimizer
from .meter import Meter
from .optimise.levenberg_marquardt import Progress
from .optimise.losses import make_objective
from .report import FitResult
from .step_fit import fit_steps
from .store.journal import Journal
from .store.output import WORK_SUFFIX
from .task import Task

__all__ = ["fit", "fit_solver", "remark_of", "run_fit"]


def fit_solver(
    model: Callable[..., Tensor],
    x: Tensor,
    *,
    noise: Noise,
    family: str = FitSettings.family,
    steps: int | Sequence[int] = (4, 6, 8),
    history: int | None = None,
    effort: str = "default",
    guidance: float | Sequence[float] = (),
    guidance_argument: str | None = None,
    teacher: str | Teacher | Recipe | SolverTable | Callable[..., Tensor] = "ode",
    teacher_steps: int | None = None,
    optimizer: str | Optimizer | None = None,
    loss: str | Callable[[Tensor], Tensor] = "l2",
    initial: str | Path | Solver = "path",
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
    """A solver fitted to a many-step teacher, with a note on its card if a classical solver is closer on the samples.

    Args:
        model: k-diffusion denoiser, `model(x, sigma, **extra_args) -> denoised`.
        x: Starting states at the model's highest noise level, shape [S, ...]; more than an effort uses are left out.
        noise: The model's noise schedule.
        family: A key of SPACES, "dyweight" or "ds".
        steps: Step counts, or one, in network calls.
        effort: "quick", "default" or "thorough": the number of samples, Jacobians and peers. Other arguments override
            parts of it.
        guidance: Knots of guidance, or one, positive and ascending: one fit at each, started from its neighbour. The
            solver interpolates between them.
        guidance_argument: Name under which each knot is passed to the model. None: as `extra_args` have it.
        history: Newest entries that a step may use. None: 3.
        teacher: "ode" (iPNDM on a grid made for the model), "euler", "heun", "dpmpp_2m" or "ipndm"; or what you sample
            with today: a table, or `teacher(model, x, extra_args) -> end states`, whose calls are not in the bound.
        teacher_steps: Steps of a teacher named by its method; None: 6 times those of the longest solver (thorough:
            12), at least 20.
        optimizer: "gauss-newton" (Levenberg-Marquardt, forward passes only); "adam", "adamw" or "lion", 40 passes over
            the samples; or a settings object. None: Levenberg-Marquardt as the effort has it.
        loss: "l2", "l1", "huber", "trajectory", or a feature function of the end states.
        initial: "path" follows the teacher's path. Or the name of a classical solver ("ipndm 3, shift 1"); or a solver
            (object, name or file), at its nearest step count, the larger of two.
        extra_args: Arguments of the model. Tensors with S rows and lists of length S are per sample; everything else,
            tensors and lists of one row included, goes to each call.
        held_out: Number of samples, the last ones, that are evaluated on and not fitted to. None: as the effort
            has it, a quarter at most.
        microbatch: Samples per model call. None: all.
        seed: Seed of the order of samples in gradient descent.
        progress: Receives log lines.
        cache: Folder for the teacher's end states. Every model needs its own.
        journal: File with the progress of the fit. An interrupted fit resumes from it and ends with the same solver
            file, including the date on its card. It is never deleted. A journal with other settings, starts, noise,
            initial or extra_args is refused; objects of unknown types count by their type only, and the model is not
            compared, so every model needs its own.
        processes: This process's rank among several: `join_processes()` under torchrun, then `leave()` at the end.
        card: Further card entries: architecture, checkpoint, guidance, resolution, source, licence, note.

    Raises:
        TypeError: An argument, or the model's result, has the wrong type.
        ValueError: A setting is invalid; the message names it and the remedy.
    """
    for name, value, kinds, expected in (
        ("model", model, Callable, "a function of x and sigma"),
        ("x", x, Tensor, "a tensor of starting states"),
        ("family", family, str, "a name"),
        ("effort", effort, str, "a name"),
        ("guidance_argument", guidance_argument, str | None, "the name of an argument of the model"),
        ("teacher", teacher, str | Teacher | Recipe | SolverTable | Callable, "a name, a table or a function"),
        ("optimizer", optimizer, str | Optimizer | None, "a name or a settings object"),
        ("loss", loss, str | Callable, "a name or a feature function"),
        ("initial", initial, str | Path | Solver, "a name, a file or a solver"),
        ("extra_args", extra_args, Mapping | None, "a mapping of the model's arguments"),
        ("progress", progress, (Callable, type(None)), "a function of a line"),
        ("cache", cache, str | PathLike | None, "a folder"),
        ("journal", journal, str | PathLike | None, "a file"),
        ("processes", processes, Processes | None, "the result of join_processes()"),
        ("card", card, Mapping | None, "a mapping of entries"),
    ):
        check_type(name, value, kinds, expected)
    counts = {"history": history, "teacher_steps": teacher_steps, "held_out": held_out, "microbatch": microbatch}
    counts = {name: None if value is None else whole_number(name, value) for name, value in counts.items()}
    seed = whole_number("seed", seed)
    settings = FitSettings(
        family, several("steps", steps, whole_number), counts["history"], teacher, counts["teacher_steps"],
        None if optimizer is None else make_optimizer(optimizer, seed), loss, initial, counts["held_out"], seed,
        effort, several("guidance", guidance, number), guidance_argument,
    )  # fmt: skip
    batch = counts["microbatch"]
    if batch is not None and batch < 1:
        raise ValueError(f"microbatch must be at least 1, got {batch}")
    job = FitJob(settings, Samples(x, extra_args or {}, batch or len(x)), noise, card or {})
    return fit(job, model, progress or (lambda line: None), cache=cache, journal=journal, processes=processes)


@torch.no_grad()
def fit(
    job: FitJob,
    model: Callable[..., Tensor],
    log: Progress,
    *,
    cache: str | Path | None = None,
    journal: str | Path | None = None,
    processes: Processes | None = None,
    meter: Meter | None = None,
    memory: Memory | None = None,
) -> FitResult:
    """Fits a solver of each step count of a job; see `fit_solver`. `meter` counts the calls of this process."""
    processes, teacher, meter = processes or Processes(), job.teacher, meter or Meter()
    if (cache or journal) and isinstance(teacher, Recipe) and teacher.is_anonymous:
        raise ValueError(
            f"a cache and a journal cannot tell the function {teacher.name} from others: pass it as "
            "Recipe(name, steps, 0, function), or fit without them"
        )
    settings, samples, tasks = job.settings, job.samples, []
    records = Journal(journal, job.content_hash() if journal else "", processes)
    if records.resumed:
        log(f"resuming the fit in {journal}")
    # An interrupted fit keeps the day on which it began, so that its file is the same to the byte.
    start_day = records.get("date") or records.put("date", {"day": torch.tensor(date.today().toordinal())})
    day = date.fromordinal(int(start_day["day"])).isoformat()
    counted = CountedDenoiser(
        model, samples.x.dtype, log, memory=memory, on_call=meter.add, highest=job.noise.sigma_max
    )  # fmt: skip
    counted.batch_limit.largest = min(counted.batch_limit.largest, job.most_together)
    if (record := records.get("meter")) is not None:
        meter.resume(record)
    if (record := records.get("batch")) is not None:
        counted.batch_limit.restore(record)
    counted.batch_limit.on_choice = lambda record: records.put("batch", record)
    objective = make_objective(settings.loss)
    x = samples.x.detach().to(torch.promote_types(samples.x.dtype, torch.float32))
    samples = replace(samples, x=x, device=samples.device or x.device)
    log(meter.forecast() if meter.rate else f"teacher: {teacher}; at most {most_calls(job):,} network calls")
    has_knots = len(settings.guidance) > 1
    for knot in settings.guidance or (None,):
        argument = {settings.guidance_argument: knot} if settings.guidance_argument and knot is not None else {}
        at_knot = replace(samples, extra_args={**samples.extra_args, **argument})
        prefix = "" if knot is None else f"{knot!r}/"
        folder = None if cache is None else Path(cache)
        named = partial(_log_at, log, knot) if has_knots and knot is not None else log
        tasks.append(Task(job, at_knot, counted, objective, processes, records, named, folder, prefix, meter))
    parameters, cards, reports = {}, {}, {}
    for n in settings.steps:
        parameters[n], cards[n], reports[n] = fit_steps(tasks, n)
    card = Card(settings.family, job.noise.kind, steps=cards, **{"date": day, **job.card})
    solver = Solver(f"{settings.family}_fitted", card, parameters)
    used = (max(report.samples for report in at_knot) + job.held_out for at_knot in zip(*reports.values(), strict=True))
    at_middle = {n: each[job.first_knot] for n, each in reports.items()}
    calls = sum(job.teacher_calls(count, first_knot=k == job.first_knot) for k, count in enumerate(used))
    at_knots = {
        (n, knot): report
        for n, each in reports.items()
        for knot, report in zip(settings.guidance, each, strict=False)
        if has_knots
    }
    levels = None if isinstance(teacher, Recipe) else tasks[job.first_knot].levels()
    return FitResult(solver, at_middle, calls, job.held_out, at_knots, meter.seconds, levels)


def _log_at(log: Progress, knot: float, line: str) -> None:
    log(f"guidance {knot:g}: {line}")


@torch.no_grad()
def run_fit(
    job: FitJob,
    model: Callable[..., Tensor],
    log: Progress,
    *,
    meter: Meter,
    deliver: Callable[[FitResult], object],
    remark: Callable[[str], object],
    pictures: int,
    folder: Path,
    processes: Processes | None = None,
    memory: Memory | None = None,
) -> list[Result]:
    """Fits a job with a host's model; process 0 then delivers it, and samples a few held-out starts for the picture.

    A model that remembers earlier calls is refused first, see `check_is_function`.

    Args:
        job: The fit.
        model: The denoiser, while the host has it loaded.
        log: Receives log lines.
        meter: Counts the calls of this process.
        deliver: Writes the result, before anything else can fail.
        remark: Receives a sentence if the starts for the picture cannot be sampled.
        pictures: Number of starts.
        folder: An interrupted fit resumes from it.
        processes: This process's rank among several.
        memory: The host's way to recognise out of memory.

    Returns:
        The end states of teacher, peers and solver; empty if they cannot be sampled, and in other processes.
    """
    paths = {"cache": folder / "teacher", "journal": folder / f"journal{WORK_SUFFIX}"}
    if not paths["journal"].exists() and any(folder.parent.glob(f"*/journal{WORK_SUFFIX}")):
        log(
            f"{folder.parent} has the progress of another fit, of other inputs or with another version: this fit does "
            "not use it, and deletes it at its end"
        )
    seconds = check_is_function(model, job.samples, job.noise, log)
    meter.rate = meter.rate or 1 / seconds
    result = fit(job, model, log, **paths, processes=processes, meter=meter, memory=memory)
    if processes and processes.rank > 0:
        return []
    deliver(result)
    starts = job.samples.rows(len(job.samples) - min(pictures, job.held_out), len(job.samples))
    with remark_of("picture", remark):
        return fit_results(result.solver, result, job.teacher, model, starts, job.noise, memory)
    return []


@contextmanager
def remark_of(what: str, remark: Callable[[str], object]) -> Iterator[None]:
    """Turns an error in what follows the delivered solver into a remark; an interrupt stays one."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ == "InterruptProcessingException":  # an Exception in older ComfyUI
            raise
        reason = (str(error).splitlines() or [""])[0][:200]
        remark(f"No {what} ({type(error).__name__}: {reason}). The solver file is complete.")
