"""Situations that a sampler meets in ComfyUI, each sampled twice: by the Learned Solver node and by an oracle.

Two oracles. `EULER` is a solver file whose weights are Euler's, beside the stock sampler of that name on the same
sigmas. The published tables, with their calls off the grid and rows that use the past, run beside the papers' formulas
as written out in the test pack.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from comfy_host import Server, error_of
from comfy_prompts import Prompt, learned, model_nodes, node, saved_latent
from learned_solvers.samplers import Grid, Solver
from learned_solvers.samplers.files.card import Card, StepCard
from torch import Tensor
from torch.testing import assert_close

__all__ = [
    "ORACLES",
    "WIDE",
    "Oracle",
    "Situation",
    "assert_same",
    "differs",
    "error_in",
    "euler_file",
    "euler_solver",
    "is_wide",
    "plain",
]

EULER_STEPS = 4
WIDE = "FLUX has its full width on this core, a second per call: run on a newer ComfyUI, where a small one does"
KINDS = {"sd15": "vp", "hydit": "vp"}


@dataclass(frozen=True)
class Oracle:
    """A solver ("euler" for the Euler file), its steps, and the published table that the test pack samples it by."""

    solver: str
    steps: int
    table: str | None = None

    @property
    def sampler(self) -> dict[str, Any]:
        if self.table is None:
            return node("KSamplerSelect", sampler_name="euler")
        return node("TinyPublished", table=self.table, steps=self.steps)


EULER = Oracle("euler", EULER_STEPS)
DS_FLOW = Oracle("ds_flow-sit", 5, "flow-sit")
PUBLISHED = {
    "sd15": Oracle("dyweight_sd15", 4, "00036-mscoco-nfe8"),
    "hydit": Oracle("ds_vp-dit", 5, "vp-dit"),
    "flux": Oracle("dyweight_flux1-dev", 3, "flux1-dev-nfe3"),
}
ORACLES = ("euler", "published")


def oracle_of(model: str, which: str) -> Oracle:
    return EULER if which == "euler" else PUBLISHED.get(model, DS_FLOW)


def is_wide(server: Server, model: str) -> bool:
    """Whether a model has its full width on this core, and takes a second per call."""
    return model == "flux" and (server.base / "models" / "diffusion_models" / "tiny_flux.pth").exists()


def euler_solver(kind: str, steps: int = EULER_STEPS) -> Solver:
    """Returns a DyWeight solver that is Euler on a stock grid: shift 3 for flow models, Karras for VP models."""
    grid = Grid("flow_shift", {"shift": 3.0}) if kind == "flow" else Grid("karras", {"rho": 7.0})
    parameters = {
        "weights": torch.eye(steps, dtype=torch.float64)[None],
        "t_scale": torch.ones(1, steps, dtype=torch.float64),
    }
    card = Card("dyweight", kind, "Test", "none", {steps: StepCard(grid=grid)})
    return Solver("euler", card, {steps: parameters})


def euler_file(server: Server, kind: str) -> str:
    """Returns the drop-down entry of the Euler file, written if need be. It names no model, so auto never takes it."""
    path: Path = server.base / "models" / "solver_weights" / f"euler_{kind}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        euler_solver(kind).save(path)
    return path.name


@dataclass
class Situation:
    """A prompt under construction. Change its wires, add nodes, then `pair` samples it by ours and by the oracle."""

    server: Server
    name: str
    oracle: Oracle
    prompt: Prompt = field(default_factory=dict)
    model: list[Any] = field(default_factory=lambda: ["1", 0])
    positive: list[Any] = field(default_factory=lambda: ["2", 0])
    negative: list[Any] = field(default_factory=lambda: ["3", 0])
    latent: list[Any] = field(default_factory=lambda: ["4", 0])
    noise: list[Any] = field(default_factory=lambda: ["5", 0])
    cfg: float = 2.0
    denoise: float = 1.0
    guider: dict[str, Any] | None = None

    @classmethod
    def of(cls, server: Server, name: str, which: str, **size: int) -> Situation:
        return cls(server, name, oracle_of(name, which), model_nodes(server, name, **size))

    def add(self, key: str, kind: str, **inputs: Any) -> list[Any]:
        """Adds a node and returns the wire of its first output."""
        self.prompt[key] = node(kind, **inputs)
        return [key, 0]

    def solver(self) -> None:
        """Adds "ours" (SAMPLER, SIGMAS) and "theirs"."""
        entry = euler_file(self.server, KINDS.get(self.name, "flow")) if self.oracle == EULER else self.oracle.solver
        self.prompt["ours"] = learned(entry, self.oracle.steps, self.denoise)
        self.prompt["ours"]["inputs"] |= {"model": self.model, "latent": self.latent}
        self.prompt["theirs"] = self.oracle.sampler

    def run(self, prefix: str, sampler: list[Any], sigmas: list[Any], **wires: list[Any]) -> list[Any]:
        """Adds a run that is saved, and returns its latent's wire."""
        guider = self.guider or node("CFGGuider", cfg=self.cfg, negative=self.negative, positive=self.positive)
        self.prompt[f"{prefix}guider"] = {**guider, "inputs": {"model": self.model, **guider["inputs"]}}
        inputs = {"noise": self.noise, "latent_image": self.latent, "guider": [f"{prefix}guider", 0], **wires}
        self.add(f"{prefix}run", "SamplerCustomAdvanced", sampler=sampler, sigmas=sigmas, **inputs)
        self.add(f"{prefix}save", "SaveLatent", samples=[f"{prefix}run", 0], filename_prefix=f"latents/{prefix}")
        return [f"{prefix}run", 0]

    def submit(self, *prefixes: str) -> list[Tensor]:
        """Returns the latents of runs."""
        history = self.server.submit(self.prompt)
        assert "refused" not in history, history
        assert history["status"]["status_str"] == "success", error_of(history)
        self.history = history
        return [saved_latent(self.server, history, prefix) for prefix in prefixes]

    def pair(self, sigmas: list[Any] | None = None) -> tuple[Tensor, Tensor]:
        """Returns our latent and the oracle's, on the solver's own sigmas or on others."""
        self.solver()
        for each in ("ours", "theirs"):
            self.run(each, [each, 0], sigmas or ["ours", 1])
        ours, theirs = self.submit("ours", "theirs")
        return ours, theirs

    def assert_oracle(self, sigmas: list[Any] | None = None) -> Tensor:
        """Returns our latent, which must be the oracle's."""
        ours, theirs = self.pair(sigmas)
        assert_same(ours, theirs)
        return ours


def assert_same(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """Asserts equality to a part of the largest value: both sum the same float32 terms, in another order."""
    assert torch.isfinite(theirs).all() and float(theirs.abs().max()) > 0
    assert_close(ours, theirs, rtol=0, atol=tolerance * float(theirs.abs().max()))


def plain(server: Server, name: str, which: str, **size: int) -> Tensor:
    """Returns our latent without anything special, sampled once per server."""
    key = (name, which, *size.items())
    if key not in server.memo:
        situation = Situation.of(server, name, which, **size)
        situation.solver()
        situation.run("ours", ["ours", 0], ["ours", 1])
        (server.memo[key],) = situation.submit("ours")
    return server.memo[key]


def differs(a: Tensor, b: Tensor) -> bool:
    """Whether two latents are not the same, by ten times the tolerance that the same ones are allowed."""
    return float((a - b).abs().max()) > 1e-4 * float(b.abs().max())


def error_in(situation: Situation) -> str:
    """Returns the message that a prompt ends with."""
    history = situation.server.submit(situation.prompt)
    assert history["status"]["status_str"] == "error", "nothing was refused"
    return error_of(history)
