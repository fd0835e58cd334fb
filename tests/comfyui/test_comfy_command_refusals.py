"""Wrong files and sizes in the commands of a fit: one process with a real ComfyUI reports each of them."""

from __future__ import annotations

import json
import re

import pytest
import torch
from comfy_commands import SD3, fit_command, run, write_random
from comfy_host import ROOT
from safetensors.torch import save_file

pytestmark = [pytest.mark.comfy, pytest.mark.slow]

REFUSALS = """
import json, sys
sys.path.append(sys.argv[1])
import _as_package
from learned_solvers.training.fit_weights import main

for options in json.loads(sys.argv[2]):
    try:
        main([*sys.argv[3:], *options])
    except SystemExit as stopped:
        print(f"exit {stopped.code}", file=sys.stderr)
"""
VAE, DRY = "{}/models/vae/tiny_taesd.safetensors", "--dry-run"
SD3_MODEL = "{}/models/diffusion_models/tiny_sd3.safetensors"
WRONG = {  # options, and a pattern of the message
    "prompts": (["--conditioning", "{}/other.safetensors"], "pass another file with --conditioning"),
    "prompts with another teacher": (
        ["--conditioning", "{}/other.safetensors", "--teacher-guidance", "3"],
        "first call .* pass another file with --conditioning",
    ),
    "size": (["--size", "60x64"], "--size must be multiples of 8 for SD3, got 60x64: use 64x64"),
    "kind": ([DRY, "--clip", VAE], r"cannot load .*/tiny_taesd\.safetensors \(.*pass the model's text encoders"),
    "text encoder": (
        [DRY, "--diffusion-model", SD3_MODEL],
        r"first call .*: if the text encoders .*/tiny_clip_l\.pth are for another model, pass the right ones",
    ),
    "vae": (
        [DRY, "--vae", VAE],
        r"latents have 4 channels, but those of SD3 have 16\): pass the model's VAE with --vae",
    ),
    "teacher": (
        [DRY, "--teacher-checkpoint", "{}/models/checkpoints/tiny_sd15_whole.ckpt"],
        "SD3 and SD15 have different latent spaces",
    ),
    "loss": ([DRY, "--loss", "features"], "this model has no VAE: pass one with --vae"),
    "absent lora": (["--lora", "style.safetensors:1"], "style.safetensors is no file, and not in .*loras"),
    "lora": (
        [DRY, "--lora", "{}/models/loras/tiny_lora.safetensors"],
        r"the LoRA .*/tiny_lora.safetensors has no weights for this model \(SD3\)",
    ),
    "lora of two": (
        [
            "--lora",
            "{}/models/loras/tiny_sd3_lora.safetensors",
            "--second-diffusion-model",
            SD3_MODEL,
            "--boundary",
            ".5",
        ],
        "with --second-diffusion-model there is no --lora",
    ),
    "gguf": (["--diffusion-model", "{}/model.gguf"], r"model\.gguf is for the custom nodes ComfyUI-GGUF, which run in"),
    "nunchaku": (
        ["--diffusion-model", "{}/svdq-int4_r32.safetensors"],
        "ComfyUI-nunchaku, which run in ComfyUI only: load it there, and fit with the node Fit Learned Solver",
    ),
    "model": (
        [DRY, "--diffusion-model", VAE],
        r"cannot load .*/tiny_taesd\.safetensors .*: pass a diffusion model with --diffusion-model",
    ),
}


@pytest.fixture(scope="module")
def messages(base) -> list[str]:
    """The messages of the wrong commands, in their order."""
    write_random(base / "other.safetensors", "SD3", 32, pooled=32)
    (base / "model.gguf").write_bytes(b"GGUF\3\0\0\0")
    save_file({"blocks.0.qkv.wscales": torch.ones(1)}, base / "svdq-int4_r32.safetensors")
    options = [[word.format(base) for word in wrong] for wrong, _ in WRONG.values()]
    python, _, *arguments = fit_command(base, SD3, base / "wrong.safetensors", guidance=(1, 2, 3), microbatch=2)
    stderr = run([python, "-c", REFUSALS, str(ROOT / "training"), json.dumps(options), *arguments]).stderr
    *messages, rest = stderr.split("exit 1\n")
    assert len(messages) == len(WRONG) and not rest, stderr
    return messages


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_or_size_is_refused(messages, name):
    assert re.search(WRONG[name][1], messages[list(WRONG).index(name)])
