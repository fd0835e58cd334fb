"""One run of the command on a model of ComfyUI's: the fit, and the three files."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from ...samplers import load_solver
from ..comparison.sheet import save_strips
from ..comparison.strips import strips_of
from ..cost import duration, seconds_of_call
from ..data.processes import Processes
from ..data.samples import Samples
from ..data.teacher import Teacher
from ..fit import fit_solver
from ..models.conditioning import Cond
from ..optimise.gradient import GradientDescent
from ..optimise.levenberg_marquardt import GaussNewton, Progress
from ..report import FitResult, table_of
from ..store.output import Output
from .fit_plan import FitPlan, planned
from .options import encoded_prompts, per_sample
from .progress import CallBar, peak_memory

__all__ = ["fit_model"]

_SHOWN = 4  # held-out samples in the picture


def fit_model(
    args: argparse.Namespace,
    comfy: Path,
    output: Output,
    teacher: Teacher,
    settings: GaussNewton | GradientDescent,
    processes: Processes,
) -> None:
    """Fits a solver for the model that the options name and writes solver file, report and picture.

    Raises:
        ValueError: An option does not suit the model.
        OSError: Files exist already, or cannot be written.
    """
    first = processes.rank == 0
    say: Progress = (lambda line: print(line, flush=True)) if first else (lambda line: None)
    if first:
        output.check()
    plan = planned(args, comfy, output, teacher, settings, first)
    say(plan.told())
    with output.claimed(plan.bytes_written) if first and not args.dry_run else nullcontext():
        conds = processes.from_first(_encoded(plan, say) if first else None)
        plan.model.free_text_encoders()
        batch = [args.microbatch, *plan.shape[1:]]
        plan.model.with_denoiser(
            lambda denoiser, device: _run(plan, conds, per_sample(denoiser), device, processes, say),
            conds, conds[0], batch, differentiable=plan.differentiable,
        )  # fmt: skip


def _encoded(plan: FitPlan, say: Progress) -> list[Cond]:
    """Returns the encoded prompts; a dry run without a file of them encodes one, and writes none."""
    sparing = plan.args.dry_run and not plan.reused
    number, file = (1, None) if sparing else (plan.count, plan.prompts)
    return encoded_prompts(plan.args, plan.model, number, file, say)


def _run(
    plan: FitPlan,
    conds: list[Cond],
    denoiser: Callable[..., Tensor],
    device: torch.device,
    processes: Processes,
    say: Progress,
) -> None:
    """Times the model, fits unless this is a dry run, and writes the files: what is done while the model is loaded."""
    args = plan.args
    samples = plan.samples(plan.model.starts(plan.shape, plan.count, args.seed).to(device), conds)
    dear = next((i for i, value in enumerate(plan.guidance) if value != 1), 0)  # of two passes
    seconds = seconds_of_call(denoiser, samples.rows(dear, dear + args.microbatch), plan.suspect())
    sampling = peak_memory(device)
    say(
        f"One call takes {seconds:.2f} s here: at most {duration(seconds * plan.most / processes.count)}.\n"
        f"Memory of sampling {min(args.microbatch, plan.count)} at a time: {sampling}."
    )
    if args.dry_run:
        return
    result = _fitted(plan, denoiser, samples, plan.work(conds), processes)
    if processes.rank == 0:
        shown = samples.rows(plan.count - min(_SHOWN, plan.held), plan.count)
        facts = (
            f"{plan.output.command}\n\nGuidance of the samples: {plan.card()['guidance']}. "
            f"Peak memory: {peak_memory(device)}; plain sampling: {sampling}."
        )
        _write(plan, result, facts, denoiser, shown)
        say(f"\n{table_of(result)}\n\nwritten: {', '.join(map(str, reversed(plan.output.files)))}")


def _fitted(
    plan: FitPlan,
    denoiser: Callable[..., Tensor],
    samples: Samples,
    work: Path,
    processes: Processes,
) -> FitResult:
    """Returns the fit's result, going on from what is in the folder `work`, under a progress bar."""
    args, bar = plan.args, CallBar(math.ceil(plan.most / processes.count), silent=processes.rank > 0)
    result = fit_solver(
        bar.counted(denoiser), samples.x, noise=plan.noise, family=args.family, steps=args.steps, history=args.history,
        teacher=args.teacher, teacher_steps=args.teacher_steps, optimizer=plan.settings, loss=args.loss,
        initial=args.initial, learn_grid=args.learn_grid, extra_args=samples.extra_args, held_out=plan.held,
        microbatch=args.microbatch, seed=args.seed, progress=bar, cache=work / "teacher",
        journal=work / "journal.safetensors", processes=processes, card=plan.card(),
    )  # fmt: skip
    bar.close()
    return result


def _write(plan: FitPlan, result: FitResult, facts: str, denoiser: Callable[..., Tensor], shown: Samples) -> None:
    """Writes solver file, report and picture: made in the output's folder, then moved together."""
    output, decode = plan.output, plan.model.decode
    png, md, solver = (output.folder / file.name for file in output.files)
    result.solver.save(solver, overwrite=True)
    strips = strips_of(
        load_solver(solver), result, plan.teacher, denoiser, shown, plan.noise,
        lambda x: torch.cat([decode(end[None]) for end in x]),
    )  # fmt: skip
    save_strips(png, f"{solver.stem}: the same held-out starts", strips, size=160)
    md.write_text(f"# {solver.stem}\n\n{facts}\n\n{table_of(result)}\n\n![the same starts]({png.name})\n", "utf-8")
    output.deliver()
