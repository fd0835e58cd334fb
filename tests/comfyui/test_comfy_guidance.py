"""The guidance of a run chooses between a file's knots, whatever samples; a mismatch is reported."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from comfy_host import error_of, succeeded
from comfy_prompts import ksampler, learned, model_nodes, node, one_node, sampled, saved, saved_latent
from comfy_situations import assert_same, differs
from learned_solvers.samplers import Solver, load_solver
from oracles import knotted_solver

pytestmark = pytest.mark.comfy
STEPS = 2


def single(guidance):
    """The knotted solver's parameters at a guidance from 2 to 8, by hand, as a solver that knows no guidance."""
    part = math.log(guidance / 2, 4)
    first = torch.tensor([[0.3 + 0.2 * part]], dtype=torch.float64)
    coeffs = torch.tensor([[[0, 0], [-0.2 - 0.4 * part, 0]]], dtype=torch.float64)
    card = replace(
        knotted_solver().card, guidance=None, steps={STEPS: replace(knotted_solver().card.steps[STEPS], knots=())}
    )
    return Solver("single", card, {STEPS: {"timedeltas": torch.cat([first, 1 - first], 1), "coeffs": coeffs}})


@pytest.fixture(scope="module")
def files(server):
    """Solver files: with knots at CFG or embedded guidance 2 and 8, usually 8; and what they are at 2, 3.5, 4 and 8."""
    solvers = {"knots": knotted_solver(), "embedded": knotted_solver(kind="embedded")}
    solvers |= {f"at{guidance:g}": single(guidance) for guidance in (2, 3.5, 4, 8)}
    folder = server.base / "models" / "solver_weights"
    folder.mkdir(parents=True, exist_ok=True)
    for name, solver in solvers.items():
        solver.save(folder / f"{name}.safetensors")
    yield
    for name in solvers:
        (folder / f"{name}.safetensors").unlink()


def with_solvers(prompt, *names):
    """Adds a Learned Solver node per file, and a text node with what it says."""
    for name in names:
        prompt = {**prompt, name: learned(f"{name}.safetensors", STEPS)}
        prompt[f"{name}info"] = node("PreviewAny", source=[name, 2])
    return prompt


def test_every_way_to_sample_uses_the_guidance_of_the_run(server, files):
    prompt = with_solvers(model_nodes(server, "sd3"), "knots", "at4", "at8")
    for name in ("knots", "at4", "at8"):
        prompt = sampled(prompt, [name, 0], [name, 1], name, cfg=4.0)
    prompt["set"] = node("SetLearnedSolver", model=["1", 0], solver="knots.safetensors", steps=0)
    prompt = saved(
        prompt,
        one=one_node("knots.safetensors", STEPS, cfg=4.0),
        stock=ksampler("ds_solver", STEPS, model=["set", 0], cfg=4.0),
    )
    history = succeeded(server.submit(prompt))
    knots, at4, at8, one, stock = (saved_latent(server, history, n) for n in ("knots", "at4", "at8", "one", "stock"))
    for latent in (knots, one, stock):
        assert_same(latent, at4)
    assert differs(at8, at4)


CONDS = {"positive": ["2", 0], "negative": ["3", 0]}
GUIDERS = {
    "BasicGuider": (
        node("BasicGuider", conditioning=["2", 0]),
        2,
        "this run uses CFG 1: the parameters for 2 are used",
    ),
    "above": (node("CFGGuider", **CONDS, cfg=20.0), 8, "this run uses CFG 20: the parameters for 8 are used"),
    "PerpNegGuider": (node("PerpNegGuider", **CONDS, empty_conditioning=["3", 0], cfg=4.0, neg_scale=0.7), 4, None),
    "DualCFGGuider": (
        node("DualCFGGuider", cond1=["2", 0], cond2=["3", 0], negative=["3", 0], cfg_conds=4.0, cfg_cond2_negative=3.0),
        8,
        "the sampler uses yours where it is one number, else 8",
    ),
    "TinyScheduledGuider": (node("TinyScheduledGuider", **CONDS, first=4.0, later=1.5), 4, None),
}


@pytest.mark.parametrize("guider", GUIDERS)
def test_any_guider_gets_the_parameters_of_its_first_cfg_else_the_usual_ones(server, files, guider):
    made, guidance, message = GUIDERS[guider]
    extra = {}
    if "style" in str(server.get(f"/object_info/{made['class_type']}")):
        extra["style"] = "regular"
    prompt = with_solvers(model_nodes(server, "sd3"), "knots", f"at{guidance}")
    for name in ("knots", f"at{guidance}"):
        prompt = sampled(prompt, [name, 0], [name, 1], name)
        prompt[f"{name}guider"] = node(made["class_type"], model=["1", 0], **made["inputs"], **extra)
    before = len(server.log)
    history = succeeded(server.submit(prompt))
    assert_same(saved_latent(server, history, "knots"), saved_latent(server, history, f"at{guidance}"))
    log = re.findall(r"knots\.safetensors: fitted at CFG 2, 8, (.*)", server.log[before:])
    assert log == ([] if message is None else [message])


def test_the_node_shows_the_usual_levels_until_a_guider_is_known(server, files):
    prompt = with_solvers(model_nodes(server, "sd3"), "knots")
    prompt["sigmas"] = node("PreviewAny", source=["knots", 1])
    outputs = succeeded(server.submit(prompt))["outputs"]
    assert "[1.0000, 0.5000, 0.0000]" in outputs["sigmas"]["text"][0]
    assert (
        "fitted at CFG 2, 8, the sampler uses yours where it is one number, else 8" in outputs["knotsinfo"]["text"][0]
    )


@pytest.mark.parametrize("masked", [False, True])
def test_a_sampler_that_wraps_the_model_in_a_function_gets_the_same(server, files, masked):
    prompt = with_solvers(model_nodes(server, "sd3"), "knots", "at4")
    prompt["wrapped"] = node("TinyWrapped", sampler=["knots", 0])
    prompt = sampled(prompt, ["wrapped", 0], ["knots", 1], "wrapped", cfg=4.0)
    prompt = sampled(prompt, ["at4", 0], ["at4", 1], "at4", cfg=4.0)
    if masked:
        prompt["mask"] = node("SolidMask", value=1.0, width=8, height=8)
        prompt["masked"] = node("SetLatentNoiseMask", samples=["4", 0], mask=["mask", 0])
        for name in ("wrapped", "at4"):
            prompt[f"{name}run"]["inputs"]["latent_image"] = ["masked", 0]
    history = succeeded(server.submit(prompt))
    assert_same(saved_latent(server, history, "wrapped"), saved_latent(server, history, "at4"))


FLUX = {  # conditioning node, its widgets: the guidance whose parameters are used, and the remark
    "FluxGuidance": ({"guidance": 4.0}, 4, None),
    "default": ({}, 3.5, None),
    "FluxDisableGuidance": ({}, 8, "this run uses CFG 1: the usual parameters are used"),
}


@pytest.mark.parametrize("kind", FLUX)
def test_embedded_guidance_is_that_of_the_conditioning_else_the_hosts_default(server, files, kind):
    widgets, guidance, message = FLUX[kind]
    prompt = with_solvers(model_nodes(server, "flux"), "embedded", f"at{guidance}")
    prompt["own"] = prompt["2"] if kind == "default" else node(kind, conditioning=["2", 0], **widgets)
    for name in ("embedded", f"at{guidance}"):
        prompt = sampled(prompt, [name, 0], [name, 1], name)
        prompt[f"{name}guider"] = node("BasicGuider", model=["1", 0], conditioning=["own", 0])
    prompt = saved(prompt, one=one_node("embedded.safetensors", STEPS, cfg=1.0, positive=["own", 0]))
    prompt["info"] = node("PreviewAny", source=["one", 1])
    history = succeeded(server.submit(prompt))
    expected = saved_latent(server, history, f"at{guidance}")
    assert_same(saved_latent(server, history, "embedded"), expected)
    assert_same(saved_latent(server, history, "one"), expected)
    info = history["outputs"]["info"]["text"][0]
    assert ("fitted at embedded guidance" in info) == (message is not None) and (message or "") in info


# ---- remarks


@pytest.mark.parametrize(
    ("model", "solver", "cfg", "fitted"),
    [("sd15", "dyweight_sd15", 7.5, "CFG 7.5"), ("sd3", "ds_flow-sit", 1.2, "CFG 1, 1.375")],
)
def test_another_guidance_than_that_of_the_fit_is_reported(server, model, solver, cfg, fitted):
    prompt = model_nodes(server, model)
    steps = load_solver(solver).steps[1]
    for name, guidance in (("same", cfg), ("other", 3.0)):
        prompt = saved(prompt, **{name: one_node(solver, steps, cfg=guidance, seed=int(guidance))})
        prompt[f"{name}info"] = node("PreviewAny", source=[name, 1])
    prompt = saved(prompt, stock=ksampler(load_solver(solver).family.replace("ds", "ds_solver"), steps, cfg=3.25))
    outputs = succeeded(server.submit(prompt))["outputs"]
    assert f"fitted at {fitted}, this run uses CFG 3\n" in outputs["otherinfo"]["text"][0] + "\n"
    assert "this run uses" not in outputs["sameinfo"]["text"][0]
    assert f"fitted at {fitted}, this run uses CFG 3.25" in server.log


def test_a_node_that_sees_the_guidance_reports_it_once(server, files):
    prompt = model_nodes(server, "sd3")
    prompt["set"] = node("SetLearnedSolver", model=["1", 0], solver="knots.safetensors", steps=0)
    prompt = saved(
        prompt,
        one=one_node("knots.safetensors", STEPS, cfg=21.0),
        stock=ksampler("ds_solver", STEPS, model=["set", 0], cfg=22.0),
    )
    before = len(server.log)
    succeeded(server.submit(prompt))
    for cfg in (21, 22):
        assert server.log[before:].count(f"this run uses CFG {cfg}: the parameters for 8 are used") == 1


@pytest.mark.parametrize(
    ("model", "guidance", "remark"),
    [
        ("flux", None, None),  # the host's 3.5 at CFG 1 is the card's
        ("flux", 3.5, None),
        ("flux", 2.0, "embedded guidance 2, CFG 1"),
        ("flux", "off", "CFG 1"),
        ("hunyuanvideo", None, "embedded guidance 6, CFG 1"),
        ("hunyuanvideo", 1.0, "embedded guidance 1, CFG 1"),
        ("sd15", 3.5, "CFG 1"),  # its network reads no other guidance
        ("sd3", 3.5, None),
    ],
)
def test_the_guidance_is_what_the_network_gets(server, model, guidance, remark):
    prompt = model_nodes(server, model)
    prompt["own"] = prompt["2"]
    if guidance is not None:
        kind, widgets = ("FluxDisableGuidance", {}) if guidance == "off" else ("FluxGuidance", {"guidance": guidance})
        prompt["own"] = node(kind, conditioning=["2", 0], **widgets)
    solver = {"flux": "dyweight_flux1-dev", "sd15": "dyweight_sd15"}.get(model, "ds_flow-sit")
    prompt = saved(prompt, a=one_node(solver, load_solver(solver).steps[0], cfg=1.0, positive=["own", 0]))
    prompt["info"] = node("PreviewAny", source=["a", 1])
    info = succeeded(server.submit(prompt))["outputs"]["info"]["text"][0]
    found = [line.partition(", this run uses ")[2] for line in info.splitlines() if "this run uses" in line]
    assert found == ([] if remark is None else [remark])


def test_a_negative_cfg_samples_with_the_usual_parameters(server, files):
    prompt = with_solvers(model_nodes(server, "sd3"), "knots", "at8")
    prompt["number"] = node("PrimitiveFloat", value=-1.0)
    for name in ("knots", "at8"):
        prompt = sampled(prompt, [name, 0], [name, 1], name)
        prompt[f"{name}guider"]["inputs"]["cfg"] = ["number", 0]
    history = server.submit(prompt)
    assert history["status"]["status_str"] == "success", error_of(history)
    assert_same(saved_latent(server, history, "knots"), saved_latent(server, history, "at8"))
