"""The example workflows as files; test_comfy_browser.py runs them."""

from __future__ import annotations

from itertools import combinations

import pytest
from comfy_workflows import FOLDER, NAMES, workflow
from learned_solvers.samplers import VPNoise, choose_solver, list_solvers, load_solver
from PIL import Image


def test_the_transfer_to_sdxl_is_the_one_that_its_note_names():
    solvers = [load_solver(name) for name in list_solvers()]
    assert choose_solver(solvers, VPNoise.stable_diffusion(), 8, architecture="SDXL").name == "ds_vp-dit"
    assert "`ds_vp-dit`" in str(workflow("sdxl_by_transfer"))


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_tidy_and_has_a_thumbnail(name):
    with Image.open(FOLDER / f"{name}.jpg") as thumbnail:
        assert thumbnail.width <= 1000
    boxes = [(x, y - 30, x + width, y + height) for (x, y), (width, height) in  # a title has 30
             ((n["pos"], n["size"]) for n in workflow(name)["nodes"])]  # fmt: skip
    for a, b in combinations(boxes, 2):
        assert a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3], (a, b)


@pytest.mark.comfy
def test_the_server_offers_the_examples(server):
    (pack,) = (v for k, v in server.get("/workflow_templates").items() if "learned" in k)
    assert sorted(pack) == NAMES
