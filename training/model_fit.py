"""One run of the command on a model of ComfyUI's: what it will do, the fit, the three files."""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..samplers import load_solver
from ..samplers.guidance import listed, of_samples, spread
from ..samplers.schedules import Noise
from .cost import duration, most_calls, seconds_of_call
from .fit import FitResult, fit_solver
from .gauss_newton import GaussNewton, Progress
from .gradient import GradientDescent
from .memory import peak_memory
from .models.comfy import ComfyModel
from .models.conditioning import Cond
from .options import encoded_prompts, load_model, model_name, per_sample, prompts_of, texts_of
from .output import Output
from .picture import save_strips
from .processes import Processes
from .progress import CallBar
from .report import table_of
from .samples import Samples
from .strips import strips_of
from .teacher import Teacher

__all__ = ["fit_model"]

_SHOWN = 4  # held-out samples in the picture


@dataclass(frozen=True, eq=False)
class _Plan:
    """What a run will do.

    Args:
        args: The command's options.
        model: The model, loaded.
        output: Where the files go.
        prompts: File of the encoded prompts.
        reused: Whether it is there; else it is to be written.
        teacher: The reference.
        settings: The optimizer's.
        shape: Of one latent.
        noise: The model's schedule.
        guidance: CFG, or what the model embeds; the samples have these in turn.
    """

    args: argparse.Namespace
    model: ComfyModel
    output: Output
    prompts: Path
    reused: bool
    teacher: Teacher
    settings: GaussNewton | GradientDescent
    shape: list[int]
    noise: Noise
    guidance: tuple[float, ...]

    @property
    def held(self) -> int:
        """Samples that judge."""
        return _held(self.args)

    @property
    def count(self) -> int:
        """All samples."""
        return self.args.samples + self.held

    @property
    def most(self) -> int:
        """Network calls at most, of all processes."""
        return most_calls(
            self.args.steps, self.args.samples, self.held, self.noise, family=self.args.family,
            history=self.args.history, learn_grid=self.args.learn_grid, teacher=self.teacher, settings=self.settings,
        )  # fmt: skip

    @property
    def bytes_written(self) -> int:
        """Room that the teacher's states need, twice for safety, and the journal."""
        states = self.teacher.steps + 1 if self.args.loss == "trajectory" else 1
        return 2 * 4 * self.count * math.prod(self.shape) * states + 2**24

    @property
    def differentiable(self) -> bool:
        """Whether gradients go through the model."""
        return isinstance(self.settings, GradientDescent)

    def told(self) -> str:
        """Returns what will be done, for people."""
        args, embeds = self.args, self.model.embeds_guidance
        return (
            f"{self.model.family} ({self.noise.kind}), {self.model.pixels(self.shape)}, "
            f"{'embedded guidance' if embeds else 'CFG'} {listed(self.guidance)}"
            f": {args.family} solvers of {', '.join(map(str, args.steps))} steps from {args.samples} pictures, "
            f"judged on {self.held} more.\nAt most {self.most:,} network calls{self._passes()}"
            f", an eighth to a seventh of it is usual; result: {self.output.solver}"
        )

    def _passes(self) -> str:
        if self.model.embeds_guidance or self.guidance == (1,):
            return ""
        return " of two passes each (CFG)" if 1 not in self.guidance else " of two passes each (CFG), one where it is 1"

    def samples(self, x: Tensor, conds: list[Cond]) -> Samples:
        """Returns the starts with prompt and guidance."""
        own = {"prompt": prompts_of(conds, self.count), "guidance": of_samples(self.guidance, self.count)}
        return Samples(x, own, self.args.microbatch)

    def suspect(self) -> str:
        """Returns what to look at where the model cannot be run on its prompts."""
        if self.reused:
            return f"where the prompts in {self.prompts} belong to another model, name another file with --conditioning"
        if self.args.clip:
            return f"do the text encoders {', '.join(map(str, self.args.clip))} belong to it? Name its own with --clip"
        return "does ComfyUI itself sample with this checkpoint? Its own text encoders made the prompts"

    def card(self) -> dict[str, str]:
        """Returns what the solver file says of model and samples."""
        return {
            "model_family": self.model.family,
            "checkpoint": model_name(self.args),
            "guidance": listed(self.guidance) + (" (distilled, CFG 1)" if self.model.embeds_guidance else ""),
            "resolution": self.model.pixels(self.shape),
            "note": f"fitted to {self.args.samples} samples, judged on {self.held}, seed {self.args.seed}",
        }


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
    plan = _planned(args, comfy, output, teacher, settings, first)
    say(plan.told())
    with output.claimed(plan.bytes_written) if first and not args.dry_run else nullcontext():
        conds = processes.from_first(_encoded(plan, say) if first else None)
        plan.model.free_text_encoders()
        batch = [args.microbatch, *plan.shape[1:]]
        plan.model.with_denoiser(
            lambda denoiser, device: _run(plan, conds, per_sample(denoiser), device, processes, say),
            conds, conds[0], batch, differentiable=plan.differentiable,
        )  # fmt: skip


def _planned(
    args: argparse.Namespace,
    comfy: Path,
    output: Output,
    teacher: Teacher,
    settings: GaussNewton | GradientDescent,
    first: bool,
) -> _Plan:
    """Returns the plan, after loading the model; the first process loads text encoders too where they are needed."""
    texts = texts_of(args, args.samples + _held(args))
    prompts = args.conditioning or output.folder / f"prompts-{_hash(texts, _stat(args))}.safetensors"
    reused = prompts.exists()
    model = load_model(args, comfy, encode=first and not reused)
    shape = model.latent_shape(*(args.size or model.size))
    noise, guidance = model.noise(shape), _guidance(args, model)
    if isinstance(settings, GradientDescent) and noise.kind == "vp":
        raise ValueError(
            f"ComfyUI rounds the model time of {model.family} to whole numbers, so no gradient reaches the noise "
            "levels: use --optimizer gauss-newton"
        )
    return _Plan(args, model, output, prompts, reused, teacher, settings, shape, noise, guidance)


def _guidance(args: argparse.Namespace, model: ComfyModel) -> tuple[float, ...]:
    """Returns the guidances of a fit: those that are named, or what is usual and, where it is CFG, a third around it.

    A solver that was fitted at one CFG loses at others; one that was fitted to samples of several holds at all of them.
    Raises ValueError where there are fewer samples.
    """
    usual = model.usual_guidance
    values = tuple(args.guidance or ((usual,) if model.embeds_guidance else spread(usual, 1 / 3)))
    of_samples(values, args.samples)
    return values


def _held(args: argparse.Namespace) -> int:
    return math.ceil(args.samples / 3)


def _encoded(plan: _Plan, say: Progress) -> list[Cond]:
    """Returns the encoded prompts; a dry run without a file of them encodes one, and writes none."""
    sparing = plan.args.dry_run and not plan.reused
    number, file = (1, None) if sparing else (plan.count, plan.prompts)
    return encoded_prompts(plan.args, plan.model, number, file, say)


def _run(
    plan: _Plan,
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
    work = plan.output.folder / _hash(conds, _stat(args), plan.guidance, plan.shape)
    result = _fitted(plan, denoiser, samples, work, processes)
    if processes.rank == 0:
        shown = samples.rows(plan.count - min(_SHOWN, plan.held), plan.count)
        facts = (
            f"{plan.output.command}\n\nGuidance of the samples: {plan.card()['guidance']}. "
            f"Peak memory: {peak_memory(device)}; plain sampling: {sampling}."
        )
        _write(plan, result, facts, denoiser, shown)
        say(f"\n{table_of(result)}\n\nwritten: {', '.join(map(str, reversed(plan.output.files)))}")


def _fitted(
    plan: _Plan,
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


def _write(plan: _Plan, result: FitResult, facts: str, denoiser: Callable[..., Tensor], shown: Samples) -> None:
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


def _stat(args: argparse.Namespace) -> list[tuple[str, int, int]]:
    """Returns what tells the model's files from others: paths, sizes, times."""
    files = [file for file in (args.checkpoint, args.diffusion_model, *args.clip) if file is not None and file.exists()]
    return [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _hash(*values: object) -> str:
    """Returns a name for values: numbers, texts, encoded prompts."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for cond in value:
                for key in sorted(cond):
                    digest.update(key.encode() + cond[key].float().numpy().tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()[:16]
