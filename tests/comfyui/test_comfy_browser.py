"""The examples, the steps widget and the help as a user meets them: ComfyUI's own page in a real browser."""

from __future__ import annotations

import re
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from browser_host import keep_shot
from comfy_host import ROOT
from comfy_page import ComfyPage
from comfy_situations import solver_path
from comfy_workflows import NAMES, tiny_workflow, with_known_pictures, workflow

pytestmark = [pytest.mark.comfy, pytest.mark.browser]
KSAMPLER, SAVE = "LearnedSolverKSampler", "SaveImage"
KINDS = ("CompareSamplers", "FitLearnedSolver", "LearnedSolver", "LearnedSolverInfo", KSAMPLER, "SetLearnedSolver")
FLUX_STEPS, SD15_STEPS = "steps (3, 5, 7)", "steps (4, 6, 8, 10)"


@pytest.fixture(scope="module")
def page(server, browser):
    """ComfyUI's page."""
    page = ComfyPage(browser.new_page(viewport={"width": 1600, "height": 900}), server)
    page.start()
    yield page
    page.page.close()


INFO = {  # of the text node
    "sd15_first_image": r"dyweight_sd15 \(bundled\): 6 steps, 6 model calls",
    "flux_first_image": r"dyweight_flux1-dev \(bundled\): 7 steps, 7 model calls",
    "sdxl_by_transfer": r"\(bundled\): 8 steps, 8 model calls",
    "image_to_image": r"dyweight_sd15 \(bundled\): [3-9] of its 10 model calls, from sigma .* \(denoise 0.6\)",
    "fit_a_solver": r"written: .*dyweight_example\.safetensors",
    "compare_samplers": r"(?s)(?=.*euler/karras)(?=.*dpmpp_2m/karras)(?=.*uni_pc/karras)(?=.*deis/karras)",
}


@pytest.mark.parametrize("name", NAMES)
def test_an_example_opens_complete_and_shows_the_text_and_picture_that_its_note_promises(page, name):
    page.open(name, workflow(name))
    assert page.unknown_kinds() == []
    page.open(f"tiny {name}", with_known_pictures(tiny_workflow(page.server, name)))
    shows = next(n["type"] for n in workflow(name)["nodes"] if n["type"] in (SAVE, "PreviewImage"))
    before = page.pixels(shows)
    try:
        picture = np.asarray(page.run(shows), dtype=float)
        assert min(picture.shape[:2]) >= 64 and picture.std() > 1  # a picture, not one colour
        assert (np.abs(page.pixels(shows) - before).max(-1) > 8).mean() > 0.03
        (history,) = page.server.get("/history?max_items=1").values()
        text = "\n".join(line for output in history["outputs"].values() for line in output.get("text", []))
        assert re.search(INFO[name], text), text
    finally:
        solver_path(page.server, "dyweight_example").unlink(missing_ok=True)


def test_the_steps_follow_the_solver_and_the_users_own_label_stays(page):
    page.open("steps", workflow("sd15_first_image"))
    assert page.widget(KSAMPLER, "steps") == (6, "steps")  # auto: known only in a run
    page.choose(KSAMPLER, "solver", "dyweight_flux1-dev")
    assert page.wait_for_label(KSAMPLER, "steps", FLUX_STEPS) == 5
    for part, expected in ((0.94, 7), (0.06, 5), (0.06, 3), (0.06, 3)):
        page.click(KSAMPLER, "steps", part)
        assert page.widget(KSAMPLER, "steps")[0] == expected
    page.choose(KSAMPLER, "solver", "dyweight_sd15")
    assert page.wait_for_label(KSAMPLER, "steps", SD15_STEPS) == 4
    find = "app.graph._nodes.find(n => n.type === kind).widgets.find(w => w.name === 'steps')"
    page.page.evaluate(f"kind => {{ {find}.label = 'calls' }}", KSAMPLER)
    page.choose(KSAMPLER, "solver", "dyweight_flux1-dev")
    page.page.wait_for_timeout(500)
    assert page.widget(KSAMPLER, "steps") == (3, "calls")


def with_steps(solver, steps):
    """A workflow saved with a solver and steps."""
    saved = workflow("sd15_first_image")
    sampler = next(n for n in saved["nodes"] if n["type"] == KSAMPLER)
    sampler["widgets_values"] = [42, "fixed", solver, steps, 2.0, 1.0]
    return saved


@pytest.mark.parametrize(("steps", "lowered"), [(7, 5), (6, 5), (20, 7)])
def test_an_opened_workflow_keeps_its_steps_until_the_user_changes_them(page, steps, lowered):
    page.open(f"saved{steps}", with_steps("dyweight_flux1-dev", steps))
    assert page.wait_for_label(KSAMPLER, "steps", FLUX_STEPS) == steps
    page.refresh()
    assert page.widget(KSAMPLER, "steps") == (steps, FLUX_STEPS)
    assert page.prompt()["5"]["inputs"]["steps"] == steps
    page.click(KSAMPLER, "steps", 0.06)
    assert page.widget(KSAMPLER, "steps")[0] == lowered


@contextmanager
def solver_that_changes(page):
    """Yields the entry of a user's file, and a function that replaces it by a bundled one."""
    path = solver_path(page.server, "again")

    def replace_by(bundled):
        shutil.copy(ROOT / "solver_weights" / f"{bundled}.safetensors", path)

    replace_by("dyweight_flux1-dev")
    page.refresh()
    yield path.name, replace_by
    path.unlink()


def test_a_file_that_is_fitted_again_has_its_new_counts_at_once(page):
    """After a run, and when the drop-downs are refreshed, also in a subgraph. The value is the user's."""
    with solver_that_changes(page) as (entry, replace_by):
        page.open("again", with_steps(entry, 7))
        assert page.wait_for_label(KSAMPLER, "steps", FLUX_STEPS) == 7
        replace_by("dyweight_sd15")
        page.refresh()
        assert page.wait_for_label(KSAMPLER, "steps", SD15_STEPS) == 7
        page.click(KSAMPLER, "steps", 0.94)
        assert page.widget(KSAMPLER, "steps")[0] == 8
        replace_by("ds_vp-dit")
        text = {"1": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}}}
        text["2"] = {"class_type": "PrimitiveString", "inputs": {"value": "a run"}}
        client = page.page.evaluate("window.app.api?.clientId ?? window.app.api?.initialClientId")
        page.server.post("/prompt", {"prompt": text, "client_id": client})
        assert page.wait_for_label(KSAMPLER, "steps", "steps (5, 6, 7, 8, 9, 10)") == 8
        sampler = f"n => n.type === '{KSAMPLER}'"
        page.page.evaluate(f"{{ app.graph.convertToSubgraph(new Set([app.graph._nodes.find({sampler})])) }}")
        replace_by("dyweight_flux1-dev")
        page.refresh()
        node = f"[...app.graph.subgraphs.values()].flatMap(g => g._nodes).find({sampler})"
        widget = page.page.evaluate(f"(w => [w.value, w.label])({node}.widgets.find(w => w.name === 'steps'))")
        assert widget == [8, FLUX_STEPS]


def test_a_picture_is_sampled_and_the_solver_named_on_the_node(page, tmp_path):
    """On a checkpoint whose pictures are known: sun and hills, in the file and on the page."""
    page.open("picture", with_known_pictures(workflow("sd15_first_image")))
    page.choose(KSAMPLER, "solver", "dyweight_sd15")
    picture = page.run(SAVE)
    assert picture.size == (512, 512)
    sun, foreground = picture.getpixel((358, 153)), picture.getpixel((256, 490))
    assert sun == pytest.approx((255, 230, 115), abs=30) and foreground == pytest.approx((33, 64, 51), abs=30)
    text, _ = page.widget(KSAMPLER, "$$node-text-preview")
    assert text.startswith("dyweight_sd15 (bundled): 6 steps, 6 model calls")
    for kind in (SAVE, KSAMPLER):  # the picture, and the preview that is left from sampling
        yellow = np.abs(page.pixels(kind) - (255, 230, 115)).max(-1) < 40
        assert yellow.mean() > 0.003
    page.page.locator("text=Job completed").wait_for(state="hidden")
    keep_shot(page.page, tmp_path / "comfyui.png")


def test_the_steps_follow_the_solver_in_the_new_node_design(page):
    page.set("Comfy.VueNodes.Enabled", True)
    try:
        page.open("new design", workflow("sd15_first_image"))
        page.page.wait_for_timeout(2000)
        if not page.page.locator("[data-testid=node-inner-wrapper]").count():
            pytest.skip("this ComfyUI's page has only a first draft of the new design: see ComfyUI 0.33.0")
        widgets = page.page.locator("[data-node-id='5'] [data-testid=node-widget]")
        widgets.filter(has_text="solver").get_by_role("combobox").click()
        page.page.get_by_role("option", name="dyweight_flux1-dev").click()
        steps = widgets.filter(has_text=FLUX_STEPS)
        assert steps.get_by_role("spinbutton").input_value() == "5"
        steps.locator("[data-testid=increment]").click()
        page.page.wait_for_timeout(300)
        assert steps.get_by_role("spinbutton").input_value() == "7" == str(page.widget(KSAMPLER, "steps")[0])
    finally:
        page.set("Comfy.VueNodes.Enabled", False)


@pytest.mark.parametrize("kind", KINDS)
def test_the_help_opens_next_to_the_graph_and_is_not_cut(page, tmp_path, kind):
    text = page.help(kind)
    inputs = page.server.get(f"/object_info/{kind}")[kind]["input"]["required"]
    assert all(re.search(rf"\b{entry}\b", text) for entry in inputs) and "Error messages" in text
    widths = page.page.evaluate(
        "[...document.querySelectorAll('.markdown-content table')]"
        ".map(e => [e.scrollWidth, e.closest('.markdown-content').clientWidth])"
    )
    assert all(table <= room for table, room in widths)
    keep_shot(page.page, tmp_path / f"comfyui_help_{kind}.png")
