"""What the nodes share: inputs, widget checks, latents, text on a node, and the route behind the steps widget."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import comfy.sample
import torch
from aiohttp import web
from server import PromptServer

from ..samplers import FlowNoise, Guidance
from ..samplers.architectures import DEFAULT_CFG
from ..samplers.families import FAMILIES
from ..samplers.text import printable
from .folder import FOLDER, SOLVERS

__all__ = [
    "AUTO",
    "SolverName",
    "SolverNode",
    "active_copy",
    "add_routes",
    "check_number",
    "cost_of_fit",
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
        "Seed of the initial noise.",
    ),
    "solver": (
        [AUTO],  # `inputs` adds the current files
        {},
        f"Solver file, bundled or from models/{FOLDER}. auto picks one fitted for this checkpoint, else for its "
        "architecture, else one that transfers to its prediction type.",
    ),
    "steps": (
        "INT",
        {"default": 6, "min": 1, "max": 100},
        "Steps, counted in model calls (NFE). A solver supports only the step counts it was fitted for; any other "
        "count raises an error that lists them. With CFG above 1, each call runs the model on both prompts.",
    ),
    "cfg": (
        "FLOAT",
        {"default": 7.5, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01},
        "Classifier-free guidance scale. Works best near the values the solver was fitted at. Use 1 for FLUX and other "
        "models with embedded guidance.",
    ),
    "denoise": (
        "FLOAT",
        {"default": 1.0, "min": 0.01, "max": 1.0, "step": 0.01},
        "Below 1: image-to-image. Only the last part of the solver's grid runs, from the noise level where a stock "
        "sampler would start, so there are fewer model calls than steps.",
    ),
}


def inputs(*names: str, **changes: dict[str, Any]) -> dict[str, Any]:
    """Shared input definitions for INPUT_TYPES, by name; a keyword also overrides options: `steps={"min": 0}`."""
    definitions = {}
    for name in (*names, *changes):
        kind, options, tooltip = _INPUTS[name]
        kind = [*kind, *SOLVERS.choices()] if name == "solver" else kind
        definitions[name] = (kind, {**options, "tooltip": tooltip, **changes.get(name, {})})
    return definitions


class SolverNode:
    """Base class of the nodes. A node runs again when the file of its `solver` input changes."""

    CATEGORY = "sampling/learned solvers"
    CHOICES: tuple[str, ...] = (AUTO,)
    """Entries of `solver` that are no files."""

    @classmethod
    def VALIDATE_INPUTS(cls, solver: str | None = None) -> bool | str:
        """Accepts any solver file by name, also those that drop-downs leave out; None is a wired name."""
        choices = [*cls.CHOICES, *SOLVERS.names()]
        return solver is None or solver in choices or f"no solver file named {printable(repr(solver), 200)}"

    @classmethod
    def IS_CHANGED(cls, solver: str | None = None, **_: Any) -> str:
        """A fingerprint of the solver's file; of all files with `auto` or a wired name."""
        return SOLVERS.fingerprint(*([] if solver in (None, AUTO) else [solver]))


class SolverName(str):
    """An output type that connects to STRING inputs and to drop-downs, whose type is their list of entries."""

    def __ne__(self, other: object) -> bool:  # ComfyUI compares `received != expected`
        return isinstance(other, str) and not {"STRING", "COMBO", "*"} & set(other.split(","))

    __hash__ = str.__hash__


def check_number(name: str, value: float, lowest: float, highest: float) -> None:
    """Refuses a number outside a widget's range, and NaN: the host validates typed values, not wired ones."""
    if not lowest <= value <= highest:
        raise ValueError(f"{name} must be between {lowest:g} and {highest:g}, got {value:g}")


def counts_of(text: str) -> tuple[int, ...]:
    """The step counts in a widget's text, ascending; refuses anything but whole numbers from 1 to 100."""
    words = re.split(r"[\s,;]+", text.strip())
    if not all(re.fullmatch(r"[1-9]\d?|100", word) for word in words):
        raise ValueError(f"steps must be whole numbers from 1 to 100, such as 4 6 8, got {text!r}")
    return tuple(sorted({int(word) for word in words}))


def fixed_latent(model: Any, latent: dict[str, Any]) -> dict[str, Any]:
    """A copy of a LATENT; an empty one gets the channels and the size that the model expects."""
    fixed = latent.copy()
    ratios = [fixed.pop("downscale_ratio_spacial", None), fixed.pop("downscale_ratio_temporal", None)]
    accepted = len(inspect.signature(comfy.sample.fix_empty_latent_channels).parameters)  # 0.3.64 has no ratios
    fixed["samples"] = comfy.sample.fix_empty_latent_channels(model, fixed["samples"], *ratios[: max(0, accepted - 2)])
    return fixed


def show_text(text: str, node_id: str | None = None) -> None:
    """Shows text below the widgets of the node with this id, or of the node that is running."""
    server = getattr(PromptServer, "instance", None)  # none where another program imports the nodes
    if server is not None and (target := node_id or server.last_node_id):
        server.send_progress_text(text, target)


def active_copy() -> Path | None:
    """The folder of another copy of the pack whose nodes the host has; None without one."""
    host = sys.modules.get("nodes")  # None where another program imports the pack
    node: Any = getattr(host, "NODE_CLASS_MAPPINGS", {}).get("LearnedSolver")
    module = None if node is None else sys.modules.get(node.__module__)
    file = getattr(module, "__file__", None)
    folder = None if file is None else Path(file).parents[1]
    return None if folder == Path(__file__).parents[1] else folder


def add_routes() -> None:
    """Adds two routes for the page; 404 with the reason if they cannot answer.

    GET /learned_solvers/steps?solver=ENTRY: {"steps": [4, 6, 8]}.
    GET /learned_solvers/fit_cost?steps=4+6&seconds=1.5: {"cost": "3,000 model calls, about 75 minutes"}; see
    `cost_of_fit`.
    """
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return

    @server.routes.get("/learned_solvers/steps")
    async def steps(request: Any) -> Any:
        try:
            return web.json_response({"steps": SOLVERS.load(request.query.get("solver", "")).steps})
        except (OSError, ValueError) as error:
            return web.json_response({"error": str(error)}, status=404)

    @server.routes.get("/learned_solvers/fit_cost")
    async def fit_cost(request: Any) -> Any:
        try:
            seconds = float(request.query.get("seconds", "0"))
            check_number("seconds", seconds, 0, 1e6)
            return web.json_response({"cost": cost_of_fit(counts_of(request.query.get("steps", "")), seconds)})
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=404)


def cost_of_fit(steps: tuple[int, ...], seconds: float) -> str:
    """Calls and duration that a fit with the default effort usually takes; without the duration at 0 seconds a call."""
    from ..training.cost import usual_calls
    from ..training.data.samples import Samples
    from ..training.effort import EFFORTS
    from ..training.job import FitJob, FitSettings
    from ..training.meter import about

    numbers = 4 * 64 * 64  # of SD 1.5's latents; larger ones take as many calls
    samples, held_out = EFFORTS["default"].for_numbers(numbers).sizes(None)
    settings = FitSettings(
        next(iter(FAMILIES)), steps, held_out=held_out, guidance=Guidance.around(DEFAULT_CFG).values,
        guidance_argument="guidance",
    )  # fmt: skip
    calls = usual_calls(FitJob(settings, Samples(torch.zeros(samples + held_out, numbers), {}, 1), FlowNoise(), {}))
    return f"{calls:,} model calls" + (f", {about(calls * seconds)}" if seconds else "")
