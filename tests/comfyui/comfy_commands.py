"""The commands of the folder training as command lines, for a real ComfyUI's loaders and tiny models."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from comfy_host import NO_COMFYUI, ROOT, checkouts, python_of
from learned_solvers.training.models.conditioning import write_conditioning

CHECKOUT = next(iter(checkouts()), None)
if CHECKOUT is None:
    pytest.skip(NO_COMFYUI, allow_module_level=True)
SAMPLES, TEACHER_STEPS = 4, 5
CLIP = {"clip": "text_encoders/tiny_clip_l.pth"}
SD3 = {"diffusion_model": "diffusion_models/tiny_sd3_clip.safetensors", **CLIP}
FLUX = {"diffusion_model": "diffusion_models/tiny_flux_clip.safetensors", **CLIP}


def command_line(script: str, **options: object) -> list[str]:
    """A command of the folder training; an option has one value, several in a tuple, or True for none."""
    options = {"comfyui": CHECKOUT, "size": "64x64", "threads": 1, **options}
    command = [str(python_of(CHECKOUT)), str(ROOT / "training" / script)]
    for name, value in options.items():
        values = () if value is True else value if isinstance(value, tuple) else (value,)
        command += [f"--{name.replace('_', '-')}", *map(str, values)]
    return command


def fit_command(base: Path, files: dict[str, str], output: Path, **options: object) -> list[str]:
    """The command of a fit."""
    paths = {name: base / "models" / file for name, file in files.items()}
    settings = {"steps": 2, "samples": SAMPLES, "microbatch": 4, "teacher": "heun"}
    settings |= {"teacher_steps": TEACHER_STEPS, "output": output}
    return command_line("fit_weights.py", **{**paths, **settings, **options})


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=600)


def output_of(completed: subprocess.CompletedProcess[str]) -> str:
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout


def write_random(path: Path, architecture: str, dim: int, tokens: int = 8, pooled: int = 0) -> None:
    """Writes encoded prompts."""
    generator = torch.Generator().manual_seed(0)
    conds = [{"context": torch.randn(1, tokens, dim, generator=generator)} for _ in range(5)]
    for cond in conds if pooled else ():
        cond["pooled_output"] = torch.randn(1, pooled, generator=generator)
    write_conditioning(path, conds, [str(i) for i in range(5)], architecture)


def has_model(base: Path, files: dict[str, str]) -> bool:
    return all((base / "models" / file).exists() for file in files.values())


def require_model(base: Path, files: dict[str, str]) -> None:
    """Skips the test where an old core's FLUX has its full width."""
    if not has_model(base, files):
        pytest.skip("this core fixes FLUX's width: a tiny one cannot be made")
