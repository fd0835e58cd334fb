"""The example workflows and help pages that ship, on real ComfyUI servers, with tiny models for checkpoints."""

from __future__ import annotations

import re
import urllib.request

import numpy as np
import pytest
from comfy_host import error_of
from comfy_workflows import FOLDER, NAMES, TINY, api_prompt, on_tiny_models, workflow
from learned_solvers.samplers import VPNoise, choose_solver, list_solvers, load_solver
from PIL import Image

INFO = {  # what the text node shows
    "sd15_first_picture": r"dyweight_sd15 \(bundled\): 6 steps, 6 model calls",
    "flux_first_picture": r"dyweight_flux1-dev \(bundled\): 7 steps, 7 model calls",
    "sdxl_by_transfer": r"\(bundled\): 8 steps, 8 model calls",
    "image_to_image": r"dyweight_sd15 \(bundled\): [3-9] of its 10 model calls, from sigma .* \(denoise 0.6\)",
    "fit_a_solver": r"written: .*dyweight_example\.safetensors",
    "compare_samplers": r"(?s)(?=.*euler/karras)(?=.*dpmpp_2m/karras)(?=.*uni_pc/karras)(?=.*deis/karras)",
}


@pytest.fixture
def ran(server, request):
    """Returns the name of an example and its history; the file that a fit writes goes again."""
    name = request.param
    Image.linear_gradient("L").convert("RGB").resize((64, 64)).save(server.base / "input" / "example.png")
    files = server.get("/object_info/UNETLoader")["UNETLoader"]["input"]["required"]["unet_name"]
    if name == "flux_first_picture" and TINY["unet_name"] not in str(files):
        pytest.skip("this ComfyUI fixes FLUX's width: no tiny FLUX for CLIP-L's text; see ComfyUI 0.33.0")
    yield name, server.submit(api_prompt(on_tiny_models(workflow(name))))
    (server.base / "models" / "solver_weights" / "dyweight_example.safetensors").unlink(missing_ok=True)


@pytest.mark.comfy
@pytest.mark.parametrize("ran", NAMES, indirect=True)
def test_an_example_runs_and_shows_the_text_and_picture_that_its_note_promises(server, ran):
    name, history = ran
    assert "refused" not in history, history
    assert history["status"]["status_str"] == "success", error_of(history)
    outputs = history["outputs"].values()
    text = "\n".join(line for output in outputs for line in output.get("text", []))
    assert re.search(INFO[name], text), text
    (picture,) = (image for output in outputs for image in output.get("images", []) if image["type"] != "input")
    folder = server.base / ("temp" if picture["type"] == "temp" else "output")
    pixels = np.asarray(Image.open(folder / picture["subfolder"] / picture["filename"]), dtype=float)
    assert pixels.shape[0] >= 64 and pixels.std() > 1  # a picture, not one colour


def test_the_transfer_to_sdxl_is_the_one_that_its_note_names():
    solvers = [load_solver(name) for name in list_solvers()]
    assert choose_solver(solvers, VPNoise.stable_diffusion(), 8, architecture="SDXL").name == "ds_vp-dit"
    assert "`ds_vp-dit`" in str(workflow("sdxl_by_transfer"))


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_tidy_and_has_a_thumbnail(name):
    with Image.open(FOLDER / f"{name}.jpg") as thumbnail:
        assert thumbnail.width <= 1000
    boxes = [(*n["pos"], *n["size"]) for n in workflow(name)["nodes"]]
    overlaps = [
        (a, b)
        for i, a in enumerate(boxes)
        for b in boxes[:i]
        if a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] - 30 < b[1] + b[3] and b[1] - 30 < a[1] + a[3]
    ]
    assert overlaps == []


@pytest.mark.comfy
def test_the_server_offers_the_examples(server):
    (pack,) = (v for k, v in server.get("/workflow_templates").items() if "learned" in k)
    assert sorted(pack) == NAMES


@pytest.mark.comfy
def test_every_node_has_a_help_page_that_names_every_input(server):
    nodes = server.get("/object_info")
    own = {key: node for key, node in nodes.items() if "learned-solvers" in node["python_module"]}
    assert len(own) >= 6
    missing = []
    for key, node in own.items():
        with urllib.request.urlopen(f"{server.url}/extensions/learned-solvers/docs/{key}.md", timeout=60) as answer:
            page = answer.read().decode()
        names = [n for part in ("required", "optional") for n in node["input"].get(part, {})]
        missing += [(key, n) for n in names if not re.search(rf"^\|[^|]*\b{n}\b", page, re.M)]
        assert page.startswith(f"# {node['display_name']}\n")
    assert missing == []
