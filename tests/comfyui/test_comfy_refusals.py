"""Prompts that a server refuses, with the facts that the message names."""

from __future__ import annotations

import pytest
from comfy_graphs import MODELS, Graph, ksampler, node, options


def learned(solver, steps, nodes=None, **inputs):
    """Samples with Learned Solver as "run", then adds nodes and changes inputs of "run", "runguider", "runsolver"."""

    def build(graph):
        graph.sample_learned("run", solver, steps)
        graph.prompt |= nodes or {}
        for key, changed in inputs.items():
            graph.prompt[key]["inputs"] |= changed

    return build


def sd15(nodes=None, **inputs):
    return learned("dyweight_sd15", 4, nodes, **inputs)


def sd3(nodes=None, **inputs):
    return learned("ds_flow-sit", 5, nodes, **inputs)


def stock(sampler, steps, solver=None):
    """Samples with a sampler of the drop-down, perhaps after Set Learned Solver."""

    def build(graph):
        if solver is not None:
            graph.model = graph.add("set", "SetLearnedSolver", model=["1", 0], solver=solver, steps=0)
        graph.save(run=ksampler(sampler, steps, model=graph.model))

    return build


def schedule_of_edm(graph):
    edm = {"sampling": "edm", "sigma_max": 80.0, "sigma_min": 0.002}
    graph.model = graph.add("edm", "ModelSamplingContinuousEDM", model=["1", 0], **edm)
    schedule = {"model": graph.model, "scheduler": "learned", "steps": 6, "denoise": 1.0}
    graph.show("sigmas", graph.add("schedule", "BasicScheduler", **schedule))


OTHER = {  # the node knows SD 1.5, the sampler gets SD3
    "other": node("UNETLoader", unet_name="tiny_sd3.safetensors", weight_dtype="default"),
    "cond": node("TinyConditioning", **MODELS["sd3"][2], seed=1),
    "latent": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
}
TO_OTHER = {"runguider": {"model": ["other", 0], "positive": ["cond", 0], "negative": ["cond", 0]}}
TO_OTHER["run"] = {"latent_image": ["latent", 0]}
KARRAS = node("BasicScheduler", model=["1", 0], scheduler="karras", steps=4, denoise=1.0)
# The part of a stock schedule that starts where dyweight_sd15 ends, at the model's lowest level.
LAST_STEP = {"karras": KARRAS, "split": node("SplitSigmas", sigmas=["karras", 0], step=3)}
FLIPPED = {"flip": node("FlipSigmas", sigmas=["runsolver", 1])}
SD15_STEPS, SIT_STEPS = (
    "dyweight_sd15 has 4, 6, 8 and 10 steps, not",
    "ds_flow-sit has 5, 6, 7, 8, 9 and 10 steps, not 20",
)
OTHER_FAMILY = ["ds_flow-sit is a DS-Solver file", "ds_solver", "the sampler dyweight"]
REFUSALS = {  # model, what samples, and the facts
    "vp solver": ("sd3", learned("dyweight_sd15", 6), ["dyweight_sd15", "vp", "flow"]),
    "flow solver": ("sd15", learned("ds_flow-sit", 6), ["ds_flow-sit", "flow", "vp"]),
    "another model than the node's": ("sd15", sd15(OTHER, **TO_OTHER), ["dyweight_sd15", "vp", "flow"]),
    "steps": ("sd15", learned("dyweight_sd15", 5), ["dyweight_sd15", "4, 6, 8 and 10 steps", " 5"]),
    "steps of auto": ("sd15", learned("auto", 3), [f"{SD15_STEPS} 3: set steps to 4"]),
    "ascending sigmas": ("sd3", sd3(FLIPPED, run={"sigmas": ["flip", 0]}), ["descending"]),
    "below the solver's end": ("sd15", sd15(LAST_STEP, run={"sigmas": ["split", 1]}), ["0.02"]),
    # Of NaN the host validates nothing.
    "NaN": ("sd3", sd3(runsolver={"denoise": float("nan")}), ["denoise must be between 0.01 and 1, got nan"]),
    "dyweight": ("sd15", stock("dyweight", 20), [f"sampler dyweight: {SD15_STEPS} 20: set steps to 10"]),
    "one step too many": ("sd15", stock("dyweight", 7), [f"{SD15_STEPS} 7: set steps to 8", "one more step than"]),
    "ds_solver": ("sd3", stock("ds_solver", 20), [SIT_STEPS]),
    "no dyweight file": ("sd3", stock("dyweight", 6), ["sampler dyweight: choose the sampler ds_solver (ds_flow-sit)"]),
    "the other family's sampler": ("sd3", stock("dyweight", 6, "ds_flow-sit"), OTHER_FAMILY),
    "learned schedule of an EDM model": ("sd15", schedule_of_edm, ["edm", "Choose another scheduler"]),
}
for kind, name, value, facts in (  # a number from a node: the host validates typed values only
    *(("PrimitiveFloat", "denoise", value, ["denoise", f"got {value:g}"]) for value in (-1.0, 0.0, 2.0)),
    *(("PrimitiveInt", "steps", n, ["5, 6, 7, 8, 9 and 10 steps", f" {n}"]) for n in (10**9, -5, 0)),
):
    numbers = {"number": node(kind, value=value)}
    REFUSALS[f"{name} {value}"] = ("sd3", sd3(numbers, runsolver={name: ["number", 0]}), facts)
PATCHED = {"model": ["patch", 0]}
for kind in ("V_PREDICTION_DDPM", "IMG_TO_IMG", "IMG_TO_IMG_FLOW", "STABLE_CASCADE"):
    patch = {"patch": node("TinySampling", prediction=kind, model=["1", 0])}
    facts = [{"STABLE_CASCADE": "StableCascadeSampling"}.get(kind, kind), "stock sampler"]
    REFUSALS[kind] = ("sd15", sd15(patch, runguider=PATCHED, runsolver=PATCHED), facts)
    REFUSALS[f"auto, {kind}"] = ("sd15", learned("auto", 4, patch, runguider=PATCHED, runsolver=PATCHED), facts)
    REFUSALS[f"{kind} after the node"] = ("sd15", sd15(patch, runguider=PATCHED), facts)
for kind, facts in (
    ("img_to_img", ["stock sampler"]),
    ("lcm", ["stock sampler"]),
    ("v_prediction", ["noise schedule", "sigma 4"]),
):
    patch = {"patch": node("ModelSamplingDiscrete", sampling=kind, zsnr=kind == "v_prediction", model=["1", 0])}
    REFUSALS[f"{kind} of a stock node"] = ("sd15", sd15(patch, runguider=PATCHED, runsolver=PATCHED), facts)


@pytest.mark.parametrize("case", REFUSALS)
def test_a_prompt_is_refused_with_the_facts(server, case):
    model, build, facts = REFUSALS[case]
    graph = Graph.of(server, model)
    build(graph)
    if "patch" in graph.prompt:
        kind, (name, value) = graph.prompt["patch"]["class_type"], next(iter(graph.prompt["patch"]["inputs"].items()))
        if value not in options(server, kind, name):
            pytest.skip(f"this ComfyUI's {kind} has no {value}: set COMFYUI_PATH to a newer one")
    message = graph.error()
    assert [fact for fact in facts if fact not in message] == [], message
    assert ("ddim_uniform" in message) == (case == "one step too many")
