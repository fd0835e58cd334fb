"""The example workflows as files: on tiny models, and what ComfyUI's page sends for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
        inputs = {entry["name"]: node["widgets_values"][place] for entry, place in _widgets(node)}
        inputs |= {entry["name"]: wires[entry["link"]] for entry in node["inputs"] if entry["link"] is not None}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def on_tiny_models(saved: dict[str, Any]) -> dict[str, Any]:
    """Changes a saved workflow to tiny files, sizes and numbers of samples; nodes and wires stay as they are.

    But for FLUX's pair of text encoders: the tiny one is CLIP-L alone.
    """
    for node in saved["nodes"]:
        if node["type"] == "DualCLIPLoader":
            node["type"], node["properties"] = "CLIPLoader", {}
            names = ("clip_name", "type", "device")
            node["inputs"] = [{"name": n, "type": "COMBO", "widget": {"name": n}, "link": None} for n in names]
            node["widgets_values"] = ["tiny_clip_l.pth", "stable_diffusion", "default"]
        tiny = TINY | ({"steps": "1"} if node["type"] == "FitLearnedSolver" else {})
        for entry, place in _widgets(node):
            values = node["widgets_values"]
            values[place] = tiny.get(entry["name"], values[place])
    return saved


def with_known_pictures(saved: dict[str, Any]) -> dict[str, Any]:
    """Changes a saved workflow to the test pack's checkpoint whose pictures are known, where it loads one."""
    for node in saved["nodes"]:
        if node["type"] == "CheckpointLoaderSimple":
            node["type"], node["widgets_values"] = "TinyPicture", [TINY["ckpt_name"]]
    return saved


def _widgets(node: dict[str, Any]) -> Iterator[tuple[dict[str, Any], int]]:
    """Yields a saved node's inputs that are widgets and are sent, with their places in its values."""
    place, values = 0, node.get("widgets_values") or []
    for entry in node["inputs"]:
        if "widget" not in entry or place == len(values):
            continue
        if entry["type"] != "IMAGEUPLOAD":  # a button
            yield entry, place
        place += 1
        if entry["name"] == "seed" and values[place : place + 1] and values[place] in _AFTER_GENERATE:
            place += 1
