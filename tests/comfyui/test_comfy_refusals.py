"""Prompts that a server refuses, with the facts that the message names."""

from __future__ import annotations

import pytest
from comfy_prompts import Graph, ksampler, model_nodes, options

pytestmark = pytest.mark.comfy


def use_another_model(graph):
    """The node knows SD 1.5, the sampler gets SD3."""
    graph.prompt |= {f"sd3-{key}": entry for key, entry in model_nodes(graph.server, "sd3").items()}
    wires = {"model": ["sd3-1", 0], "positive": ["sd3-2", 0], "negative": ["sd3-3", 0]}
    graph.prompt["runguider"]["inputs"] |= wires
    graph.prompt["run"]["inputs"]["latent_image"] = ["sd3-4", 0]


def patch(kind, after_the_node=False, **inputs):
    """Patches the model, for the node and the sampler or for the sampler alone."""

    def change(graph):
        name = next(iter(inputs))
        if inputs[name] not in options(graph.server, kind, name):
            pytest.skip(f"this ComfyUI's {kind} has no {inputs[name]}: set COMFYUI_PATH to a newer one")
        wire = graph.add("patch", kind, model=["1", 0], **inputs)
        graph.prompt["runguider"]["inputs"]["model"] = wire
        if not after_the_node:
            graph.prompt["runsolver"]["inputs"]["model"] = wire

    return change


def flip_sigmas(graph):
    graph.prompt["run"]["inputs"]["sigmas"] = graph.add("flip", "FlipSigmas", sigmas=["runsolver", 1])


def use_the_last_stock_step(graph):
    """The part of a stock schedule that starts where dyweight_sd15 ends, at the model's lowest level."""
    schedule = {"model": ["1", 0], "scheduler": "karras", "steps": 4, "denoise": 1.0}
    graph.add("split", "SplitSigmas", sigmas=graph.add("schedule", "BasicScheduler", **schedule), step=3)
    graph.prompt["run"]["inputs"]["sigmas"] = ["split", 1]


def connect(kind, value, name):
    """A number from a node: the host validates typed values only."""

    def change(graph):
        graph.prompt["runsolver"]["inputs"][name] = graph.add("number", kind, value=value)

    return change


def type_nan(graph):  # of NaN the host validates nothing
    graph.prompt["runsolver"]["inputs"]["denoise"] = float("nan")


SD15, SD3 = ("sd15", "dyweight_sd15", 4), ("sd3", "ds_flow-sit", 5)
OTHER_ODES = {kind: kind for kind in ("V_PREDICTION_DDPM", "IMG_TO_IMG", "IMG_TO_IMG_FLOW")}
OTHER_ODES |= {"STABLE_CASCADE": "StableCascadeSampling"}
REFUSALS = {  # model, solver and steps, a change to the graph, and the facts
    "vp solver": (("sd3", "dyweight_sd15", 6), None, ["dyweight_sd15", "vp", "flow"]),
    "flow solver": (("sd15", "ds_flow-sit", 6), None, ["ds_flow-sit", "flow", "vp"]),
    "another model than the node's": (SD15, use_another_model, ["dyweight_sd15", "vp", "flow"]),
    "steps": (("sd15", "dyweight_sd15", 5), None, ["dyweight_sd15", "4, 6, 8 and 10 steps", " 5"]),
    "steps of auto": (("sd15", "auto", 3), None, ["SD15", "3 steps", "dyweight_sd15 (4, 6, 8, 10"]),
    "ascending sigmas": (SD3, flip_sigmas, ["descending"]),
    "below the solver's end": (SD15, use_the_last_stock_step, ["0.02"]),
    "denoise of NaN": (SD3, type_nan, ["denoise must be from 0.01 to 1, got nan"]),
}
for value in (-1.0, 0.0, 2.0):
    REFUSALS[f"denoise {value}"] = (SD3, connect("PrimitiveFloat", value, "denoise"), ["denoise", f"got {value:g}"])
for value in (10**9, -5, 0):
    facts = ["5, 6, 7, 8, 9 and 10 steps", f" {value}"]
    REFUSALS[f"{value} steps"] = (SD3, connect("PrimitiveInt", value, "steps"), facts)
for kind, name in OTHER_ODES.items():
    facts = [name, "stock sampler"]
    REFUSALS[kind] = (SD15, patch("TinySampling", prediction=kind), facts)
    REFUSALS[f"auto, {kind}"] = (("sd15", "auto", 4), patch("TinySampling", prediction=kind), facts)
    REFUSALS[f"{kind} after the node"] = (SD15, patch("TinySampling", after_the_node=True, prediction=kind), facts)
for kind, zsnr, facts in (
    ("img_to_img", False, ["stock sampler"]),
    ("lcm", False, ["stock sampler"]),
    ("v_prediction", True, ["noise schedule", "sigma 4"]),
):
    REFUSALS[f"{kind} of a stock node"] = (SD15, patch("ModelSamplingDiscrete", sampling=kind, zsnr=zsnr), facts)


@pytest.mark.parametrize("case", REFUSALS)
def test_learned_solver_is_refused_with_the_facts(server, case):
    (model, solver, steps), change, facts = REFUSALS[case]
    graph = Graph.of(server, model)
    graph.sample_learned("run", solver, steps)
    if change is not None:
        change(graph)
    assert_facts(graph.error(), facts)


def assert_facts(message, facts):
    assert [fact for fact in facts if fact not in message] == [], message


@pytest.mark.parametrize(
    ("model", "sampler", "steps", "facts"),
    [
        ("sd15", "dyweight", 7, ["dyweight_sd15 (4, 6, 8, 10 steps)", "sampler ds_solver (ds_vp-dit)", "(7 for 6)"]),
        ("sd3", "ds_solver", 20, ["ds_flow-sit (5, 6, 7, 8, 9, 10 steps)", "ddim_uniform may produce one step more"]),
        ("sd3", "dyweight", 6, ["in Set Learned Solver"]),
    ],
)
def test_a_sampler_of_the_drop_down_is_refused_with_the_facts(server, model, sampler, steps, facts):
    graph = Graph.of(server, model)
    graph.save(run=ksampler(sampler, steps))
    assert_facts(graph.error(), facts)


def test_set_learned_solver_refuses_the_other_familys_sampler(server):
    graph = Graph.of(server, "sd3")
    model = graph.add("set", "SetLearnedSolver", model=["1", 0], solver="ds_flow-sit", steps=0)
    graph.save(run=ksampler("dyweight", 6, model=model))
    assert_facts(graph.error(), ["ds_flow-sit is a DS-Solver file", "ds_solver", "the sampler dyweight"])


def test_there_is_no_learned_schedule_for_an_edm_model(server):
    graph = Graph.of(server, "sd15")
    edm = {"sampling": "edm", "sigma_max": 80.0, "sigma_min": 0.002}
    model = graph.add("edm", "ModelSamplingContinuousEDM", model=["1", 0], **edm)
    schedule = {"model": model, "scheduler": "learned", "steps": 6, "denoise": 1.0}
    graph.show("sigmas", graph.add("schedule", "BasicScheduler", **schedule))
    assert_facts(graph.error(), ["edm", "Choose another scheduler"])
