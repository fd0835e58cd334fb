"""Command-line options, parsed into frozen records; no argparse object leaves the parsing functions."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...samplers import Guidance
from ...samplers.files.write import check_name, has_suffix
from ..data.batch_limit import MEASURED
from ..data.teacher import TEACHERS
from ..effort import EFFORTS
from ..job import OPTIMIZER_NAMES, FitSettings, make_optimizer
from ..models import Model
from ..models.conditioning import Cond, read_conditioning, write_conditioning
from ..models.host import Host
from ..models.loading import Lora, ModelFiles
from ..optimise.losses import LOSSES
from ..spaces import SPACES
from ..starts.choose import resolve_initial
from ..store.content import content_hash
from ..store.output import Output

__all__ = [
    "PROMPTS",
    "DemoCommand",
    "FitCommand",
    "Prompts",
    "add_model_options",
    "check_demo",
    "join_host_options",
    "model_files",
    "parse_count",
    "parse_fit",
    "parse_guidance",
    "parse_seed",
    "prompts",
]

PROMPTS = Path(__file__).with_name("prompts.txt")


@dataclass(frozen=True)
class Prompts:
    """A text file with one prompt per line and a negative prompt (None: empty), or a file of `encoded` prompts."""

    file: Path = PROMPTS
    negative: str | None = None
    encoded: Path | None = None

    def texts(self, count: int) -> list[str]:
        """The negative prompt and up to `count` prompts."""
        try:
            text = self.file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise ValueError(f"--prompts {self.file} cannot be read ({reason}): pass a text file") from error
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not lines:
            raise ValueError(f"{self.file} contains no prompts: write one per line")
        return [self.negative or "", *lines[:count]]

    def conditioning(self, model: Model, count: int, file: Path | None, log: Callable[[str], None]) -> list[Cond]:
        """The encoded negative prompt and up to `count` prompts: read from `file` if it exists, else written to it."""
        if file is not None and file.exists():
            log(f"encoded prompts: {file}")
            return read_conditioning(file, model.architecture, self.negative)
        texts = self.texts(count)
        if file is not None:
            log(f"encoding {len(texts)} prompts")
        conds = model.encode(texts, log)
        if file is not None:
            write_conditioning(file, conds, texts, model.architecture)
            log(f"encoded prompts written: {file}")
        return conds


@dataclass(frozen=True)
class FitCommand:
    """A fit of a host's model to at most `samples` samples; `guidance`, `size` and `frames` have usual values."""

    files: ModelFiles
    prompts: Prompts
    settings: FitSettings
    samples: int
    microbatch: int
    guidance: tuple[float, ...]
    size: tuple[int, int] | None
    frames: int | None
    output: Output
    dry_run: bool
    recipe: tuple[str, str, int] | None
    """Sampler, scheduler and steps of the teacher, instead of the settings'."""
    text: str
    """The command as reported, in Markdown."""
    teacher_files: ModelFiles | None = None
    teacher_guidance: float | None = None
    of_pictures: bool = False
    """Whether the loss is that of the decoded pictures, instead of the settings'."""

    @property
    def count(self) -> int:
        """Number of samples, held-out ones included."""
        return self.samples + (self.settings.held_out or 0)


@dataclass(frozen=True)
class DemoCommand:
    """The fit of the bundled model; `output` is a folder, the picture shows the `prompts`."""

    output: Path
    overwrite: bool
    prompts: tuple[str, ...]
    steps: int


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options for loading and running a ComfyUI model."""
    add = parser.add_argument
    add("--checkpoint", type=Path, help="checkpoint with model, text encoders and VAE")
    add("--diffusion-model", type=Path, help="diffusion model without text encoders and VAE (FLUX, SD3.x, ...)")
    add("--second-diffusion-model", type=Path,
        help="diffusion model for low noise, as in Wan 2.2 14B; --diffusion-model is that for high noise")  # fmt: skip
    add("--boundary", type=parse_guidance, metavar="SIGMA",
        help="noise level below which the second model runs: 0.875 for Wan 2.2 text to video")  # fmt: skip
    add("--clip", type=Path, nargs="+", default=[], help="text encoders of the model")
    add("--clip-type", help="ComfyUI's type of the --clip files, such as wan (default: the architecture's)")
    add("--lora", nargs="+", action="extend", default=[], metavar="FILE[:STRENGTH]",
        help="LoRAs on the model: files, or names in ComfyUI's folder of LoRAs (default strength: 1)")  # fmt: skip
    add("--vae", type=Path, help="VAE of the model, for the images")
    comfyui = "ComfyUI's folder (default: COMFYUI_PATH, otherwise the one containing this folder)"
    add("--comfyui", type=Path, help=comfyui)
    add("--comfyui-args", default="", metavar="OPTIONS",
        help="options of ComfyUI that your server has, such as \"--lowvram --base-directory D:/AI\"")  # fmt: skip
    add("--prompts", type=Path, default=PROMPTS, help="text file, one prompt per line (default: 200 bundled prompts)")
    add("--negative", help="negative prompt (default: empty)")
    add("--conditioning", type=Path, help="file of encoded prompts: read if it exists, otherwise written")
    add("--size", type=_parse_size, help="WIDTHxHEIGHT in pixels (default: the architecture's training size)")
    add("--frames", type=parse_count, help="frames of a video (default: the architecture's usual number)")
    add("--microbatch", type=parse_count, default=MEASURED,
        help="images per model call, limited by memory (default: what is fastest, up to 8)")  # fmt: skip
    add("--threads", type=parse_count, help="number of CPU threads")


def model_files(args: argparse.Namespace) -> ModelFiles:
    """The model files named by the options of `add_model_options`."""
    host = Host(args.comfyui, tuple(split_words(args.comfyui_args)))
    loras = tuple(Lora.of(text, host) for text in args.lora)
    return ModelFiles(
        args.checkpoint, args.diffusion_model, tuple(args.clip), args.vae, host, args.clip_type,
        args.second_diffusion_model, args.boundary, loras,
    )  # fmt: skip


def split_words(text: str) -> list[str]:
    """The words of a command line; on Windows a backslash is part of a path."""
    return [word.strip("\"'") for word in shlex.split(text, posix=False)] if os.name == "nt" else shlex.split(text)


def join_host_options(arguments: Sequence[str] | None) -> list[str]:
    """The arguments with --comfyui-args and its value as one word: argparse takes the value for an option."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--comfyui-args" in words[:-1]:
        i = words.index("--comfyui-args")
        words[i : i + 2] = [f"--comfyui-args={words[i + 1]}"]
    return words


def prompts(args: argparse.Namespace) -> Prompts:
    """The prompts named by the options of `add_model_options`."""
    return Prompts(args.prompts, args.negative, args.conditioning)


def parse_fit(description: str, arguments: Sequence[str] | None) -> FitCommand | DemoCommand:
    """Parses the arguments of training/fit_weights.py and makes every check that needs no model."""
    parser, arguments = _fit_parser(description), join_host_options(arguments)
    args = parser.parse_args(arguments)
    if args.threads or args.demo:  # more threads only wait for each other on the demo's small tensors
        torch.set_num_threads(args.threads or 1)
    if args.demo:
        check_demo(parser, arguments, args, ("demo", "output", "overwrite", "threads", "prompt", "steps"))
        if len(args.steps) > 1:
            parser.error(f"--demo fits one step count, got {' '.join(map(str, args.steps))}")
        return DemoCommand(Path(args.output or "demo"), args.overwrite, tuple(args.prompt), args.steps[0])
    if args.prompt:
        parser.error("--prompt is for --demo: write prompts into a file, one per line, and pass --prompts FILE")
    files = model_files(args)
    for option, values in (("--steps", args.steps), ("--guidance", args.guidance)):
        if len(values) != len({f"{value:g}" for value in values}):
            raise ValueError(f"{option} contains duplicate values: {' '.join(f'{value:g}' for value in values)}")
    optimizer = make_optimizer(args.optimizer, args.seed, rate=1e-3)  # the papers' rate for latent models
    samples, held_out = EFFORTS[args.effort].sizes(args.samples)
    recipe = _recipe(args.teacher, args.teacher_steps)
    settings = FitSettings(
        args.family, tuple(args.steps), args.history, "ode" if recipe else args.teacher, args.teacher_steps, optimizer,
        "l2" if args.loss == "features" else args.loss, args.initial, held_out=held_out, seed=args.seed,
        effort=args.effort, samples=args.samples,
    )  # fmt: skip
    resolve_initial(settings.initial, settings.family, settings.steps)
    fit_id = content_hash(_reported_command(parser, args, "output"))[:32]
    output = Output(_solver_file(args.output, args.family, files), fit_id, args.overwrite)
    return FitCommand(
        files, prompts(args), settings, samples, args.microbatch, tuple(sorted(args.guidance)), args.size, args.frames,
        output, args.dry_run, recipe, _reported_command(parser, args), _teacher_files(args, files),
        args.teacher_guidance, args.loss == "features",
    )  # fmt: skip


def _teacher_files(args: argparse.Namespace, files: ModelFiles) -> ModelFiles | None:
    """The files of the teacher's own model; None without one."""
    checkpoint, diffusion_model = args.teacher_checkpoint, args.teacher_diffusion_model
    if checkpoint is None and diffusion_model is None:
        return None
    if None not in (checkpoint, diffusion_model):
        raise ValueError("specify the teacher with --teacher-checkpoint or with --teacher-diffusion-model, not both")
    if files.second is not None:
        raise ValueError(
            "with --second-diffusion-model no other file can be the teacher: use the node Fit Learned Solver, whose "
            "teacher_model may be joined too"
        )
    return ModelFiles(checkpoint, diffusion_model, host=files.host)


def _recipe(teacher: str, teacher_steps: int | None) -> tuple[str, str, int] | None:
    """Sampler, scheduler and steps of a teacher such as "euler simple 20"; None for a single word."""
    words = teacher.split()
    if len(words) == 1:
        return None
    if len(words) != 3 or not re.fullmatch("[1-9][0-9]{0,2}", words[2]):
        raise ValueError(
            f'--teacher must be one of {", ".join(TEACHERS)}, or sampler, scheduler and steps such as "euler simple '
            f'20", got {teacher!r}'
        )
    if teacher_steps is not None:
        raise ValueError(f"--teacher {teacher!r} has its own number of steps: remove --teacher-steps")
    return words[0], words[1], int(words[2])


def _reported_command(parser: argparse.ArgumentParser, args: argparse.Namespace, *omitted: str) -> str:
    """The command in Markdown, without defaults and without options that do not change the result."""
    omitted = ("overwrite", "dry_run", "threads", "comfyui", *omitted)
    words = ["python", "training/fit_weights.py"]
    for name, value in vars(args).items():
        if value != parser.get_default(name) and name not in omitted:
            values = ["x".join(map(str, value))] if name == "size" else value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *([] if value is True else map(str, values))]
    return f"`{shlex.join(words)}`"


def _fit_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--demo", action="store_true", help="fit the bundled small model and draw the result")
    add("--prompt", nargs="+", default=[], metavar="TEXT",
        help='with --demo: prompts to draw, such as "red heart" "cat face" (default: eight)')  # fmt: skip
    add_model_options(parser)
    add("--guidance", type=parse_guidance, nargs="+", default=[], metavar="G",
        help="CFG values to fit at, between which the solver interpolates; on FLUX, embedded guidance with CFG 1 "
             "(default: 0.4, 2/3, 1 and 1.6 times the usual one)")  # fmt: skip
    add("--steps", type=parse_count, nargs="+", default=[6],
        help="step counts, in network calls, such as 4 6 8 (default: 6)")  # fmt: skip
    add("--effort", choices=tuple(EFFORTS), default=FitSettings.effort,
        help="how much the fit spends: samples, iterations and peers (default: %(default)s)")  # fmt: skip
    add(
        "--samples",
        type=parse_count,
        help="samples to fit to, at most; an additional third is held out for evaluation (default: the effort's)",
    )
    add("--family", choices=tuple(SPACES), default=FitSettings.family, help="form of the solver (default: %(default)s)")
    add("--history", type=parse_count,
        help="number of most recent network calls that a step may use (default: 3)")  # fmt: skip
    add("--teacher", default="ode",
        help=f"many-step solver to imitate: {', '.join(TEACHERS)}; or what you sample with today, such as "
             '"euler simple 20": sampler, scheduler and steps (default: ode)')  # fmt: skip
    add(
        "--teacher-steps",
        type=parse_count,
        help="steps of the teacher; heun makes two calls in each (default: 6 times the largest of --steps, 12 if "
        "thorough, and at least 20)",
    )
    add("--teacher-checkpoint", type=Path,
        help="checkpoint of another model as the teacher, with the same latent space and text encoders: a quantised "
             "model or one with a LoRA learns from the original")  # fmt: skip
    add("--teacher-diffusion-model", type=Path, help="the same, from a file with the diffusion model alone")
    add("--teacher-guidance", type=parse_guidance, metavar="G",
        help="guidance of the teacher (default: that of --guidance)")  # fmt: skip
    add("--seed", type=parse_seed, default=0, help="seed of the initial noise (default: 0)")
    add("--optimizer", choices=OPTIMIZER_NAMES, default="gauss-newton",
        help="gauss-newton is Levenberg-Marquardt without backpropagation (default: gauss-newton)")  # fmt: skip
    add("--loss", choices=(*LOSSES, "features"), default="l2",
        help="distance to the teacher to minimise; features is that of the pictures, decoded by --vae, for which the "
             "approximate ones (TAESD) cost least (default: l2)")  # fmt: skip
    add("--initial", default="path",
        help="initial solver: path (along the teacher's path), the name of a classical solver, or a solver file "
             "(default: path)")  # fmt: skip
    add("--output",
        help="solver file, or a bare name for one in ComfyUI's models/solver_weights (default: family and model "
             "name); with --demo, a folder (default: demo)")  # fmt: skip
    add("--overwrite", action="store_true", help="replace existing files")
    add("--dry-run", action="store_true", help="print what the fit will do and cost, then stop")
    return parser


def parse_guidance(text: str) -> float:
    """The value of a guidance option."""
    try:
        Guidance("cfg", (float(text),))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a finite number of at least 0, got {text!r}") from None
    return float(text)


def check_demo(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, args: argparse.Namespace, allowed: Collection[str]
) -> None:
    """Refuses options that --demo ignores, all but the `allowed` ones, even at their default value."""
    unset = object()
    given = parser.parse_args(arguments, argparse.Namespace(**dict.fromkeys(vars(args), unset)))
    ignored = [name for name, value in vars(given).items() if name not in allowed and value is not unset]
    if ignored:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in ignored)
        parser.error(f"--demo cannot be combined with {options}")


def parse_count(text: str) -> int:
    """The value of an option that is a count."""
    if not re.fullmatch("[1-9][0-9]{0,6}", text):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 9999999, got {text!r}")
    return int(text)


def parse_seed(text: str) -> int:
    """The value of an option that is a seed."""
    if not re.fullmatch("[0-9]{1,20}", text) or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"must be a whole number below 2^64, got {text!r}")
    return int(text)


def _parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{2,5})x(\d{2,5})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT in pixels, such as 512x512, got {text!r}")
    return int(match[1]), int(match[2])


def _solver_file(output: str | None, family: str, files: ModelFiles) -> Path:
    path = Path(output or f"{family}_{files.name}")
    check_name(path.name)
    plain = path.with_suffix("") if has_suffix(path, ".safetensors") else path  # upper case too
    path = plain.with_name(plain.name + ".safetensors")
    if os.path.dirname(output or ""):  # "./name" is a path, a bare name is in ComfyUI's folder
        return path
    return files.host.solver_folder / path.name
