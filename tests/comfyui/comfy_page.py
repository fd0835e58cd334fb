"""ComfyUI's own page in a real browser, and the workflows that it opens. Its state is read from its `app`."""

from __future__ import annotations

import io
import json
import urllib.parse
from dataclasses import dataclass
from typing import Any

import numpy as np
from comfy_host import ROOT, Server
from PIL import Image

KSAMPLER, SAVE = "LearnedSolverKSampler", "SaveImage"
EXAMPLES = ROOT / "example_workflows"
SD15 = "Sample SD 1.5 in 6 steps"
TINY_CHECKPOINT = "tiny_sd15_whole.ckpt"
FIND_NODE = "window.app.graph._nodes.find(n => n.type === kind)"
FIND_WIDGET = f"{FIND_NODE}.widgets.find(w => w.name === name)"
_READY = """window.app?.graph && window.app.extensionManager?.workflow?.activeWorkflow
    && !document.querySelector('.p-progressspinner')"""
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
        script = f"([kind, name]) => (w => [w.value, w.label || w.name])({FIND_WIDGET})"
        return tuple(self.page.evaluate(script, [kind, name]))

    def wait_for_label(self, kind: str, name: str, label: str) -> Any:
        """Waits until a widget has a label, and returns its value."""
        self.page.wait_for_function(f"([kind, name, label]) => {FIND_WIDGET}.label === label", arg=[kind, name, label])
        return self.widget(kind, name)[0]

    def box(self, kind: str) -> tuple[float, float, float, float]:
        """Where the page shows a node: left, top, width, height, without its title."""
        return self.page.evaluate(
            f"""kind => {{ const node = {FIND_NODE}, {{ scale, offset }} = app.canvas.ds;
            const canvas = app.canvas.canvas.getBoundingClientRect();
            return [canvas.left + (node.pos[0] + offset[0]) * scale, canvas.top + (node.pos[1] + offset[1]) * scale,
                node.size[0] * scale, node.size[1] * scale]; }}""",
            kind,
        )

    def click(self, kind: str, name: str, part: float) -> None:
        """Clicks on a widget at this part of its width: 0.06 is a number's left arrow, 0.94 the right one."""
        left, top, width, _ = self.box(kind)
        down = self.page.evaluate(f"([kind, name]) => ({FIND_WIDGET}.y + 10) * app.canvas.ds.scale", [kind, name])
        self.page.mouse.click(left + part * width, top + down)
        self.page.wait_for_timeout(400)  # two clicks in a row would be a double click

    def choose(self, kind: str, name: str, entry: str) -> None:
        """Chooses an entry of a drop-down."""
        self.click(kind, name, 0.5)
        self.page.click(f".litemenu-entry:text-is('{entry}')")

    def run(self, kind: str) -> Image.Image:
        """Clicks on Run, and returns the picture that a node then shows."""
        self.page.click("[data-testid=queue-button]")
        self.page.wait_for_function(f"kind => {FIND_NODE}.imgs?.[0]?.naturalWidth > 0", arg=kind, timeout=240_000)
        address = self.page.evaluate(f"kind => {FIND_NODE}.imgs[0].src", kind)
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
        self.page.evaluate(f"kind => {{ app.canvas.selectNode({FIND_NODE}); app.canvas.setDirty(true, true); }}", kind)
        self.page.locator("[data-testid=info-button]").click(force=True)
        self.page.wait_for_selector(".markdown-content h1")
        return self.page.locator(".markdown-content").first.inner_text()


def workflow(name: str) -> dict[str, Any]:
    """A shipped workflow."""
    return json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))


def with_known_pictures(saved: dict[str, Any]) -> dict[str, Any]:
    """The workflow with the test pack's checkpoint whose pictures are known, where it loads one."""
    for node in saved["nodes"]:
        if node["type"] == "CheckpointLoaderSimple":
            node["type"], node["widgets_values"] = "TinyPicture", [TINY_CHECKPOINT]
    return saved
