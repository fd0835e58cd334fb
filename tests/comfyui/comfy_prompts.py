"""API prompts for the tiny models, sampled with SamplerCustomAdvanced."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from comfy_host import Server
from safetensors.torch import load_file
from torch import Tensor

Prompt = dict[str, dict[str, Any]]
WIRES = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}


@dataclass(frozen=True)
class Model:
    """A tiny model: stem of its file, conditioning (tokens, dim, pooled), latent node, VAE, second text encoder."""

    file: str
    tokens: int
    dim: int
    pooled: int
    latent: str = "EmptySD3LatentImage"
    vae: str | None = "taef1"
    t5: int = 0


MODELS = {
    "sd15": Model("tiny_sd15", 77, 768, 0, "EmptyLatentImage", "taesd"),
    "sd3": Model("tiny_sd3", 8, 64, 32),
    "flux": Model("tiny_flux", 8, 64, 768),
    "wan": Model("tiny_wan", 8, 4096, 0, "EmptyHunyuanLatentVideo", None),
    "hunyuanvideo": Model("tiny_hunyuanvideo", 8, 64, 768, "EmptyHunyuanLatentVideo", None),
    "hydit": Model("tiny_hydit", 77, 1024, 1024, "EmptyLatentImage", "taesd", t5=256),
    "ltxav": Model("tiny_ltxav", 8, 128, 0, "EmptyLTXVLatentVideo", None),
}


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def model_nodes(server: Server, name: str, *, width: int = 64, height: int = 64, batch: int = 1) -> Prompt:
    """Nodes 1 model, 2 and 3 conditioning, 4 latent, 5 noise."""
    model = MODELS[name]
    unets = server.get("/object_info/UNETLoader")["UNETLoader"]["input"]["required"]["unet_name"]
    files = unets[0] if isinstance(unets[0], list) else unets[1]["options"]
    file = next((f for f in files if Path(f).stem == model.file), None)
    if file is None:
        pytest.skip(f"this ComfyUI has no {name} model: set COMFYUI_PATH to a newer one")
    dim = 4096 if file == "tiny_flux.pth" else model.dim  # an old core's FLUX has its full width
    cond = {"tokens": model.tokens, "dim": dim, "pooled": model.pooled, "t5": model.t5}
    video = {} if model.vae else {"length": 5}
    return {
        "1": node("UNETLoader", unet_name=file, weight_dtype="default"),
        "2": node("TinyConditioning", **cond, seed=1),
        "3": node("TinyConditioning", **cond, seed=2),
        "4": node(model.latent, width=width, height=height, batch_size=batch, **video),
        "5": node("RandomNoise", noise_seed=7),
    }


def learned(solver: str = "auto", steps: int = 6, denoise: float = 1.0, latent: bool = True) -> dict[str, Any]:
    wires = {"latent": ["4", 0]} if latent else {}
    return node("LearnedSolver", model=["1", 0], solver=solver, steps=steps, denoise=denoise, **wires)


def sampled(prompt: Prompt, sampler: list[Any], sigmas: list[Any], prefix: str, *, cfg: float = 2.0) -> Prompt:
    """Adds guider, SamplerCustomAdvanced and SaveLatent; keys start with the prefix."""
    guider = node("CFGGuider", model=["1", 0], positive=["2", 0], negative=["3", 0], cfg=cfg)
    run = node(
        "SamplerCustomAdvanced",
        noise=["5", 0],
        guider=[f"{prefix}guider", 0],
        sampler=sampler,
        sigmas=sigmas,
        latent_image=["4", 0],
    )
    save = node("SaveLatent", samples=[f"{prefix}run", 0], filename_prefix=f"latents/{prefix}")
    return {**prompt, f"{prefix}guider": guider, f"{prefix}run": run, f"{prefix}save": save}


def with_picture(prompt: Prompt, name: str, prefix: str) -> Prompt:
    """Adds VAE, decoding and SaveImage to a prompt made by `sampled`."""
    return {
        **prompt,
        "vae": node("VAELoader", vae_name=MODELS[name].vae),
        "decode": node("VAEDecode", samples=[f"{prefix}run", 0], vae=["vae", 0]),
        "picture": node("SaveImage", images=["decode", 0], filename_prefix=prefix),
    }


def saved_latent(server: Server, history: dict[str, Any], prefix: str) -> Tensor:
    """Returns what SaveLatent wrote, from the file on disk."""
    entry = history["outputs"][f"{prefix}save"]["latents"][0]
    return load_file(server.base / "output" / entry["subfolder"] / entry["filename"])["latent_tensor"]


def ksampler(sampler: str, steps: int, scheduler: str = "simple", model: Any = ("1", 0), **more: Any) -> dict[str, Any]:
    """Returns the stock KSampler."""
    own = {"seed": 7, "cfg": 2.0, "denoise": 1.0, **WIRES, "model": list(model), **more}
    return node("KSampler", sampler_name=sampler, scheduler=scheduler, steps=steps, **own)


def one_node(solver: str, steps: int, **more: Any) -> dict[str, Any]:
    """Returns KSampler (Learned Solver)."""
    own = {"seed": 7, "cfg": 2.0, "denoise": 1.0, **WIRES, **more}
    return node("LearnedSolverKSampler", solver=solver, steps=steps, **own)


def saved(prompt: Prompt, **runs: dict[str, Any]) -> Prompt:
    """Returns the prompt with a node and a SaveLatent per name added."""
    for name, run in runs.items():
        prompt = {**prompt, name: run, f"{name}save": node("SaveLatent", samples=[name, 0], filename_prefix=name)}
    return prompt
