"""The example workflows and the blueprint run in ComfyUI's own page, and show what their notes promise."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest
from comfy_graphs import options
from comfy_host import Server
from comfy_page import EXAMPLES, KSAMPLER, SAVE, SD15, TINY_CHECKPOINT, with_known_pictures, workflow
from learned_solvers.samplers import VPNoise, choose_solver, list_solvers, load_solver
from PIL import Image

FLUX, SDXL = "Sample FLUX.1-dev in 7 steps", "Try a solver of another model on SDXL"
INFO = {  # of the text node
    SD15: r"dyweight_sd15 \(bundled\): 6 steps, 6 model calls",
    FLUX: r"dyweight_flux1-dev \(bundled\): 7 steps, 7 model calls",
    SDXL: r"\(bundled\): 8 steps, 8 model calls",
    "Change an image with SD 1.5": r"dyweight_sd15 \(bundled\): [3-9] of its 10 model calls.*\(denoise 0.6\)",
    "Fit a solver to your model": r"written: .*dyweight_example\.safetensors",
    "Compare samplers at equal steps": "(?s)(?=.*euler/karras)(?=.*dpmpp_2m/karras)(?=.*uni_pc)(?=.*deis/karras)",
}
TINY = {
    "ckpt_name": TINY_CHECKPOINT,
    "unet_name": "tiny_flux_clip.safetensors",
    "vae_name": "tiny_taef1.safetensors",
}
TINY |= {"width": 64, "height": 64, "samples": 3, "teacher_steps": 4, "file_name": "dyweight_example"}


def tiny_workflow(server: Server, name: str) -> dict[str, Any]:
    """A shipped workflow with tiny files, sizes and numbers of samples; nodes and wires stay as they are.

    Except for FLUX's pair of text encoders: the tiny one is CLIP-L alone.
    """
    if name == FLUX and TINY["unet_name"] not in options(server, "UNETLoader", "unet_name"):
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


def test_every_example_is_listed_and_the_transfer_to_sdxl_is_the_one_that_its_note_names():
    solvers = map(load_solver, list_solvers())
    assert choose_solver([*solvers], VPNoise.stable_diffusion(), 8, architecture="SDXL").name == "ds_vp-dit"
    assert "**ds_vp-dit**" in str(workflow(SDXL))
    assert sorted(path.stem for path in EXAMPLES.glob("*.json")) == sorted(INFO)


@pytest.mark.parametrize("name", INFO)
def test_an_example_is_tidy_and_has_a_thumbnail(name):
    with Image.open(EXAMPLES / f"{name}.jpg") as thumbnail:
        assert thumbnail.width <= 1000
    boxes = [(x, y - 30, x + width, y + height) for (x, y), (width, height) in  # a title has 30
             ((n["pos"], n["size"]) for n in workflow(name)["nodes"])]  # fmt: skip
    for a, b in combinations(boxes, 2):
        assert a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3], (a, b)


def test_the_server_offers_the_examples(server):
    (pack,) = (v for k, v in server.get("/workflow_templates").items() if "learned" in k)
    assert sorted(pack) == sorted(INFO)


@pytest.mark.parametrize("name", INFO)
def test_an_example_opens_complete_and_shows_the_text_and_picture_that_its_note_promises(page, name):
    page.open(name, workflow(name))
    assert page.unknown_kinds() == []
    page.open(f"tiny {name}", with_known_pictures(tiny_workflow(page.server, name)))
    shows = next(n["type"] for n in workflow(name)["nodes"] if n["type"] in (SAVE, "PreviewImage"))
    before = page.pixels(shows)
    picture = np.asarray(page.run(shows), dtype=float)
    assert min(picture.shape[:2]) >= 64 and picture.std() > 1  # a picture, not one colour
    assert (np.abs(page.pixels(shows) - before).max(-1) > 8).mean() > 0.03
    (history,) = page.server.get("/history?max_items=1").values()
    text = "\n".join(line for output in history["outputs"].values() for line in output.get("text", []))
    assert re.search(INFO[name], text), text


def test_the_blueprint_samples_the_picture_of_the_node(page):
    """The host's own reading of it, in an example in place of the node, with the same seed."""
    try:
        listed = page.server.get("/global_subgraphs").items()
    except HTTPError:
        pytest.skip("this ComfyUI reads no blueprints of packs: see ComfyUI 0.33.0")
    (key,) = (key for key, entry in listed if "learned" in entry["info"]["node_pack"])
    blueprint = json.loads(page.server.get(f"/global_subgraphs/{key}")["data"])
    saved = with_known_pictures(workflow(SD15))
    place, sampler = next((i, n) for i, n in enumerate(saved["nodes"]) if n["type"] == KSAMPLER)
    sampler["widgets_values"][1] = "fixed"
    page.open("node", saved)
    expected = page.run(SAVE)
    (subgraph,), (node,) = blueprint["definitions"]["subgraphs"], blueprint["nodes"]
    for entry in (*node["inputs"], *node["outputs"]):  # in the order of the node's, so that the wires fit
        same = next(e for e in (*sampler["inputs"], *sampler["outputs"]) if e["name"] == entry["name"])
        entry |= {key: same[key] for key in ("link", "links") if key in same}
    noise = next(n for n in subgraph["nodes"] if n["type"] == "RandomNoise")
    noise["widgets_values"] = sampler["widgets_values"][:2]
    saved["nodes"][place] = node | {"id": sampler["id"], "pos": sampler["pos"]}
    page.open("blueprint", saved | {"definitions": blueprint["definitions"]})
    assert page.unknown_kinds() == []
    assert KSAMPLER not in (n["class_type"] for n in page.prompt().values())
    assert np.array_equal(page.run(SAVE), expected)
    text = page.page.evaluate("app.graph._nodes.find(n => n.type === 'PreviewAny').widgets[0].value")
    assert re.search(INFO[SD15], str(text)), text


@pytest.mark.parametrize("name", ["Compare samplers at equal steps", "Fit a solver to your model"])
def test_a_report_is_shown_as_markdown(page, name):
    page.open(f"report {name}", workflow(name))
    modes = "window.app.graph._nodes.find(n => n.type === 'PreviewAny').widgets.filter(w => w.name === 'preview_mode')"
    if not (modes := page.page.evaluate(f"{modes}.map(w => w.value)")):
        pytest.skip("this ComfyUI's text node shows no Markdown: see ComfyUI 0.33.0")
    assert modes == [True]
