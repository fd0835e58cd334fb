"""What a run of the command will do, once the model is loaded: settings, costs, where it writes, what the card says."""

from __future__ import annotations

import argparse
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

from ..samplers.schedules import Noise
from .cost import most_calls
from .gauss_newton import GaussNewton
from .gradient import GradientDescent
from .models.comfy import ComfyModel
from .models.conditioning import Cond
from .options import load_model, model_name, texts_of
from .output import Output
from .teacher import Teacher

__all__ = ["FitPlan", "planned"]


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
        guidance: CFG; 1 makes one pass per call.
        embedded: Guidance that is an input of the model, or None.
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
    guidance: float
    embedded: float | None

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

    def work(self, conds: list[Cond]) -> Path:
        """Returns the folder of what a fit on these prompts goes on from."""
        return self.output.folder / _hash(conds, _stat(self.args), self.guidance, self.embedded, self.shape)

    def told(self) -> str:
        """Returns what will be done, for people."""
        args, cfg = self.args, self.guidance
        return (
            f"{self.model.family} ({self.noise.kind}), {self.model.pixels(self.shape)}, "
            + (f"CFG {cfg:g}" if self.embedded is None else f"embedded guidance {self.embedded:g}")
            + f": {args.family} solvers of {', '.join(map(str, args.steps))} steps from {args.samples} pictures, "
            f"judged on {self.held} more.\nAt most {self.most:,} network calls"
            + (" of two passes each (CFG)" if cfg != 1 else "")
            + f", an eighth to a seventh of it is usual; result: {self.output.solver}"
        )

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
            "guidance": f"{self.guidance:g}" if self.embedded is None else f"{self.embedded:g} (distilled, CFG 1)",
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
    noise, (guidance, embedded) = model.noise(shape), model.guidance(args.guidance)
    if isinstance(settings, GradientDescent) and noise.kind == "vp":
        raise ValueError(
            f"ComfyUI rounds the model time of {model.family} to whole numbers, so no gradient reaches the noise "
            "levels: use --optimizer gauss-newton"
        )
    return FitPlan(args, model, output, prompts, reused, teacher, settings, shape, noise, guidance, embedded)


def _held(args: argparse.Namespace) -> int:
    return math.ceil(args.samples / 3)


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
