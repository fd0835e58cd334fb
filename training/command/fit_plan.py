"""What a run of the command will do, once the model is loaded: settings, costs, where it writes, what the card says."""

from __future__ import annotations

import argparse
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ...samplers.guidance import listed, of_samples, spread
from ...samplers.schedules import Noise
from ..cost import most_calls
from ..data.samples import Samples
from ..data.teacher import Teacher
from ..models.comfy import ComfyModel
from ..models.conditioning import Cond
from ..optimise.gradient import GradientDescent
from ..optimise.levenberg_marquardt import GaussNewton
from ..store.content import add_content
from ..store.output import Output
from .options import load_model, model_name, prompts_of, texts_of

__all__ = ["FitPlan", "guidances", "planned"]


@dataclass(frozen=True, eq=False)
class FitPlan:
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
            history=self.args.history, scanned=self.args.initial == "scan", learn_grid=self.args.learn_grid,
            teacher=self.teacher, settings=self.settings,
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

    def work(self, conds: list[Cond]) -> Path:
        """Returns the folder of what a fit on these prompts goes on from."""
        return self.output.folder / _hash(conds, _stat(self.args), self.guidance, self.shape)

    def told(self) -> str:
        """Returns what will be done, for people."""
        args, embeds = self.args, self.model.embeds_guidance
        usual = "a sixteenth to an eighth" if args.samples <= GaussNewton().core else "a thirtieth to a tenth"
        return (
            f"{self.model.family} ({self.noise.kind}), {self.model.pixels(self.shape)}, "
            f"{'embedded guidance' if embeds else 'CFG'} {listed(self.guidance)}"
            f": {args.family} solvers of {', '.join(map(str, args.steps))} steps from {args.samples} pictures, "
            f"judged on {self.held} more.\nAt most {self.most:,} network calls{self._passes()}"
            f", {usual} of it is usual; result: {self.output.solver}"
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


def planned(
    args: argparse.Namespace,
    comfy: Path,
    output: Output,
    teacher: Teacher,
    settings: GaussNewton | GradientDescent,
    first: bool,
) -> FitPlan:
    """Returns the plan, after loading the model; the first process loads text encoders too where they are needed."""
    texts = texts_of(args, args.samples + _held(args))
    prompts = args.conditioning or output.folder / f"prompts-{_hash(texts, _stat(args))}.safetensors"
    reused = prompts.exists()
    model = load_model(args, comfy, encode=first and not reused)
    shape = model.latent_shape(*(args.size or model.size))
    noise, guidance = model.noise(shape), guidances(args, model)
    if isinstance(settings, GradientDescent) and noise.kind == "vp":
        raise ValueError(
            f"ComfyUI rounds the model time of {model.family} to whole numbers, so no gradient reaches the noise "
            "levels: use --optimizer gauss-newton"
        )
    return FitPlan(args, model, output, prompts, reused, teacher, settings, shape, noise, guidance)


def guidances(args: argparse.Namespace, model: ComfyModel) -> tuple[float, ...]:
    """Returns the guidances of a fit: those that are named, or what is usual and, where it is CFG, a third around it.

    Raises:
        ValueError: There are fewer samples.
    """
    usual = model.usual_guidance
    values = tuple(args.guidance or ((usual,) if model.embeds_guidance else spread(usual, 1 / 3)))
    of_samples(values, args.samples)
    return values


def _held(args: argparse.Namespace) -> int:
    return math.ceil(args.samples / 3)


def _stat(args: argparse.Namespace) -> list[tuple[str, int, int]]:
    """Returns what tells the model's files from others: paths, sizes, times."""
    files = [file for file in (args.checkpoint, args.diffusion_model, *args.clip) if file is not None and file.exists()]
    return [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _hash(*values: object) -> str:
    """Returns a name for values: numbers, texts, encoded prompts."""
    digest = hashlib.sha256()
    add_content(digest, values, repr)
    return digest.hexdigest()[:16]
