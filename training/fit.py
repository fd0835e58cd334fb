"""`fit_solver`: fits a solver to a denoiser, for one or more step counts."""

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
    """A solver fitted to a many-step teacher, with a note on its card if a classical solver is closer on the samples.

    Args:
        model: k-diffusion denoiser, `model(x, sigma, **extra_args) -> denoised`.
        x: Starting states at the model's highest noise level, shape [S, ...]. 64 are usually enough; with 256 or more
            to fit to, errors are mostly lower.
        noise: The model's noise schedule.
        family: A key of SPACES, "dyweight" or "ds".
        steps: Step counts, in network calls.
        history: Newest entries that a step may use. None: 3, or 6 if optimizer is "gauss-newton", initial is "scan" and
            there are at least 256 samples to fit to, excluding held-out ones.
        teacher: "euler", "heun", "dpmpp_2m" or "ipndm".
        teacher_steps: Steps of the teacher.
        optimizer: "gauss-newton" (forward passes only); "adam", "adamw" or "lion", 40 passes over the samples; or a
            settings object.
        loss: "l2", "l1", "huber", "trajectory", or a feature function of the end states.
        initial: "scan" tries the classical solvers on many grids and starts from the best few. Or the name of one of
            them ("ipndm 3, shift 1"); or a solver (object, name or file), at its nearest step count, the larger of two.
        learn_grid: DyWeight: learn the grid's shift (flow) or rho (VP, EDM) too.
        extra_args: Arguments of the model. Tensors with S rows and lists of length S are per sample; everything else,
            tensors and lists of one row included, goes to each call.
        held_out: Number of samples, the last ones, that are evaluated on and not fitted to. None: a quarter.
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
        log(f"resuming the fit in {journal}")
    # An interrupted fit keeps the day on which it began, so that its file is the same to the byte.
    start_day = records.get("date") or records.put("date", {"day": torch.tensor(date.today().toordinal())})
    day = date.fromordinal(int(start_day["day"])).isoformat()
    counted = CountedDenoiser(model, samples.x.dtype, log)
    objective, teacher = make_objective(settings.loss), settings.teacher
    samples = replace(samples, x=samples.x.detach().to(torch.promote_types(samples.x.dtype, torch.float32)))
    teacher_calls = teacher.calls * len(samples)
    log(f"teacher: {teacher.method}, {teacher.steps} steps, {teacher_calls} network calls")

    def make_trial(start: int, stop: int) -> Trial:
        share, trajectory = processes.share(samples.rows(start, stop)), objective.needs_trajectory
        folder = None if cache is None else Path(cache)
        reference = teacher.reference(counted, share, job.noise, trajectory=trajectory, cache=folder)
        return Trial(counted, share, reference, stop - start, processes)

    trials = make_trial(0, job.fitted), make_trial(job.fitted, len(samples))
    task = Task(*trials, objective, job.noise, settings.family, job.history, settings.learn_grid, records, log)
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
    """Fits a job with a host's model; process 0 then samples a few held-out starts for the comparison picture.

    `on_call` receives the number of samples of each call of the fit. An interrupted fit resumes from `folder`.
    """

    def counted(x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        denoised = model(x, sigma, **extra_args)
        on_call(len(x))
        return denoised

    paths = {"cache": folder / "teacher", "journal": folder / "journal.safetensors"} if folder else {}
    result = fit(job, counted, log, **paths, processes=processes)
    if processes and processes.rank > 0:
        return result, []
    starts = job.samples.rows(len(job.samples) - min(pictures, job.held_out), len(job.samples))
    return result, fit_results(result.solver, result, job.settings.teacher, model, starts, job.noise)
