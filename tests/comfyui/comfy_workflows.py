"""The example workflows as files, and on tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from comfy_host import Server
from comfy_prompts import options
from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
TINY = {  # input: value on tiny models
    "ckpt_name": "tiny_sd15_whole.ckpt",
    "unet_name": "tiny_flux_clip.safetensors",
    "vae_name": "tiny_taef1.safetensors",
    "width": 64,
    "height": 64,
    "samples": 3,
    "teacher_steps": 4,
    "file_name": "dyweight_example",
}


def workflow(name: str) -> dict[str, Any]:
    """A shipped workflow."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def tiny_workflow(server: Server, name: str) -> dict[str, Any]:
    """A shipped workflow with tiny files, sizes and numbers of samples; nodes and wires stay as they are.

    Except for FLUX's pair of text encoders: the tiny one is CLIP-L alone.
    """
    if name == "flux_first_image" and TINY["unet_name"] not in options(server, "UNETLoader", "unet_name"):
        pytest.skip("this ComfyUI fixes FLUX's width: no tiny FLUX for CLIP-L's text; see ComfyUI 0.33.0")
    Image.linear_gradient("L").convert("RGB").resize((64, 64)).save(server.base / "input" / "example.png")
    saved = workflow(name)
    for node in saved["nodes"]:
        if node["type"] == "DualCLIPLoader":
            node["type"], node["properties"] = "CLIPLoader", {}
            names = ("clip_name", "type", "device")
            node["inputs"] = [{"name": n, "type": "COMBO", "widget": {"name": n}, "link": None} for n in names]
            node["widgets_values"] = ["tiny_clip_l.pth", "stable_diffusion", "default"]
        tiny = TINY | ({"steps": "1"} if node["type"] == "FitLearnedSolver" else {})
        names = [entry["name"] for entry in node["inputs"] if "widget" in entry]
        values = node.get("widgets_values") or []
        if "seed" in names and {"fixed", "randomize"} & {*map(str, values)}:  # the page's own widget after a seed
            names.insert(names.index("seed") + 1, "control_after_generate")
        node["widgets_values"] = [tiny.get(name, value) for name, value in zip(names, values, strict=False)]
    return saved


def with_known_pictures(saved: dict[str, Any]) -> dict[str, Any]:
    """The workflow with the test pack's checkpoint whose pictures are known, where it loads one."""
    for node in saved["nodes"]:
        if node["type"] == "CheckpointLoaderSimple":
            node["type"], node["widgets_values"] = "TinyPicture", [TINY["ckpt_name"]]
    return saved
