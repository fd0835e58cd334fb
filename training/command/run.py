"""A run of training/fit_weights.py on a host's model: its plan and cost, the fit, and the three files."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...samplers.comfy_experts import boundary_of
from ...samplers.comfy_models import fingerprint, model_architecture
from ...samplers.guidance import Guidance
from ..comparison.measure import Result
from ..comparison.sheet import draw_results
from ..cost import most_calls, seconds_of_call, seconds_of_change, usual_calls, work_bytes
from ..data.probe import check_is_function
from ..data.processes import Processes
from ..data.samples import Samples
from ..effort import EFFORTS
from ..fit import remark_of, run_fit
from ..job import FitJob
from ..meter import Meter
from ..models import Model
from ..models.comfy import ComfyModel
from ..models.comfy_samplers import named_recipe, usual_sampler
from ..models.conditioning import Cond
from ..models.distilled import distilled_remark
from ..models.guider import EncodedPrompts, host_memory
from ..models.other_teacher import make_job
from ..models.picture_loss import picture_loss
from ..optimise.gradient import GradientDescent
from ..optimise.levenberg_marquardt import Progress
from ..report import FitResult, table_of
from ..store.content import content_hash
from ..store.output import WORK_SUFFIX
from .bar import FitBar
from .options import FitCommand

__all__ = ["fit_model", "guidance_for"]

_PICTURES = 4  # held-out samples drawn in the picture
_AS_TODAY = 'pass --teacher "{sampler} {scheduler} {steps}" --steps {fewer}'


def fit_model(command: FitCommand, processes: Processes) -> None:
    """Fits a solver for the command's model, and writes solver file, report and picture."""
    first = processes.rank == 0
    log: Progress = (lambda line: print(line, flush=True)) if first else (lambda line: None)
    if first and not command.dry_run:
        command.output.check()
    run = ModelFit(command, processes, log)
    log(run.describe())
    output = command.output
    with output.claimed(work_bytes(run.job)) if first and not command.dry_run else nullcontext():
        if not command.dry_run:
            output.check()  # another fit may have just delivered
        conds = processes.from_first(run.conditioning() if first else None)
        run.model.free_text_encoders()
        on_model = partial(
            run.model.with_denoiser, conds=conds, guidance=run.guidance,
            shape=[min(command.microbatch or 1, command.count), *run.shape[1:]], differentiable=run.differentiable,
        )  # fmt: skip
        if run.other and not command.dry_run:
            on_model(lambda denoiser, device: run.check(denoiser, device, conds))  # the teacher's run may take hours
            run.other.run(
                run.job, EncodedPrompts(conds), run.show, meter=run.meter, processes=processes,
                cache=run.folder(conds) / "other teacher",
            )  # fmt: skip
        ends = on_model(lambda denoiser, device: run.fit(denoiser, device, conds))
        if first and not command.dry_run:
            run.draw(ends)
            output.clear()


def guidance_for(model: Model, values: Sequence[float]) -> Guidance:
    """The guidance of a fit; without values, knots around the model's usual one."""
    usual, embedded = model.usual_guidance, model.embeds_guidance
    if not values:
        return Guidance.around(usual, 1.0 if embedded else None)
    return Guidance("embedded", tuple(values), cfg=1.0) if embedded else Guidance("cfg", tuple(values))


class ModelFit:
    """A fit with its model loaded. Only the first process loads text encoders, and only to encode new prompts."""

    def __init__(self, command: FitCommand, processes: Processes, log: Progress) -> None:
        self.command, self.processes, self.log, settings = command, processes, log, command.settings
        texts = command.prompts.texts(command.count)
        name = f"prompts-{content_hash(texts, command.files.stamps())[:16]}{WORK_SUFFIX}"
        self.prompts = command.prompts.encoded or command.output.folder / name
        self.reused = self.prompts.exists()
        self.differentiable = isinstance(settings.optimizer, GradientDescent)
        dynamic, encode = not self.differentiable, processes.rank == 0 and not self.reused
        self.model = model = ComfyModel.load(command.files, text_encoders=encode, dynamic=dynamic)
        self.shape = model.latent_shape(*(command.size or model.size), command.frames or model.frames)
        noise = model.noise(self.shape)
        if self.differentiable and noise.kind == "vp":
            raise ValueError(
                f"ComfyUI rounds the timesteps of {model.architecture} to whole numbers, so no gradient reaches the "
                "noise levels: use --optimizer gauss-newton"
            )
        if command.of_pictures:
            if model.vae is None:
                raise ValueError("--loss features decodes end states, but this model has no VAE: pass one with --vae")
            settings = replace(settings, loss=picture_loss(model.patcher.model, model.vae))
        self.guidance = guidance_for(model, command.guidance)
        effort = EFFORTS[settings.effort].for_numbers(math.prod(self.shape))
        self.fitted = command.samples if self.differentiable else settings.samples or effort.optimizer.samples
        card = {
            "architecture": model.architecture,
            "checkpoint": command.files.name,
            "fingerprint": fingerprint(model.patcher.model),
            "guidance": self.guidance,
            "resolution": model.pixels(self.shape),
            "fit_id": command.output.fit_id,
            "boundary": boundary_of(model.patcher),
            "note": f"fitted to {self.fitted} samples, evaluated on {settings.held_out}, seed {settings.seed}"
            + command.files.with_loras,
        }
        usual = usual_sampler(model.patcher)
        settings = replace(settings, guidance=self.guidance.values, guidance_argument="guidance", usual=usual)
        files = command.teacher_files
        other = ComfyModel.load(files, text_encoders=False, dynamic=dynamic).patcher if files else None
        if command.recipe:
            settings = replace(settings, teacher=named_recipe(other or model.patcher, *command.recipe, self.shape))
            self.distilled = None
        else:
            facts, names = model_architecture((other or model.patcher).model), (files or command.files).names
            without_cfg = " --guidance 1" if not command.guidance and self.guidance.kind == "cfg" else ""
            self.distilled = distilled_remark(facts, names, usual, settings.steps, f"{_AS_TODAY}{without_cfg}")
        x = model.starts(self.shape, command.count, settings.seed)
        samples = Samples(x, {"row": list(range(command.count))}, command.microbatch)
        self.job, self.other = make_job(
            settings, samples, noise, card, model.patcher, teacher_patcher=other,
            teacher_guidance=command.teacher_guidance,
        )  # fmt: skip
        others, share = self.other.calls(self.job) if self.other else 0, processes.count
        self.bar = FitBar(hidden=processes.rank > 0)
        self.meter = Meter(
            -(-(usual_calls(self.job) + others) // share), -(-(most_calls(self.job) + others) // share), self.bar.move
        )

    def describe(self) -> str:
        """The plan and its cost, as text."""
        command, settings, guidance = self.command, self.command.settings, self.guidance
        passes = ""
        if guidance.kind == "cfg" and guidance.values != (1,):
            passes = f" (two passes each{', one at CFG 1' if 1 in guidance.values else ''})"
        steps, facts = ", ".join(map(str, settings.steps)), model_architecture(self.model.patcher.model)
        recipe = [facts.sampler, facts.scheduler, facts.steps and f"{facts.steps} steps"]
        usually = f" (usually sampled with {', '.join(filter(None, recipe))})" if any(recipe) else ""
        return (
            f"Device: {self.model.device}\n"
            f"{self.model.architecture} ({self.job.noise.kind}){command.files.with_loras}, "
            f"{self.model.pixels(self.shape)}, {guidance}{usually}: "
            f"{settings.family} solvers of {steps} steps, fitted to {self.fitted} samples of the teacher "
            f"({self.job.teacher}) and evaluated on {settings.held_out} more.\n"
            f"At most {most_calls(self.job):,} network calls{passes}, usually about "
            f"{usual_calls(self.job):,}"
            + (f", and {self.other.calls(self.job):,} of the teacher's" if self.other else "")
            + f"; result: {command.output.solver}"
            + (f"\n{self.distilled}" if self.distilled else "")
        )

    def conditioning(self) -> list[Cond]:
        """The encoded prompts; without a file of them, a dry run encodes only one and writes no file."""
        encode_one = self.command.dry_run and not self.reused
        count, file = (1, None) if encode_one else (self.command.count, self.prompts)
        return self.command.prompts.conditioning(self.model, count, file, self.log)

    def _job_on(self, device: torch.device, conds: list[Cond]) -> FitJob:
        """The job on the model's device; only one prompt is encoded in a dry run."""
        prompts, count = EncodedPrompts(conds), 0 if self.command.dry_run else self.command.count
        return self.job.on(device, [prompts.group_of(row) for row in range(count)])

    def _time(self, denoiser: Callable[..., Tensor], job: FitJob) -> tuple[Samples, float]:
        """The samples of one call, and its seconds per sample."""
        batch = job.samples.rows(0, self.command.microbatch or 1).loaded()
        return batch, seconds_of_call(denoiser, batch, self._hint(), host_memory())

    def check(self, denoiser: Callable[..., Tensor], device: torch.device, conds: list[Cond]) -> None:
        """Refuses a model that fails on its first call or remembers earlier calls, while it is loaded."""
        job = self._job_on(device, conds)
        self._time(denoiser, job)
        check_is_function(denoiser, job.samples, job.noise, lambda line: None)

    def fit(self, denoiser: Callable[..., Tensor], device: torch.device, conds: list[Cond]) -> list[Result]:
        """Tries the model and, unless this is a dry run, fits and writes solver and report; the picture's end states.

        Called while the model is loaded.
        """
        command, job = self.command, self._job_on(device, conds)
        batch, seconds = self._time(denoiser, job)
        sampling = peak_memory(device)
        if (boundary := command.files.boundary) is not None:
            added = seconds_of_change(denoiser, batch, (job.noise.sigma_max, boundary / 2), seconds)
            seconds += added / (job.settings.steps[0] * len(batch))
            self.log(f"Each change between the two models and back takes {added:.2f} s.")
        self.meter.rate = 1 / seconds
        self.log(f"Memory for sampling {len(batch)} at a time: {sampling}.")
        if command.dry_run:
            self.log(self.meter.forecast())
            return []

        def deliver(result: FitResult) -> None:
            self.bar.finish()
            peak = f"Peak memory: {peak_memory(device)}; plain sampling: {sampling}."
            facts = [command.text, f"Guidance of the samples: {self.guidance}. {peak}", self.distilled]
            table = table_of(result)
            command.output.deliver(result.solver, "\n\n".join([table, *filter(None, facts)]))
            self.log(f"\n{table}\n\nwritten: {command.output.solver}, {command.output.report}")

        try:
            return run_fit(
                job, denoiser, self.show, meter=self.meter, deliver=deliver, remark=self.remark, pictures=_PICTURES,
                folder=self.folder(conds), processes=self.processes, memory=host_memory(),
            )  # fmt: skip
        finally:
            self.bar.close()

    def show(self, line: str) -> None:
        """Logs a line above the bar, and its error in the bar."""
        self.bar.note(line)
        if self.processes.rank == 0:
            self.bar.write(line)

    def remark(self, sentence: str) -> None:
        """Shows a sentence and adds it to the report."""
        self.command.output.append(sentence)
        self.log(sentence)

    def draw(self, ends: list[Result]) -> None:
        """Draws the picture; called when sampling is over, as decoding may unload the model."""

        def pictures(states: Tensor) -> Tensor:
            return torch.cat([self.model.decode(state[None]) for state in states])

        output = self.command.output
        if ends:
            with remark_of("picture", self.remark):
                output.add_picture(draw_results(f"{output.solver.stem}: the same held-out starts", ends, pictures, 160))
                self.log(f"written: {output.picture}")

    def folder(self, conds: list[Cond]) -> Path:
        """The folder of this fit's journal and of the teacher's states."""
        files, teacher = self.command.files, self.command.teacher_files
        stamps = [*files.stamps(vae=self.command.of_pictures), *(teacher.stamps() if teacher else ())]
        return self.command.output.folder / content_hash(conds, stamps, files.boundary, self.guidance, self.shape)[:16]

    def _hint(self) -> str:
        """The remedy where the model cannot run on its prompts."""
        if self.reused:
            return f"if the prompts in {self.prompts} are for another model, pass another file with --conditioning"
        if clip := self.command.files.clip:
            files = ", ".join(map(str, clip))
            return f"if the text encoders {files} are for another model, pass the right ones with --clip"
        return "check that this checkpoint and its text encoders work in ComfyUI"


def peak_memory(device: torch.device) -> str:
    """This process's peak memory so far, as text: allocated by torch on a CUDA device, otherwise resident."""
    if device.type == "cuda":
        # Of DynamicVRAM, torch does not know the weights.
        dynamic = getattr(sys.modules.get("comfy.memory_management"), "aimdo_enabled", False)
        weights = ", without weights" if dynamic else ""
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GB on the GPU{weights}"
    if sys.platform == "win32":
        return "unknown"
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{size * (1 if sys.platform == 'darwin' else 1024) / 2**30:.2f} GB resident"
