"""The options of the commands, parsed into frozen records: no argparse object goes further."""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...samplers import Guidance
from ...samplers.files.write import check_name, has_suffix
from ..data.teacher import TEACHERS, Teacher
from ..job import OPTIMIZER_NAMES, FitSettings, make_optimizer
from ..models import Model
from ..models.conditioning import Cond, read_conditioning, write_conditioning
from ..models.loading import ModelFiles
from ..optimise.losses import LOSSES
from ..spaces import SPACES
from ..starts.choose import resolve_initial
from ..store.output import Output

__all__ = [
    "PROMPTS",
    "DemoCommand",
    "FitCommand",
    "Prompts",
    "add_model_options",
    "check_demo",
    "count_of",
    "guidance_value",
    "model_files",
    "parse_fit",
    "prompts",
    "seed_of",
]

PROMPTS = Path(__file__).with_name("prompts.txt")


@dataclass(frozen=True)
class Prompts:
    """Prompts of a text file, one per line, with a negative one (None: empty); or a file of `encoded` prompts."""

    file: Path = PROMPTS
    negative: str | None = None
    encoded: Path | None = None

    def texts(self, count: int) -> list[str]:
        """The negative prompt and up to `count` prompts."""
        try:
            text = self.file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise ValueError(f"--prompts {self.file} cannot be read ({reason}): name a text file") from error
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not lines:
            raise ValueError(f"{self.file} holds no prompts: one per line")
        return [self.negative or "", *lines[:count]]

    def conditioning(self, model: Model, count: int, file: Path | None, log: Callable[[str], None]) -> list[Cond]:
        """The encoded negative prompt and up to `count` prompts: from a file where it exists, else written to it."""
        if file is not None and file.exists():
            log(f"encoded prompts: {file}")
            return read_conditioning(file, model.architecture, self.negative)
        texts = self.texts(count)
        conds = model.encode(texts, log)
        if file is not None:
            write_conditioning(file, conds, texts, model.architecture)
            log(f"encoded prompts written: {file}")
        return conds


@dataclass(frozen=True)
class FitCommand:
    """A fit of a host's model to so many samples; without `guidance` and `size`, at what is usual for the model."""

    files: ModelFiles
    prompts: Prompts
    settings: FitSettings
    samples: int
    microbatch: int
    guidance: tuple[float, ...]
    size: tuple[int, int] | None
    output: Output
    dry_run: bool

    @property
    def count(self) -> int:
        """Number of all samples."""
        return self.samples + (self.settings.held_out or 0)


@dataclass(frozen=True)
class DemoCommand:
    """The fit of the bundled small model, into a folder."""

    output: Path
    overwrite: bool


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that every command on a model of ComfyUI's has."""
    add = parser.add_argument
    add("--checkpoint", type=Path, help="checkpoint with model, text encoders and VAE")
    add("--diffusion-model", type=Path, help="diffusion model alone (FLUX, SD3.x, ...)")
    add("--clip", type=Path, nargs="+", default=[], help="its text encoders")
    add("--vae", type=Path, help="its VAE, for the pictures")
    add("--comfyui", type=Path, help="ComfyUI's folder")
    add("--prompts", type=Path, default=PROMPTS, help="text file, a prompt per line (200 bundled ones)")
    add("--negative", help="negative prompt (empty)")
    add("--conditioning", type=Path, help="file of encoded prompts: reused where it exists, else written")
    add("--size", type=_size, help="WIDTHxHEIGHT in pixels (what the architecture was trained on)")
    add("--microbatch", type=count_of, default=1, help="pictures per model call, as memory allows")
    add("--threads", type=count_of, help="CPU threads")


def model_files(args: argparse.Namespace) -> ModelFiles:
    """The files that the options of `add_model_options` name."""
    return ModelFiles(args.checkpoint, args.diffusion_model, tuple(args.clip), args.vae, args.comfyui)


def prompts(args: argparse.Namespace) -> Prompts:
    """The prompts that the options of `add_model_options` name."""
    return Prompts(args.prompts, args.negative, args.conditioning)


def parse_fit(description: str, arguments: Sequence[str] | None) -> FitCommand | DemoCommand:
    """What the arguments of training/fit_weights.py ask for, after all checks that need no model."""
    parser = _fit_parser(description)
    args = parser.parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.demo:
        check_demo(parser, arguments, args, ("demo", "output", "overwrite", "threads"))
        return DemoCommand(Path(args.output or "demo"), args.overwrite)
    files = model_files(args)
    for option, values in (("--steps", args.steps), ("--guidance", args.guidance)):
        if len(values) != len({f"{value:g}" for value in values}):
            raise ValueError(f"{option} names a value twice: {' '.join(f'{value:g}' for value in values)}")
    optimizer = make_optimizer(args.optimizer, args.seed, rate=1e-3)  # the papers' rate for latent models
    settings = FitSettings(
        args.family, tuple(args.steps), args.history, Teacher(args.teacher, args.teacher_steps), optimizer, args.loss,
        args.initial, args.learn_grid, held_out=math.ceil(args.samples / 3), seed=args.seed,
    )  # fmt: skip
    resolve_initial(settings.initial, settings.family, settings.steps)
    output = Output(_solver_file(args.output, args.family, files), _words(parser, args), args.overwrite)
    return FitCommand(
        files, prompts(args), settings, args.samples, args.microbatch, tuple(sorted(args.guidance)), args.size, output,
        args.dry_run,
    )  # fmt: skip


def _words(parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """The command in Markdown, without defaults and the options that do not change the result."""
    words = ["python", "training/fit_weights.py"]
    for name, value in vars(args).items():
        if value != parser.get_default(name) and name not in ("overwrite", "dry_run", "threads", "comfyui"):
            values = ["x".join(map(str, value))] if name == "size" else value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *([] if value is True else map(str, values))]
    return f"`{shlex.join(words)}`"


def _fit_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--demo", action="store_true", help="fit the bundled small model and draw the result")
    add_model_options(parser)
    add("--guidance", type=guidance_value, nargs="+", default=[], metavar="G",
        help="CFG; several: each sample has one of them in turn (two thirds, one and four thirds of what is usual for "
             "the architecture); on FLUX the embedded guidance, with CFG 1 (the usual one)")  # fmt: skip
    add("--steps", type=count_of, nargs="+", default=[4, 6, 8], help="step counts, in network calls")
    add("--samples", type=count_of, default=64, help="pictures to fit to; a third as many more judge")
    add("--family", choices=tuple(SPACES), default=FitSettings.family)
    history = "newest calls that a step may use (3; 6 with 256 samples and more, where Gauss-Newton starts from a scan)"
    add("--history", type=count_of, help=history)
    add("--teacher", choices=TEACHERS, default="heun")
    add("--teacher-steps", type=count_of, default=30, help="30 steps of Heun are 59 calls")
    add("--seed", type=seed_of, default=0)
    add("--optimizer", choices=OPTIMIZER_NAMES, default="gauss-newton")
    add("--loss", choices=LOSSES, default="l2")
    add("--initial", default="scan", help="scan, a classical solver, or a solver file to go on from")
    add("--learn-grid", action="store_true", help="learn the grid's shift or rho too, where the family has a grid")
    add("--output", help="solver file, or a name for ComfyUI's models/solver_weights; --demo: a folder")
    add("--overwrite", action="store_true", help="replace files that exist")
    add("--dry-run", action="store_true", help="say what it will do and cost, and stop")
    return parser


def guidance_value(text: str) -> float:
    """The number of an option for guidance."""
    try:
        Guidance("cfg", (float(text),))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a finite number of at least 0, got {text!r}") from None
    return float(text)


def check_demo(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, args: argparse.Namespace, known: Collection[str]
) -> None:
    """Refuses options other than the `known` ones, which --demo would not follow; also those given as by default."""
    unset = object()
    given = parser.parse_args(arguments, argparse.Namespace(**dict.fromkeys(vars(args), unset)))
    ignored = [name for name, value in vars(given).items() if name not in known and value is not unset]
    if ignored:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in ignored)
        parser.error(f"--demo cannot be combined with {options}")


def count_of(text: str) -> int:
    """The number of an option that counts something."""
    if not re.fullmatch("[1-9][0-9]{0,6}", text):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 9999999, got {text!r}")
    return int(text)


def seed_of(text: str) -> int:
    """The number of an option that seeds random numbers."""
    if not re.fullmatch("[0-9]{1,20}", text) or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"must be a whole number below 2^64, got {text!r}")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{2,5})x(\d{2,5})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT in pixels, such as 512x512, got {text!r}")
    return int(match[1]), int(match[2])


def _solver_file(output: str | None, family: str, files: ModelFiles) -> Path:
    path = Path(output or f"{family}_{files.name}")
    check_name(path.name)
    plain = path.with_suffix("") if has_suffix(path, ".safetensors") else path  # in any case, ".SAFETENSORS" too
    path = plain.with_name(plain.name + ".safetensors")
    if os.path.dirname(output or ""):  # "./name" is a place, a name alone is ComfyUI's
        return path
    return files.comfy / "models" / "solver_weights" / path.name
