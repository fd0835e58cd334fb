"""The examples, the steps widget and the help as a user meets them: ComfyUI's own page in a real browser."""

from __future__ import annotations

import io
import json
import re
import shutil
import urllib.parse
from dataclasses import dataclass
from itertools import combinations
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest
from browser_host import keep_shot
from comfy_graphs import options
from comfy_host import ROOT, Server
from learned_solvers.samplers import VPNoise, choose_solver, list_solvers, load_solver
from PIL import Image

KSAMPLER, SAVE = "LearnedSolverKSampler", "SaveImage"
KINDS = ("CompareSamplers", "FitLearnedSolver", "JoinExperts", "LearnedSolver", "LearnedSolverInfo", KSAMPLER,
         "SetLearnedSolver")  # fmt: skip
FLUX_STEPS, SD15_STEPS = "steps (3, 5, 7)", "steps (4, 6, 8, 10)"

# ---- the page: its state is read from its `app`

_READY = """window.app?.graph && window.app.extensionManager?.workflow?.activeWorkflow
    && !document.querySelector('.p-progressspinner')"""
_NODE = "window.app.graph._nodes.find(n => n.type === kind)"
_WIDGET = f"{_NODE}.widgets.find(w => w.name === name)"
_SETTINGS = {  # a view from above, with text at every zoom and nothing in front of the nodes
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.RightSidePanel.IsOpen": False,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
}


@dataclass
class ComfyPage:
    """A browser page with ComfyUI open. Nodes go by the name of their class."""

    page: Any
    server: Server

    def start(self) -> None:
        """Opens ComfyUI and dismisses what it shows on a first visit."""
        self.server.post("/settings", _SETTINGS)
        self.page.set_default_timeout(60_000)  # for a busy machine
        self.page.goto(self.server.url, wait_until="domcontentloaded")
        self.page.wait_for_function(_READY)
        self.page.wait_for_load_state("networkidle")
        self.page.wait_for_timeout(1500)
        self.page.keyboard.press("Escape")

    def command(self, name: str) -> None:
        self.page.evaluate("name => app.extensionManager.command.execute(name)", name)

    def refresh(self) -> None:
        """Refreshes the entries of all drop-downs."""
        self.page.evaluate("app.refreshComboInNodes()")
        self.page.wait_for_timeout(500)

    def open(self, name: str, workflow: dict[str, Any]) -> None:
        """Opens a workflow as a file, zoomed to fit the window."""
        file = {"name": f"{name}.json", "mimeType": "application/json", "buffer": json.dumps(workflow).encode()}
        self.page.set_input_files("#comfy-file-input", file)
        ids = sorted(str(node["id"]) for node in workflow["nodes"])
        self.page.wait_for_function(
            "([name, ids]) => app.extensionManager.workflow.activeWorkflow.path.includes(name) && "
            "String(app.graph._nodes.map(n => String(n.id)).sort()) === String(ids)",
            arg=[name, ids],
        )
        self.page.wait_for_timeout(500)
        self.page.keyboard.press("Escape")  # the list of missing checkpoints: a dialog on 0.3.64
        if (message := self.page.locator("[data-testid=error-overlay-dismiss]")).is_visible():
            message.click()
        self.command("Comfy.Canvas.FitView")
        self.page.wait_for_timeout(600)  # the view glides

    def unknown_kinds(self) -> list[str]:
        """The nodes of the workflow that the page does not know."""
        kinds = "window.app.graph._nodes.map(n => n.type)"
        return self.page.evaluate(f"{kinds}.filter(kind => !LiteGraph.registered_node_types[kind])")

    def prompt(self) -> dict[str, Any]:
        """The prompt that the page sends to the server."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def widget(self, kind: str, name: str) -> tuple[Any, str]:
        """A widget's value and the name that is shown next to it."""
        script = f"([kind, name]) => (w => [w.value, w.label || w.name])({_WIDGET})"
        return tuple(self.page.evaluate(script, [kind, name]))

    def wait_for_label(self, kind: str, name: str, label: str) -> Any:
        """Waits until a widget has a label, and returns its value."""
        self.page.wait_for_function(f"([kind, name, label]) => {_WIDGET}.label === label", arg=[kind, name, label])
        return self.widget(kind, name)[0]

    def box(self, kind: str) -> tuple[float, float, float, float]:
        """Where the page shows a node: left, top, width, height, without its title."""
        return self.page.evaluate(
            f"""kind => {{ const node = {_NODE}, {{ scale, offset }} = app.canvas.ds;
            const canvas = app.canvas.canvas.getBoundingClientRect();
            return [canvas.left + (node.pos[0] + offset[0]) * scale, canvas.top + (node.pos[1] + offset[1]) * scale,
                node.size[0] * scale, node.size[1] * scale]; }}""",
            kind,
        )

    def click(self, kind: str, name: str, part: float) -> None:
        """Clicks on a widget at this part of its width: 0.06 is a number's left arrow, 0.94 the right one."""
        left, top, width, _ = self.box(kind)
        down = self.page.evaluate(f"([kind, name]) => ({_WIDGET}.y + 10) * app.canvas.ds.scale", [kind, name])
        self.page.mouse.click(left + part * width, top + down)
        self.page.wait_for_timeout(400)  # two clicks in a row would be a double click

    def choose(self, kind: str, name: str, entry: str) -> None:
        """Chooses an entry of a drop-down."""
        self.click(kind, name, 0.5)
        self.page.click(f".litemenu-entry:text-is('{entry}')")

    def run(self, kind: str) -> Image.Image:
        """Clicks on Run, and returns the picture that a node then shows."""
        self.page.click("[data-testid=queue-button]")
        self.page.wait_for_function(f"kind => {_NODE}.imgs?.[0]?.naturalWidth > 0", arg=kind, timeout=240_000)
        address = self.page.evaluate(f"kind => {_NODE}.imgs[0].src", kind)
        parts = urllib.parse.urlsplit(address)
        return Image.open(io.BytesIO(self.server.request(f"{parts.path}?{parts.query}"))).convert("RGB")

    def pixels(self, kind: str) -> np.ndarray:
        """The pixels of a node on the page, [H, W, 3]."""
        self.page.wait_for_timeout(300)  # the next frame
        left, top, width, height = self.box(kind)
        shot = self.page.screenshot(clip={"x": left, "y": top, "width": width, "height": height})
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), dtype=float)

    def help(self, kind: str) -> str:
        """Opens the help of a new node, and returns its text."""
        self.page.evaluate("kind => { app.graph.clear(); app.graph.add(LiteGraph.createNode(kind)); }", kind)
        self.command("Comfy.Canvas.FitView")
        self.page.wait_for_timeout(600)
        self.page.evaluate(f"kind => {{ app.canvas.selectNode({_NODE}); app.canvas.setDirty(true, true); }}", kind)
        self.page.locator("[data-testid=info-button]").click(force=True)
        self.page.wait_for_selector(".markdown-content h1")
        return self.page.locator(".markdown-content").first.inner_text()


@pytest.fixture(scope="module")
def page(server, browser):
    """ComfyUI's page."""
    page = ComfyPage(browser.new_page(viewport={"width": 1600, "height": 900}), server)
    page.start()
    yield page
    page.page.close()


# ---- the example workflows

FOLDER = ROOT / "example_workflows"
SD15, FLUX, SDXL = "Sample SD 1.5 in 6 steps", "Sample FLUX.1-dev in 7 steps", "Try a solver of another model on SDXL"
INFO = {  # of the text node
    SD15: r"dyweight_sd15 \(bundled\): 6 steps, 6 model calls",
    FLUX: r"dyweight_flux1-dev \(bundled\): 7 steps, 7 model calls",
    SDXL: r"\(bundled\): 8 steps, 8 model calls",
    "Change an image with SD 1.5": r"dyweight_sd15 \(bundled\): [3-9] of its 10 model calls.*\(denoise 0.6\)",
    "Fit a solver to your model": r"written: .*dyweight_example\.safetensors",
    "Compare samplers at equal steps": "(?s)(?=.*euler/karras)(?=.*dpmpp_2m/karras)(?=.*uni_pc)(?=.*deis/karras)",
}
TINY = {
    "ckpt_name": "tiny_sd15_whole.ckpt",
    "unet_name": "tiny_flux_clip.safetensors",
    "vae_name": "tiny_taef1.safetensors",
}
TINY |= {"width": 64, "height": 64, "samples": 3, "teacher_steps": 4, "file_name": "dyweight_example"}


def workflow(name: str) -> dict[str, Any]:
    """A shipped workflow."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


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


def with_known_pictures(saved: dict[str, Any]) -> dict[str, Any]:
    """The workflow with the test pack's checkpoint whose pictures are known, where it loads one."""
    for node in saved["nodes"]:
        if node["type"] == "CheckpointLoaderSimple":
            node["type"], node["widgets_values"] = "TinyPicture", [TINY["ckpt_name"]]
    return saved


def test_every_example_is_listed_and_the_transfer_to_sdxl_is_the_one_that_its_note_names():
    solvers = map(load_solver, list_solvers())
    assert choose_solver([*solvers], VPNoise.stable_diffusion(), 8, architecture="SDXL").name == "ds_vp-dit"
    assert "**ds_vp-dit**" in str(workflow(SDXL))
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted(INFO)


@pytest.mark.parametrize("name", INFO)
def test_an_example_is_tidy_and_has_a_thumbnail(name):
    with Image.open(FOLDER / f"{name}.jpg") as thumbnail:
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


def test_the_menu_of_a_sampler_adds_a_fit_node_with_the_same_wires(page):
    page.open("menu", workflow(SD15))
    choose = "options.find(o => o?.content === 'Fit a solver for this model').callback()"
    page.page.evaluate(
        f"kind => {{ const options = []; {_NODE}.getExtraMenuOptions(app.canvas, options); {choose}; }}", KSAMPLER
    )
    # An earlier test may have run a node with this number in the same page.
    duration = r"(about [0-9.]+ (minutes?|hours)|less than a minute)"
    cost = page.page.locator(rf"text=/Usually [0-9,]+ model calls(, {duration}\.|\. Run the sampler once)/")
    cost.first.wait_for()
    nodes = {node["class_type"]: node["inputs"] for node in page.prompt().values()}
    fit, sampler = nodes["FitLearnedSolver"], nodes["LearnedSolverKSampler"]
    for ours, its in {
        "model": "model",
        "positive": "positive",
        "negative": "negative",
        "latent": "latent_image",
    }.items():
        assert fit[ours] == sampler[its]
    assert (fit["cfg"], fit["steps"]) == (sampler["cfg"], str(sampler["steps"]))


# ---- the steps widget


def test_the_steps_follow_the_solver_and_the_users_own_label_stays(page):
    page.open("steps", workflow(SD15))
    assert page.widget(KSAMPLER, "steps") == (6, "steps")  # auto: known only in a run
    page.choose(KSAMPLER, "solver", "dyweight_flux1-dev")
    assert page.wait_for_label(KSAMPLER, "steps", FLUX_STEPS) == 5
    for part, expected in ((0.94, 7), (0.06, 5), (0.06, 3), (0.06, 3)):
        page.click(KSAMPLER, "steps", part)
        assert page.widget(KSAMPLER, "steps")[0] == expected
    page.choose(KSAMPLER, "solver", "dyweight_sd15")
    assert page.wait_for_label(KSAMPLER, "steps", SD15_STEPS) == 4
    page.page.evaluate(f"([kind, name]) => {{ {_WIDGET}.label = 'calls' }}", [KSAMPLER, "steps"])
    page.choose(KSAMPLER, "solver", "dyweight_flux1-dev")
    page.page.wait_for_function(f"([kind, name]) => {_WIDGET}.value === 3", arg=[KSAMPLER, "steps"])
    assert page.widget(KSAMPLER, "steps") == (3, "calls")


def with_steps(solver, steps):
    """A workflow saved with a solver and steps."""
    saved = workflow(SD15)
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


def test_a_file_that_is_fitted_again_has_its_new_counts_at_once(page):
    """After a run, and when the drop-downs are refreshed, also in a subgraph. The value is the user's."""
    path = page.server.solver("again")

    def replace_by(bundled):
        shutil.copy(ROOT / "solver_weights" / f"{bundled}.safetensors", path)

    replace_by("dyweight_flux1-dev")
    page.refresh()
    page.open("again", with_steps(path.name, 7))
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
    page.open("picture", with_known_pictures(workflow(SD15)))
    page.choose(KSAMPLER, "solver", "dyweight_sd15")
    picture = page.run(SAVE)
    assert picture.size == (512, 512)
    sun, foreground = picture.getpixel((358, 153)), picture.getpixel((256, 490))
    assert sun == pytest.approx((255, 230, 115), abs=30) and foreground == pytest.approx((33, 64, 51), abs=30)
    text, _ = page.widget(KSAMPLER, "$$node-text-preview")
    assert text == "dyweight_sd15, 6 calls."
    for kind in (SAVE, KSAMPLER):  # the picture, and the preview that is left from sampling
        yellow = np.abs(page.pixels(kind) - (255, 230, 115)).max(-1) < 40
        assert yellow.mean() > 0.003
    page.page.locator("text=Job completed").wait_for(state="hidden")
    keep_shot(page.page, tmp_path / "comfyui.png")


def test_the_steps_follow_the_solver_in_the_new_node_design(page):
    switch = "value => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', value)"
    page.page.evaluate(switch, True)
    try:
        page.open("new design", workflow(SD15))
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
        page.page.evaluate(switch, False)


@pytest.mark.parametrize("name", ["Compare samplers at equal steps", "Fit a solver to your model"])
def test_a_report_is_shown_as_markdown(page, name):
    page.open(f"report {name}", workflow(name))
    modes = "window.app.graph._nodes.find(n => n.type === 'PreviewAny').widgets.filter(w => w.name === 'preview_mode')"
    if not (modes := page.page.evaluate(f"{modes}.map(w => w.value)")):
        pytest.skip("this ComfyUI's text node shows no Markdown: see ComfyUI 0.33.0")
    assert modes == [True]


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
