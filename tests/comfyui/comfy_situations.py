"""Situations that a sampler meets in ComfyUI, each sampled twice: by the Learned Solver node and by an oracle.

Two oracles. `EULER` is a solver file with Euler's weights, compared with the stock sampler of that name on the same
sigmas. The published tables, with calls off the grid and rows that use the past, are compared with the papers' formulas
as written out in the test pack.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from comfy_host import Server
from comfy_prompts import Graph, Wire, model_nodes
from learned_solvers.samplers import Grid, Solver
from learned_solvers.samplers.files.card import Card, StepCard
from torch import Tensor
from torch.testing import assert_close

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
    if isinstance(which, Oracle):
        return which
    return EULER if which == "euler" else PUBLISHED.get(model, Oracle("ds_flow-sit", 5, "flow-sit"))


def skip_wide(server: Server, model: str) -> None:
    """Skips where FLUX has its full width and takes a second per call."""
    if model == "flux" and (server.base / "models" / "diffusion_models" / "tiny_flux.pth").exists():
        pytest.skip("FLUX has its full width on this core: run on a newer ComfyUI, where a small one does")


def euler_solver(kind: str, steps: int = EULER_STEPS) -> Solver:
    """A DyWeight solver that is Euler on a stock grid: shift 3 for flow models, Karras for VP and EDM models."""
    grid = Grid("flow_shift", {"shift": 3.0}) if kind == "flow" else Grid("karras", {"rho": 7.0})
    weights, t_scale = torch.eye(steps, dtype=torch.float64)[None], torch.ones(1, steps, dtype=torch.float64)
    card = Card("dyweight", kind, "Test", "none", {steps: StepCard(grid=grid)})
    return Solver("euler", card, {steps: {"weights": weights, "t_scale": t_scale}})


def solver_path(server: Server, name: str) -> Path:
    """The path of a solver file in models/solver_weights, which exists."""
    folder = server.base / "models" / "solver_weights"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.safetensors"


def euler_file(server: Server, kind: str) -> str:
    """The drop-down entry of the Euler file, written on first use. It names no model, so auto never takes it."""
    path = solver_path(server, f"euler_{kind}")
    if not path.exists():
        euler_solver(kind).save(path)
    return path.name


@dataclass
class Situation(Graph):
    """A graph that samples with a learned solver and with its oracle."""

    oracle: Oracle = EULER
    kind: str = "flow"
    denoise: float = 1.0

    @classmethod
    def of(cls, server: Server, model: str, which: str | Oracle = "euler", **size: int) -> Situation:
        kind = "vp" if model in ("sd15", "hydit") else "flow"
        return cls(server, model_nodes(server, model, **size), oracle=oracle_of(model, which), kind=kind)

    def samplers(self) -> tuple[dict[str, Wire], Wire]:
        """Adds both samplers, and returns their wires by name and the wire of the learned sigmas."""
        oracle = self.oracle
        entry = euler_file(self.server, self.kind) if oracle == EULER else oracle.solver
        learned, sigmas = self.learn("learned", entry, oracle.steps, self.denoise)
        if oracle.table is None:
            self.add("sampler", "KSamplerSelect", sampler_name="euler")
        else:
            self.add("sampler", "TinyPublished", table=oracle.table, steps=oracle.steps)
        return {"learned": learned, "oracle": ["sampler", 0]}, sigmas

    def pair(self) -> list[Tensor]:
        """The learned latent and the oracle's."""
        samplers, sigmas = self.samplers()
        for name, sampler in samplers.items():
            self.sample(name, sampler, sigmas)
        return self.submit(*samplers)

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


def plain(server: Server, model: str, which: str | Oracle, **size: int) -> Tensor:
    """The learned latent without anything special, sampled once per server."""
    key = (model, which, *size.items())
    if key not in server.memo:
        situation = Situation.of(server, model, which, **size)
        samplers, sigmas = situation.samplers()
        situation.sample("learned", samplers["learned"], sigmas)
        (server.memo[key],) = situation.submit("learned")
    return server.memo[key]
