"""What the nodes share: inputs, checks of widgets, latents, text on a node, and the route that the page asks."""

from __future__ import annotations

import inspect
import re
from typing import Any

import comfy.sample
from aiohttp import web
from server import PromptServer

from .folder import FOLDER, SOLVERS

__all__ = [
    "AUTO",
    "SolverName",
    "SolverNode",
    "add_routes",
    "check_number",
    "counts_of",
    "fixed_latent",
    "inputs",
    "show_text",
]

AUTO = "auto"
_INPUTS: dict[str, tuple[Any, dict[str, Any], str]] = {  # name: type, options, tooltip
    "model": ("MODEL", {}, "The model to sample."),
    "positive": ("CONDITIONING", {}, "Conditioning to follow."),
    "negative": ("CONDITIONING", {}, "Conditioning to avoid; ignored at CFG 1."),
    "latent": ("LATENT", {}, ""),
    "latent_image": ("LATENT", {}, ""),
    "vae": ("VAE", {}, ""),
    "seed": (
        "INT",
        {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True},
        "Seed of the noise that sampling starts from.",
    ),
    "solver": (
        [AUTO],  # and the files of the moment
        {},
        f"A solver file: bundled, or from models/{FOLDER}. auto takes one that was fitted for this architecture, else "
        "one that transfers to this prediction type.",
    ),
    "steps": (
        "INT",
        {"default": 6, "min": 1, "max": 100},
        "Model calls. A solver has the step counts it was fitted for; another count is an error that lists them. CFG "
        "above 1 runs the model on both prompts in each call.",
    ),
    "cfg": (
        "FLOAT",
        {"default": 7.5, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01},
        "Classifier-free guidance. Best near the values the solver was fitted at; 1 for FLUX and other models whose "
        "guidance is part of the conditioning.",
    ),
    "denoise": (
        "FLOAT",
        {"default": 1.0, "min": 0.01, "max": 1.0, "step": 0.01},
        "Below 1, image-to-image: runs the last part of the solver's grid, from the noise level where a stock sampler "
        "would start. That takes part of the calls.",
    ),
}


def inputs(*names: str, **changes: dict[str, Any]) -> dict[str, Any]:
    """Shared inputs by name, for INPUT_TYPES; a keyword is a name too, with options to change: `steps={"min": 0}`."""
    made = {}
    for name in (*names, *changes):
        kind, options, tooltip = _INPUTS[name]
        kind = [*kind, *SOLVERS.names()] if name == "solver" else kind
        made[name] = (kind, {**options, "tooltip": tooltip, **changes.get(name, {})})
    return made


class SolverNode:
    """A node of this pack; it runs again when the file of its `solver` input changes."""

    CATEGORY = "sampling/learned solvers"

    @classmethod
    def IS_CHANGED(cls, solver: str | None = None, **_: Any) -> str:
        """A text that changes when the solver's file does; with `auto` or a wired name, when any file does."""
        return SOLVERS.fingerprint(*([] if solver in (None, AUTO) else [solver]))


class SolverName(str):
    """An output type that may be wired into STRING inputs and into drop-downs, whose type is their list of entries."""

    def __ne__(self, other: object) -> bool:  # ComfyUI asks `received != expected`
        return isinstance(other, str) and not {"STRING", "COMBO", "*"} & set(other.split(","))

    __hash__ = str.__hash__


def check_number(name: str, value: float, lowest: float, highest: float) -> None:
    """Refuses a number outside a widget's range, and NaN: the host checks what is typed, not what is wired."""
    if not lowest <= value <= highest:
        raise ValueError(f"{name} must be from {lowest:g} to {highest:g}, got {value:g}")


def counts_of(text: str) -> tuple[int, ...]:
    """The step counts of a widget's text, ascending; anything but counts from 1 to 100 is refused."""
    words = re.split(r"[\s,;]+", text.strip())
    if not all(re.fullmatch(r"[1-9]\d?|100", word) for word in words):
        raise ValueError(f"steps must be numbers of model calls from 1 to 100, such as 4 6 8, got {text!r}")
    return tuple(sorted({int(word) for word in words}))


def fixed_latent(model: Any, latent: dict[str, Any]) -> dict[str, Any]:
    """A copy of a LATENT; an empty one gets the channels and the size that the model takes."""
    fixed = latent.copy()
    ratios = [fixed.pop("downscale_ratio_spacial", None), fixed.pop("downscale_ratio_temporal", None)]
    accepted = len(inspect.signature(comfy.sample.fix_empty_latent_channels).parameters)  # ratios came after 0.3.64
    fixed["samples"] = comfy.sample.fix_empty_latent_channels(model, fixed["samples"], *ratios[: max(0, accepted - 2)])
    return fixed


def show_text(text: str, node_id: str | None = None) -> None:
    """Shows text below a node's widgets: of the node with that id, or of the one that is being run."""
    server = getattr(PromptServer, "instance", None)  # there is none where another program uses the nodes
    if server is not None and (shown_on := node_id or server.last_node_id):
        server.send_progress_text(text, shown_on)


def add_routes() -> None:
    """Adds GET /learned_solvers/steps?solver=ENTRY for the browser: {"steps": [4, 6, 8]}, or 404 and the reason."""
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return

    @server.routes.get("/learned_solvers/steps")
    async def steps(request: Any) -> Any:
        try:
            return web.json_response({"steps": SOLVERS.load(request.query.get("solver", "")).steps})
        except (OSError, ValueError) as error:
            return web.json_response({"error": str(error)}, status=404)
