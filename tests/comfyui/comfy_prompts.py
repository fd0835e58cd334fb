"""API prompts on the tiny models: a `Graph` builds, submits and reads one, from the nodes of `model_nodes`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from comfy_host import Server, error_of, succeeded
from safetensors.torch import load_file
from torch import Tensor

Prompt = dict[str, dict[str, Any]]
Wire = list[Any]
WIRES = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}


MODELS = {  # stem of the file, latent node, size of the conditioning
    "sd15": ("tiny_sd15", "EmptyLatentImage", {"tokens": 77, "dim": 768, "pooled": 0}),
    "sd3": ("tiny_sd3", "EmptySD3LatentImage", {"tokens": 8, "dim": 64, "pooled": 32}),
    "flux": ("tiny_flux", "EmptySD3LatentImage", {"tokens": 8, "dim": 64, "pooled": 768}),
    "wan": ("tiny_wan", "EmptyHunyuanLatentVideo", {"tokens": 8, "dim": 4096, "pooled": 0}),
    "hunyuanvideo": ("tiny_hunyuanvideo", "EmptyHunyuanLatentVideo", {"tokens": 8, "dim": 64, "pooled": 768}),
    "hydit": ("tiny_hydit", "EmptyLatentImage", {"tokens": 77, "dim": 1024, "pooled": 1024, "t5": 256}),
    "ltxav": ("tiny_ltxav", "EmptyLTXVLatentVideo", {"tokens": 8, "dim": 128, "pooled": 0}),
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
    if file == "tiny_flux.pth":  # an old core's FLUX has its full width
        cond = {**cond, "dim": 4096}
    video = {"length": 5} if "Video" in latent else {}
    return {
        "1": node("UNETLoader", unet_name=file, weight_dtype="default"),
        "2": node("TinyConditioning", **cond, seed=1),
        "3": node("TinyConditioning", **cond, seed=2),
        "4": node(latent, width=width, height=height, batch_size=batch, **video),
        "5": node("RandomNoise", noise_seed=7),
    }


def ksampler(sampler: str, steps: int, scheduler: str = "simple", model: Any = ("1", 0), **more: Any) -> dict[str, Any]:
    """The stock KSampler."""
    inputs = {"seed": 7, "cfg": 2.0, "denoise": 1.0, **WIRES, "model": list(model), **more}
    return node("KSampler", sampler_name=sampler, scheduler=scheduler, steps=steps, **inputs)


def one_node(solver: str, steps: int, **more: Any) -> dict[str, Any]:
    """KSampler (Learned Solver)."""
    inputs = {"seed": 7, "cfg": 2.0, "denoise": 1.0, **WIRES, **more}
    return node("LearnedSolverKSampler", solver=solver, steps=steps, **inputs)


def saved(prompt: Prompt, **runs: dict[str, Any]) -> Prompt:
    """The prompt with these nodes, and a SaveLatent for each."""
    for name, run in runs.items():
        prompt = {**prompt, name: run, f"{name}save": node("SaveLatent", samples=[name, 0], filename_prefix=name)}
    return prompt


def saved_latent(server: Server, history: dict[str, Any], name: str) -> Tensor:
    """What SaveLatent wrote, from the file on disk."""
    entry = history["outputs"][f"{name}save"]["latents"][0]
    return load_file(server.base / "output" / entry["subfolder"] / entry["filename"])["latent_tensor"]


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
        self.prompt = saved(self.prompt, **runs)

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

    def submit(self, *keys: str) -> list[Tensor]:
        """Runs the prompt, and returns the latents of these nodes."""
        self.history = succeeded(self.server.submit(self.prompt))
        return [self.sampled(key) for key in keys]

    def sampled(self, key: str) -> Tensor:
        return saved_latent(self.server, self.history, key)

    def text(self, key: str) -> str:
        return self.history["outputs"][key]["text"][0]

    def numbers(self, key: str) -> list[float]:
        """The numbers of a tensor that a text node shows."""
        return [float(number) for number in self.text(key).partition("[")[2].partition("]")[0].split(",")]

    def error(self) -> str:
        """Runs the prompt, and returns the message that it ends with."""
        history = self.server.submit(self.prompt)
        assert history["status"]["status_str"] == "error", "nothing was refused"
        return error_of(history)
