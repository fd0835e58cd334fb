"""The example workflows as files: what ComfyUI's page would send for them, and the same on tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "example_workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
TINY = {  # input: value on tiny models
    "ckpt_name": "tiny_sd15_whole.ckpt",
    "unet_name": "tiny_flux_clip.safetensors",
    "vae_name": "tiny_taef1.safetensors",
    "width": 64,
    "height": 64,
    "samples": 2,
    "teacher_steps": 4,
    "file_name": "dyweight_example",
}
_AFTER_GENERATE = ("fixed", "increment", "decrement", "randomize")  # a widget of the page alone, behind a seed


def workflow(name: str) -> dict[str, Any]:
    """Returns a shipped workflow."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def api_prompt(saved: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the API prompt of a saved workflow of plain nodes, notes left out."""
    wires = {link[0]: [str(link[1]), link[2]] for link in saved["links"]}
    prompt = {}
    for node in saved["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        values = list(node.get("widgets_values") or [])
        inputs = {}
        for entry in node["inputs"]:
            if "widget" in entry and values:
                inputs[entry["name"]] = values.pop(0)
                if entry["name"] == "seed" and values and values[0] in _AFTER_GENERATE:
                    values.pop(0)
            if entry["link"] is not None:
                inputs[entry["name"]] = wires[entry["link"]]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def on_tiny_models(prompt: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns the prompt with tiny files, sizes and numbers of samples; nodes and wires stay as they are.

    But for FLUX's pair of text encoders: the tiny one is CLIP-L alone.
    """
    tiny = {}
    for key, node in prompt.items():
        kind, inputs = (
            node["class_type"],
            {k: v if isinstance(v, list) else TINY.get(k, v) for k, v in node["inputs"].items()},
        )
        if kind == "DualCLIPLoader":
            kind, inputs = "CLIPLoader", {"clip_name": "tiny_clip_l.pth", "type": "stable_diffusion"}
        if kind == "FitLearnedSolver":
            inputs["steps"] = "2"
        tiny[key] = {"class_type": kind, "inputs": inputs}
    return tiny
