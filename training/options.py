"""The options that say which model is run: on which prompts, at which guidance and size; and what follows from them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from .models.comfy import ComfyModel
from .models.conditioning import Cond, read_conditioning, write_conditioning

__all__ = ["add_model_options", "conditioning_of", "guidance_of", "load_model", "pixels_of"]

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
    add("--negative", default="", help="negative prompt")
    add("--conditioning", type=Path, help="file of encoded prompts: reused where it exists, else written")
    add("--guidance", type=float, default=None, help="CFG; on FLUX the embedded guidance, with CFG 1")
    add("--size", type=pixels_of, default=(512, 512), help="WIDTHxHEIGHT in pixels")
    add("--microbatch", type=int, default=1, help="pictures per model call, as memory allows")
    add("--threads", type=int, help="CPU threads")


def load_model(args: argparse.Namespace, comfy: Path) -> ComfyModel:
    """Returns the model that the options name, with text encoders only where prompts must be encoded."""
    reuse = args.conditioning is not None and args.conditioning.exists()
    return ComfyModel.load(
        comfy, checkpoint=args.checkpoint, diffusion_model=args.diffusion_model, clip=args.clip, vae=args.vae,
        text_encoders=not reuse,
    )  # fmt: skip


def conditioning_of(args: argparse.Namespace, model: ComfyModel, count: int, say: Callable[[str], None]) -> list[Cond]:
    """Returns the encoded negative prompt and up to `count` prompts, from a file or from the text encoders."""
    if args.conditioning is not None and args.conditioning.exists():
        say(f"encoded prompts: {args.conditioning}")
        return read_conditioning(args.conditioning)
    lines = [line.strip() for line in args.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{args.prompts} holds no prompts: one per line")
    lines = [args.negative, *lines[:count]]
    conds = model.encode(lines, say)
    if args.conditioning is not None:
        write_conditioning(args.conditioning, conds, lines)
        say(f"encoded prompts written: {args.conditioning}")
    return conds


def guidance_of(args: argparse.Namespace, model: ComfyModel) -> tuple[float, float | None]:
    """Returns CFG, and the guidance that is an input of the model or None."""
    if model.family in ("Flux", "FluxInpaint", "HunyuanVideo"):
        return 1.0, 3.5 if args.guidance is None else args.guidance
    return (7.5 if args.guidance is None else args.guidance), None


def pixels_of(text: str) -> tuple[int, int]:
    """Returns (width, height) of WIDTHxHEIGHT."""
    match = re.fullmatch(r"(\d{2,5})x(\d{2,5})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT in pixels, got {text!r}: 512x512, 1024x1024")
    return int(match[1]), int(match[2])
