"""API prompts on the tiny models: a `Graph` builds, submits and reads one, from the nodes of `model_nodes`.

A `Situation` samples it twice: by the Learned Solver node and by an oracle. There are two. `EULER` is a solver file
with Euler's weights, compared with the stock sampler of that name on the same sigmas. The published tables, with calls
off the grid and rows that use the past, are compared with the papers' formulas as written out in the test pack.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfy_host import Server
from learned_solvers.samplers import Grid, Solver, load_solver
from learned_solvers.samplers.files.card import Card, StepCard
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

Prompt = dict[str, dict[str, Any]]
Wire = list[Any]
WIRES = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
USUAL = {"seed": 7, "cfg": 2.0, "denoise": 1.0, **WIRES}


WIDE_FLUX = "tiny_flux.pth"  # an old core's FLUX has its full width
MODELS = {  # stem of the file, latent node, size of the conditioning
    "sd15": ("tiny_sd15", "EmptyLatentImage", {"tokens": 77, "dim": 768, "pooled": 0}),
    "sd3": ("tiny_sd3", "EmptySD3LatentImage", {"tokens": 8, "dim": 64, "pooled": 32}),
    "flux": ("tiny_flux", "EmptySD3LatentImage", {"tokens": 8, "dim": 64, "pooled": 768}),
    "wan": ("tiny_wan", "EmptyHunyuanLatentVideo", {"tokens": 8, "dim": 4096, "pooled": 0}),
    "hunyuanvideo": ("tiny_hunyuanvideo", "EmptyHunyuanLatentVideo", {"tokens": 8, "dim": 64, "pooled": 768}),
    "hydit": ("tiny_hydit", "EmptyLatentImage", {"tokens": 77, "dim": 1024, "pooled": 1024, "t5": 256}),
    "ltxav": ("tiny_ltxav", "EmptyLTXVLatentVideo", {"tokens": 8, "dim": 128, "pooled": 0}),
}


_EASY = {"reuse_threshold": 0.2, "start_percent": 0.0, "end_percent": 1.0, "verbose": False}
CACHES = {  # node, widgets, and its name
    "easycache": ("EasyCache", _EASY, "EasyCache"),
    "lazycache": ("LazyCache", {**_EASY, "start_percent": 0.15, "end_percent": 0.95}, "LazyCache"),
    "teacache": ("TinyCache", {"pack": "ComfyUI-TeaCache"}, "TeaCache"),
    "fbcache": ("TinyCache", {"pack": "Comfy-WaveSpeed"}, "a first-block cache"),
    "unknown cache": ("TinyCache", {"pack": "unknown"}, "a cache (step_cache)"),
}


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def options(server: Server, kind: str, name: str) -> list[str]:
    """Entries of a node's drop-down; none where this ComfyUI's node has no such input."""
    entry = server.get(f"/object_info/{kind}")[kind]["input"]["required"].get(name, [[]])
    return entry[0] if isinstance(entry[0], list) else entry[1]["options"]


def model_nodes(server: Server, name: str, *, width: int = 64, height: int = 64, batch: int = 1) -> Prompt:
    """Nodes 1 model, 2 and 3 conditioning, 4 latent, 5 noise."""
    stem, latent, cond = MODELS[name]
    file = next((f for f in options(server, "UNETLoader", "unet_name") if Path(f).stem == stem), None)
    if file is None:
        pytest.skip(f"this ComfyUI has no {name} model: set COMFYUI_PATH to a newer one")
    if file == WIDE_FLUX:
        cond = {**cond, "dim": 4096}
    video = {"length": 5} if "Video" in latent else {}
    return {
        "1": node("UNETLoader", unet_name=file, weight_dtype="default"),
        "2": node("TinyConditioning", **cond, seed=1),
        "3": node("TinyConditioning", **cond, seed=2),
        "4": node(latent, width=width, height=height, batch_size=batch, **video),
        "5": node("RandomNoise", noise_seed=7),
    }


def ksampler(sampler: str, steps: int, scheduler: str = "simple", **more: Any) -> dict[str, Any]:
    """The stock KSampler."""
    return node("KSampler", sampler_name=sampler, scheduler=scheduler, steps=steps, **{**USUAL, **more})


def one_node(solver: Any, steps: int, **more: Any) -> dict[str, Any]:
    """KSampler (Learned Solver)."""
    return node("LearnedSolverKSampler", solver=solver, steps=steps, **{**USUAL, **more})


@dataclass
class Graph:
    """A prompt under construction. Change the wires to put nodes in between; later nodes use the new ones."""

    server: Server
    prompt: Prompt
    model: Wire = field(default_factory=lambda: ["1", 0])
    positive: Wire = field(default_factory=lambda: ["2", 0])
    negative: Wire = field(default_factory=lambda: ["3", 0])
    latent: Wire = field(default_factory=lambda: ["4", 0])
    guider: dict[str, Any] | None = None
    cfg: float = 2.0
    history: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, server: Server, model: str, **size: int) -> Graph:
        return cls(server, model_nodes(server, model, **size))

    def add(self, key: str, kind: str, **inputs: Any) -> Wire:
        """Adds a node and returns the wire of its first output."""
        self.prompt[key] = node(kind, **inputs)
        return [key, 0]

    def show(self, key: str, wire: Wire) -> None:
        """Adds a text node; `text` returns what it shows."""
        self.add(key, "PreviewAny", source=wire)

    def save(self, **runs: dict[str, Any]) -> None:
        """Adds nodes that sample, each with a SaveLatent."""
        for key, run in runs.items():
            self.prompt[key] = run
            self.add(f"{key}save", "SaveLatent", samples=[key, 0], filename_prefix=key)

    def add_cache(self, name: str) -> str:
        """Puts a cache of CACHES on the model, and returns its name for users."""
        kind, widgets, title = CACHES[name]
        if not self.server.get(f"/object_info/{kind}"):
            pytest.skip(f"this ComfyUI has no {kind}: set COMFYUI_PATH to a newer one")
        self.model = self.add("cache", kind, model=self.model, **widgets)
        return title

    def learn(self, key: str, solver: str, steps: int, denoise: float = 1.0, latent: bool = True) -> tuple[Wire, Wire]:
        """Adds Learned Solver, whose info is the text `<key>info`, and returns the wires of sampler and sigmas."""
        wires = {"latent": self.latent} if latent else {}
        widgets = {"solver": solver, "steps": steps, "denoise": denoise}
        self.add(f"{key}solver", "LearnedSolver", model=self.model, **widgets, **wires)
        self.show(f"{key}info", [f"{key}solver", 2])
        return [f"{key}solver", 0], [f"{key}solver", 1]

    def sample_learned(self, key: str, solver: str, steps: int, denoise: float = 1.0, latent: bool = True) -> Wire:
        """Adds Learned Solver and a run with it, and returns the latent's wire."""
        return self.sample(key, *self.learn(key, solver, steps, denoise, latent))

    def sample(self, key: str, sampler: Wire, sigmas: Wire, **inputs: Any) -> Wire:
        """Adds a guider, SamplerCustomAdvanced and a SaveLatent, and returns the latent's wire."""
        guider = self.guider or node("CFGGuider", cfg=self.cfg, negative=self.negative, positive=self.positive)
        self.prompt[f"{key}guider"] = {**guider, "inputs": {"model": self.model, **guider["inputs"]}}
        inputs = {"noise": ["5", 0], "latent_image": self.latent, "guider": [f"{key}guider", 0], **inputs}
        self.save(**{key: node("SamplerCustomAdvanced", sampler=sampler, sigmas=sigmas, **inputs)})
        return [key, 0]

    def outcome(self) -> str:
        """Runs the prompt, and returns the message of the exception that ended it, or nothing."""
        self.history = self.server.submit(self.prompt)
        assert "refused" not in self.history, self.history
        messages = self.history["status"]["messages"]
        return next((message["exception_message"] for kind, message in messages if kind == "execution_error"), "")

    def error(self) -> str:
        message = self.outcome()
        assert message, "nothing was refused"
        return message

    def submit(self, *keys: str) -> list[Tensor]:
        """Runs the prompt to its end, and returns the latents of these nodes."""
        message = self.outcome()
        assert self.history["status"]["status_str"] == "success", message
        return [self.sampled(key) for key in keys]

    def file(self, key: str, kind: str) -> Path:
        """The file that a node wrote."""
        entry = self.history["outputs"][key][kind][0]
        return self.server.base / "output" / entry["subfolder"] / entry["filename"]

    def sampled(self, key: str) -> Tensor:
        return load_file(self.file(f"{key}save", "latents"))["latent_tensor"]

    def picture(self, key: str) -> np.ndarray:
        """What a SaveImage wrote, [H, W, 3]."""
        with Image.open(self.file(key, "images")) as image:
            return np.asarray(image.convert("RGB")).copy()

    def text(self, key: str) -> str:
        return self.history["outputs"][key]["text"][0]

    def numbers(self, key: str) -> list[float]:
        """The numbers of a tensor that a text node shows."""
        return [float(number) for number in self.text(key).partition("[")[2].partition("]")[0].split(",")]


QUICK_FIT = {"samples": 2, "steps": "1", "teacher": "euler"}


def fit(server: Server, model: str, *, name: str, batch: int = 4, size: int = 32, **widgets: Any) -> Graph:
    """A graph that fits a solver, with the report and the picture as outputs."""
    graph = Graph.of(server, model, width=size, height=size, batch=batch)
    settings = {"cfg": 2.0, "family": "dyweight", "steps": "2", "samples": 3, "teacher": "dpmpp_2m", "teacher_steps": 6}
    settings |= {"seed": 3, "file_name": name, "overwrite": False, "guidance": "2", **widgets}
    wires = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent": ["4", 0]}
    graph.add("fit", "FitLearnedSolver", **wires, **settings)
    graph.add("picture", "SaveImage", images=["fit", 1], filename_prefix=name.replace("/", "-") or "empty")
    return graph


def fitted_solver(graph: Graph) -> Solver:
    """Runs a fit and loads its file."""
    graph.submit()
    return load_solver(graph.server.solver(graph.prompt["fit"]["inputs"]["file_name"]))


def log_and_progress(messages: Iterable[tuple[str, Any]]) -> tuple[str, list[tuple[int, int]]]:
    """The lines that nodes show, and the values of the fit's progress bar with their totals."""
    seen = list(messages)
    bar = [
        (data["value"], data["max"]) for kind, data in seen if kind == "progress" and data["node"] in ("fit", "again")
    ]
    return "\n".join(text for kind, text in seen if kind == "text"), bar


# ---- situations and their oracles

EULER_STEPS = 4


@dataclass(frozen=True)
class Oracle:
    """A solver ("euler" for the Euler file), its steps, and the published table that the test pack samples it by."""

    solver: str
    steps: int
    table: str | None = None


EULER = Oracle("euler", EULER_STEPS)
DS_VP = Oracle("ds_vp-dit", 5, "vp-dit")
PUBLISHED = {
    "sd15": Oracle("dyweight_sd15", 4, "00036-mscoco-nfe8"),
    "hydit": DS_VP,
    "flux": Oracle("dyweight_flux1-dev", 3, "flux1-dev-nfe3"),
}
both_oracles = pytest.mark.parametrize("which", ["euler", "published"])


def oracle_of(model: str, which: str | Oracle) -> Oracle:
    named = {"euler": EULER, "published": PUBLISHED.get(model, Oracle("ds_flow-sit", 5, "flow-sit"))}
    return which if isinstance(which, Oracle) else named[which]


def euler_solver(kind: str, steps: int = EULER_STEPS) -> Solver:
    """A DyWeight solver that is Euler on a stock grid: shift 3 for flow models, Karras for VP and EDM models."""
    grid = Grid("flow_shift", {"shift": 3.0}) if kind == "flow" else Grid("karras", {"rho": 7.0})
    weights, t_scale = torch.eye(steps, dtype=torch.float64)[None], torch.ones(1, steps, dtype=torch.float64)
    card = Card("dyweight", kind, "Test", "none", {steps: StepCard(grid=grid)})
    return Solver("euler", card, {steps: {"weights": weights, "t_scale": t_scale}})


def euler_file(server: Server, kind: str) -> str:
    """The drop-down entry of the Euler file, which names no model, so that auto never takes it."""
    path = server.solver(f"euler_{kind}")
    return path.name if path.exists() else euler_solver(kind).save(path).name


@dataclass
class Situation(Graph):
    """A graph that samples with a learned solver and with its oracle."""

    oracle: Oracle = EULER
    kind: str = "flow"
    denoise: float = 1.0

    @classmethod
    def of(cls, server: Server, model: str, which: str | Oracle = "euler", **size: int) -> Situation:
        kind, oracle = "vp" if model in ("sd15", "hydit") else "flow", oracle_of(model, which)
        prompt = model_nodes(server, model, **size)
        if oracle.steps > 3 and prompt["1"]["inputs"]["unet_name"] == WIDE_FLUX:
            pytest.skip("FLUX has its full width on this core, a second per call: run on a newer ComfyUI")
        return cls(server, prompt, oracle=oracle, kind=kind)

    def samplers(self) -> tuple[dict[str, Wire], Wire]:
        """Adds both samplers, and returns their wires by name and the wire of the learned sigmas."""
        oracle = self.oracle
        entry = euler_file(self.server, self.kind) if oracle == EULER else oracle.solver
        learned, sigmas = self.learn("learned", entry, oracle.steps, self.denoise)
        published = {"table": oracle.table, "steps": oracle.steps}
        kind, widgets = ("TinyPublished", published) if oracle.table else ("KSamplerSelect", {"sampler_name": "euler"})
        return {"learned": learned, "oracle": self.add("sampler", kind, **widgets)}, sigmas

    def sample_pair(self) -> None:
        """Adds the runs "learned" and "oracle"."""
        samplers, sigmas = self.samplers()
        for name, sampler in samplers.items():
            self.sample(name, sampler, sigmas)

    def sample_split(self, name: str, sigmas: Wire, step: int, high: Wire, low: Wire, mask: Wire | None = None) -> None:
        """Adds the run "<name> high" up to a step and "<name>" from there on, which gets a mask and no new noise."""
        split, no_noise = self.add("split", "SplitSigmas", sigmas=sigmas, step=step), self.add("none", "DisableNoise")
        latent = self.sample(f"{name} high", high, split)
        if mask is not None:
            latent = self.add(f"{name} masked", "SetLatentNoiseMask", samples=latent, mask=mask)
        self.sample(name, low, ["split", 1], latent_image=latent, noise=no_noise)

    def pair(self) -> list[Tensor]:
        """The learned latent and the oracle's."""
        self.sample_pair()
        return self.submit("learned", "oracle")

    def assert_oracle(self) -> Tensor:
        """The learned latent, which must be the oracle's."""
        learned, oracle = self.pair()
        assert_same(learned, oracle)
        return learned

    def draw(self) -> Wire:
        """Adds a picture drawn by a stock sampler in two steps, and returns its wire."""
        sampler = self.add("euler", "KSamplerSelect", sampler_name="euler")
        schedule = {"model": ["1", 0], "scheduler": "simple", "steps": 2, "denoise": 1.0}
        return self.sample("draw", sampler, self.add("simple", "BasicScheduler", **schedule))


def assert_same(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Asserts equality to a part of the largest value: both sum the same float32 terms, in another order."""
    assert torch.isfinite(expected).all() and float(expected.abs().max()) > 0
    assert_close(actual, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def differs(a: Tensor, b: Tensor) -> bool:
    """Whether two latents differ by more than ten times the tolerance of `assert_same`."""
    return float((a - b).abs().max()) > 1e-4 * float(b.abs().max())


def plain(server: Server, model: str, which: str | Oracle, again: bool = False, **size: int) -> Tensor:
    """The learned latent without anything special, sampled once per server unless `again`."""
    key = (model, which, *size.items())
    if again or key not in server.memo:
        situation = Situation.of(server, model, which, **size)
        samplers, sigmas = situation.samplers()
        situation.sample("learned", samplers["learned"], sigmas)
        (server.memo[key],) = situation.submit("learned")
    return server.memo[key]
