"""The guidance of a run chooses between a file's knots, whichever node samples; a mismatch is reported."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from comfy_graphs import Graph, Situation, assert_same, differs, ksampler, node, one_node
from learned_solvers.samplers import Solver, load_solver
from oracles import knotted_solver

STEPS = 2
KNOTS = "knots.safetensors"


def solver_at(guidance):
    """The knotted solver's parameters at a guidance from 2 to 8, by hand, as a solver without guidance."""
    part = math.log(guidance / 2, 4)
    first = torch.tensor([[0.3 + 0.2 * part]], dtype=torch.float64)
    coeffs = torch.tensor([[[0, 0], [-0.2 - 0.4 * part, 0]]], dtype=torch.float64)
    step = replace(knotted_solver().card.steps[STEPS], knots=())
    card = replace(knotted_solver().card, guidance=None, steps={STEPS: step})
    return Solver("single", card, {STEPS: {"timedeltas": torch.cat([first, 1 - first], 1), "coeffs": coeffs}})


@pytest.fixture(autouse=True)
def files(server):
    """Solver files: with knots at CFG or embedded guidance 2 and 8, usually 8; and what they are at 2, 3.5, 4 and 8."""
    solvers = {"knots": knotted_solver(), "embedded": knotted_solver(kind="embedded")}
    for name, solver in (solvers | {f"at{guidance:g}": solver_at(guidance) for guidance in (2, 3.5, 4, 8)}).items():
        solver.save(server.solver(name))


def sample_solvers(graph, *names):
    """Adds a run with each of the solver files."""
    for name in names:
        graph.sample_learned(name, f"{name}.safetensors", STEPS)


def test_every_way_to_sample_uses_the_guidance_of_the_run(server):
    graph = Graph.of(server, "sd3")
    graph.cfg = 4.0
    sample_solvers(graph, "knots", "at4", "at8")
    graph.show("sigmas", ["knotssolver", 1])
    wrapped = graph.add("wrapper", "TinyWrapped", sampler=["knotssolver", 0])
    graph.sample("wrapped", wrapped, ["knotssolver", 1])
    model = graph.add("set", "SetLearnedSolver", model=["1", 0], solver=KNOTS, steps=0)
    graph.save(one=one_node(KNOTS, STEPS, cfg=4.0), stock=ksampler("ds_solver", STEPS, model=model, cfg=4.0))
    mask = graph.add("mask", "SolidMask", value=1.0, width=8, height=8)
    graph.latent = graph.add("masked", "SetLatentNoiseMask", samples=["4", 0], mask=mask)
    graph.sample("wrapped and masked", wrapped, ["knotssolver", 1])
    at4, at8, *latents = graph.submit("at4", "at8", "knots", "one", "stock", "wrapped", "wrapped and masked")
    for latent in latents:
        assert_same(latent, at4)
    assert differs(at8, at4)
    # The node, which knows no guidance, shows the usual levels.
    assert graph.numbers("sigmas") == [1.0, 0.5, 0.0]
    assert f"fitted at CFG 2, 8; {USUAL}" in graph.text("knotsinfo")


CONDS = {"positive": ["2", 0], "negative": ["3", 0]}
DUAL = {"cond1": ["2", 0], "cond2": ["3", 0], "negative": ["3", 0], "cfg_conds": 4.0, "cfg_cond2_negative": 3.0}
USUAL = "the sampler uses your guidance if it is a single number, otherwise 8"
GUIDERS = {  # the guider, the guidance whose parameters are used, and the remark
    "no CFG": (node("BasicGuider", conditioning=["2", 0]), 2, "you use 1: the parameters for 2 are used"),
    "above": (node("CFGGuider", **CONDS, cfg=20.0), 8, "you use 20: the parameters for 8 are used"),
    "negative": (node("CFGGuider", **CONDS, cfg=["number", 0]), 8, USUAL),
    "PerpNeg": (node("PerpNegGuider", **CONDS, empty_conditioning=["3", 0], cfg=4.0, neg_scale=0.7), 4, None),
    "two CFGs": (node("DualCFGGuider", **DUAL, style="regular"), 8, USUAL),
    "scheduled": (node("TinyScheduledGuider", **CONDS, first=4.0, later=1.5), 4, None),
}


@pytest.mark.parametrize("case", GUIDERS)
def test_any_guider_gets_the_parameters_of_its_first_cfg_else_the_usual_ones(server, case):
    guider, guidance, remark = GUIDERS[case]
    situation = Situation.of(server, "sd3")
    situation.add("number", "PrimitiveFloat", value=-1.0)
    situation.guider = guider
    sample_solvers(situation, "knots", f"at{guidance}")
    before = len(server.log)
    situation.assert_oracle()
    assert_same(situation.sampled("knots"), situation.sampled(f"at{guidance}"))
    log = re.findall(r"knots\.safetensors: fitted at CFG 2, 8[,;] (.*)", server.log[before:])
    assert log == ([] if remark is None else [remark])


@pytest.mark.parametrize(
    ("model", "solver", "cfg", "fitted", "used"),
    [
        ("sd15", "dyweight_sd15", 7.5, "CFG 7.5", ""),
        ("sd3", "ds_flow-sit", 1.2, "CFG 1, 1.375", ""),
        ("sd3", KNOTS, 4.0, "CFG 2, 8", ": the parameters for 8 are used"),
    ],
)
def test_another_guidance_than_that_of_the_fit_is_reported_once(server, model, solver, cfg, fitted, used):
    graph = Graph.of(server, model)
    loaded = knotted_solver() if solver == KNOTS else load_solver(solver)
    for name, guidance in (("same", cfg), ("other", 30.0)):
        graph.save(**{name: one_node(solver, loaded.steps[-1], cfg=guidance, seed=int(guidance))})
        graph.show(f"{name}info", [name, 1])
    model = graph.add("set", "SetLearnedSolver", model=["1", 0], solver=solver, steps=0)
    sampler = {"dyweight": "dyweight", "ds": "ds_solver"}[loaded.family]
    graph.save(stock=ksampler(sampler, loaded.steps[-1], cfg=31.0, model=model))
    before = len(server.log)
    graph.submit()
    remark = f"fitted at {fitted}, you use"
    assert f"{remark} 30{used}" in graph.text("otherinfo").splitlines()
    assert remark not in graph.text("sameinfo")
    for guidance in (30, 31):
        assert server.log[before:].count(f"{remark} {guidance}{used}") == 1


@pytest.mark.parametrize(
    ("model", "solver", "conditioning", "used", "remark"),
    [
        ("flux", "embedded.safetensors", ("FluxGuidance", {"guidance": 4.0}), 4, None),
        ("flux", "embedded.safetensors", None, 3.5, None),
        ("flux", "embedded.safetensors", ("FluxDisableGuidance", {}), 8, "CFG 1: the usual parameters are used"),
        ("flux", "dyweight_flux1-dev", None, None, None),  # the host's 3.5 at CFG 1 is the card's
        ("flux", "dyweight_flux1-dev", ("FluxGuidance", {"guidance": 2.0}), None, "embedded guidance 2, CFG 1"),
        ("hunyuanvideo", "ds_flow-sit", None, None, "embedded guidance 6, CFG 1"),
        ("hunyuanvideo", "ds_flow-sit", ("FluxGuidance", {"guidance": 1.0}), None, "embedded guidance 1, CFG 1"),
        ("sd15", "dyweight_sd15", ("FluxGuidance", {"guidance": 3.5}), None, "1"),  # its network reads no other
        ("sd3", "ds_flow-sit", ("FluxGuidance", {"guidance": 3.5}), None, None),
    ],
)
def test_the_guidance_is_what_the_network_gets(server, model, solver, conditioning, used, remark):
    graph = Graph.of(server, model)
    positive = ["2", 0]
    if conditioning is not None:
        kind, widgets = conditioning
        positive = graph.add("guided", kind, conditioning=["2", 0], **widgets)
    graph.guider = node("BasicGuider", conditioning=positive)
    steps = load_solver(solver).steps[0] if used is None else STEPS
    graph.sample_learned("custom", solver, steps)
    graph.sample_learned("expected", solver if used is None else f"at{used}.safetensors", steps)
    graph.save(one=one_node(solver, steps, cfg=1.0, positive=positive))
    graph.show("info", ["one", 1])
    expected, *latents = graph.submit("expected", "custom", "one")
    for latent in latents:
        assert_same(latent, expected)
    assert re.findall("fitted at [Ce].*, you use (.*)", graph.text("info")) == ([] if remark is None else [remark])
