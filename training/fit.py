"""`fit_solver`: learns a solver for a denoiser, for one or more step counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from operator import index
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..samplers import Solver
from ..samplers.files.card import Card
from ..samplers.schedules import Noise
from .comparison.measure import Result, fit_results
from .data.processes import Processes
from .data.samples import CountedDenoiser, Samples
from .data.teacher import Teacher
from .data.trial import Trial
from .job import FitJob, FitSettings, Optimizer, make_optimizer
from .optimise.levenberg_marquardt import Progress
from .optimise.losses import make_objective
from .report import FitResult
from .step_fit import fit_steps
from .store.journal import Journal
from .task import Task

__all__ = ["fit", "fit_solver", "run_fit"]


def fit_solver(
    model: Callable[..., Tensor],
    x: Tensor,
    *,
    noise: Noise,
    family: str = FitSettings.family,
    steps: Sequence[int] = (4, 6, 8),
    history: int | None = None,
    teacher: str = "heun",
    teacher_steps: int = 60,
    optimizer: str | Optimizer = "gauss-newton",
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
        family: A key of SPACES, "dyweight" or "ds".
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
        progress: Receives what happens, a line at a time.
        cache: Folder for the teacher's end states; give every model its own.
        journal: File that keeps what has been found, so that an interrupted fit resumes and ends with the same file,
            the day of its card included; deleted by no one. One of other settings, starts, noise, initial or
            extra_args is refused (but objects of kinds that are not known here count by their type); the model is not
            compared: give every model its own.
        processes: This process's place among several, `join_processes()` under torchrun; `leave()` it at the end.
        card: Further card entries: architecture, checkpoint, guidance, resolution, source, licence, note.

    Raises:
        TypeError: An argument is of another kind, or what the model returns is.
        ValueError: A setting breaks a rule; the message names it and the remedy.
    """
    settings = FitSettings(
        family, tuple(steps), history, Teacher(teacher, index(teacher_steps)), make_optimizer(optimizer, index(seed)),
        loss, initial, learn_grid, held_out, index(seed),
    )  # fmt: skip
    if microbatch is not None and index(microbatch) < 1:
        raise ValueError(f"microbatch must be at least 1, got {microbatch}")
    job = FitJob(settings, Samples(x, extra_args or {}, index(microbatch or len(x))), noise, card or {})
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
) -> FitResult:
    """Fits a solver of each step count of a job; see `fit_solver`."""
    settings, samples, processes = job.settings, job.samples, processes or Processes()
    records = Journal(journal, job.content_hash() if journal else "", processes)
    if records.resumed:
        log(f"going on with the fit in {journal}")
    # An interrupted fit keeps the day on which it began, so that its file is the same to the byte.
    began = records.get("date") or records.put("date", {"day": torch.tensor(date.today().toordinal())})
    day = date.fromordinal(int(began["day"])).isoformat()
    counted = CountedDenoiser(model, samples.x.dtype, log)
    objective, teacher = make_objective(settings.loss), settings.teacher
    samples = replace(samples, x=samples.x.detach().to(torch.promote_types(samples.x.dtype, torch.float32)))
    teacher_calls = teacher.calls * len(samples)
    log(f"teacher: {teacher.method}, {teacher.steps} steps, {teacher_calls} network calls")

    def trial(start: int, stop: int) -> Trial:
        share, trajectory = processes.own(samples.rows(start, stop)), objective.needs_trajectory
        folder = None if cache is None else Path(cache)
        reference = teacher.reference(counted, share, job.noise, trajectory=trajectory, cache=folder)
        return Trial(counted, share, reference, stop - start, processes)

    parts = trial(0, job.fitted), trial(job.fitted, len(samples))
    task = Task(*parts, objective, job.noise, settings.family, job.history, settings.learn_grid, records, log)
    parameters, cards, reports = {}, {}, {}
    for n in settings.steps:
        tensors, cards[n], reports[n] = fit_steps(task, n, job)
        parameters[n] = {name: tensor[None] for name, tensor in tensors.items()}  # at one guidance knot
    card = Card(settings.family, job.noise.kind, steps=cards, **{"date": day, **job.card})
    return FitResult(Solver(f"{settings.family}_fitted", card, parameters), reports, teacher_calls, job.held_out)


@torch.no_grad()
def run_fit(
    job: FitJob,
    model: Callable[..., Tensor],
    log: Progress,
    *,
    on_call: Callable[[int], object],
    pictures: int,
    folder: Path | None = None,
    processes: Processes | None = None,
) -> tuple[FitResult, list[Result]]:
    """Fits a job with a host's model; then the first process runs what a picture compares on a few held-out starts.

    `on_call` receives the samples of each call of the fit; an interrupted fit resumes from `folder`.
    """

    def counted(x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        denoised = model(x, sigma, **extra_args)
        on_call(len(x))
        return denoised

    places = {"cache": folder / "teacher", "journal": folder / "journal.safetensors"} if folder else {}
    result = fit(job, counted, log, **places, processes=processes)
    if processes and processes.rank > 0:
        return result, []
    starts = job.samples.rows(len(job.samples) - min(pictures, job.held_out), len(job.samples))
    return result, fit_results(result.solver, result, job.settings.teacher, model, starts, job.noise)
