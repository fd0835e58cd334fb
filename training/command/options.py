"""The options that say which model is run, on which prompts and at which size; and what follows from them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from ..models.comfy import ComfyModel
from ..models.conditioning import Cond, read_conditioning, write_conditioning

__all__ = [
    "PROMPTS",
    "add_model_options",
    "check_demo",
    "count_of",
    "encoded_prompts",
    "load_model",
    "model_name",
    "per_sample",
    "prompts_of",
    "seed_of",
    "texts_of",
]

PROMPTS = Path(__file__).with_name("prompts.txt")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that every command on a model of ComfyUI's has."""
    add = parser.add_argument
    add("--checkpoint", type=Path, help="checkpoint with model, text encoders and VAE")
    add("--diffusion-model", type=Path, help="diffusion model alone (FLUX, SD3.x, ...)")
    add("--clip", type=Path, nargs="+", default=[], help="its text encoders")
    add("--vae", type=Path, help="its VAE, for the pictures")
    add("--comfyui", type=Path, help="ComfyUI's folder")
    add("--prompts", type=Path, default=PROMPTS, help="text file, a prompt per line (200 of our own)")
    add("--negative", help="negative prompt (empty)")
    add("--conditioning", type=Path, help="file of encoded prompts: reused where it exists, else written")
    add("--size", type=_size, help="WIDTHxHEIGHT in pixels (what the architecture was trained on)")
    add("--microbatch", type=count_of, default=1, help="pictures per model call, as memory allows")
    add("--threads", type=count_of, help="CPU threads")


def load_model(args: argparse.Namespace, comfy: Path, *, encode: bool) -> ComfyModel:
    """Returns the model that the options name, with text encoders only where prompts must be encoded."""
    return ComfyModel.load(
        comfy,
        checkpoint=args.checkpoint,
        diffusion_model=args.diffusion_model,
        clip=args.clip,
        vae=args.vae,
        text_encoders=encode,
    )


def model_name(args: argparse.Namespace) -> str:
    """Returns the model file's name without its ending; "model" where none is named."""
    file = args.checkpoint or args.diffusion_model
    return file.stem if file else "model"


def texts_of(args: argparse.Namespace, count: int) -> list[str]:
    """Returns the negative prompt and up to `count` prompts.

    Raises:
        ValueError: The file of prompts cannot be read, or it is empty.
    """
    try:
        text = args.prompts.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ValueError(f"--prompts {args.prompts} cannot be read ({reason}): name a text file") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{args.prompts} holds no prompts: one per line")
    return [args.negative or "", *lines[:count]]


def encoded_prompts(
    args: argparse.Namespace, model: ComfyModel, count: int, file: Path | None, say: Callable[[str], None]
) -> list[Cond]:
    """Returns the encoded negative prompt and up to `count` prompts: from the file where it exists, else written to it.

    Raises:
        ValueError: The file belongs to another architecture or negative prompt, or there is no text encoder.
    """
    if file is not None and file.exists():
        say(f"encoded prompts: {file}")
        return read_conditioning(file, model.family, args.negative)
    lines = texts_of(args, count)
    conds = model.encode(lines, say)
    if file is not None:
        write_conditioning(file, conds, lines, model.family)
        say(f"encoded prompts written: {file}")
    return conds


def prompts_of(conds: Sequence[Cond], count: int) -> list[list[int]]:
    """Returns the number of each sample's prompt, as samples carry it; number 0 is the negative one."""
    return [[1 + i % (len(conds) - 1)] for i in range(count)]


def per_sample(denoiser: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns a ComfyModel's denoiser for prompts as `prompts_of` has them, and a guidance per sample."""
    return lambda x, sigma, prompt, guidance: denoiser(x, sigma, [p[0] for p in prompt], guidance)


def count_of(text: str) -> int:
    """Returns the number of an option that counts something."""
    if not re.fullmatch("[1-9][0-9]{0,6}", text):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 9999999, got {text!r}")
    return int(text)


def seed_of(text: str) -> int:
    """Returns the number of an option that seeds random numbers."""
    if not re.fullmatch("[0-9]{1,20}", text) or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"must be a whole number below 2^64, got {text!r}")
    return int(text)


def check_demo(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, args: argparse.Namespace, own: Sequence[str]
) -> None:
    """Refuses options that --demo would not follow.

    Args:
        parser: The command's.
        arguments: What was typed; None: the process's own.
        args: What that means.
        own: Names of the options that the demo has too.
    """
    # Also what was given as the default has it: parsed again over what nobody gives.
    nobody = object()
    given = argparse.Namespace(**dict.fromkeys(vars(args), nobody))
    parser.parse_args(arguments, given)
    ignored = [name for name, value in vars(given).items() if name not in own and value is not nobody]
    if ignored:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in ignored)
        parser.error(f"--demo has a model and settings of its own: leave {options} out")


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{2,5})x(\d{2,5})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT in pixels, such as 512x512, got {text!r}")
    return int(match[1]), int(match[2])
