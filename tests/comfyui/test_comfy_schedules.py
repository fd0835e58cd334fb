"""Patched models, rounded timesteps, and models whose ODE is another one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from comfy_prompts import node
from comfy_situations import (
    EULER,
    ORACLES,
    WIDE,
    Situation,
    assert_same,
    differs,
    error_in,
    euler_file,
    euler_solver,
    is_wide,
    plain,
)
from learned_solvers.samplers import VPNoise, load_solver
from oracles import sd_sigmas
from torch.testing import assert_close

pytestmark = pytest.mark.comfy
both_oracles = pytest.mark.parametrize("which", ORACLES)


def patched(server, model, which, kind, **inputs):
    situation = Situation.of(server, model, which)
    situation.model = situation.add("patch", kind, model=["1", 0], **inputs)
    return situation


@both_oracles
@pytest.mark.parametrize("shift", [1.0, 6.0])
def test_model_sampling_sd3_leaves_learned_levels_alone(server, which, shift):
    ours = patched(server, "sd3", which, "ModelSamplingSD3", shift=shift).assert_oracle()
    assert_same(ours, plain(server, "sd3", which), 1e-6)


@both_oracles
@pytest.mark.parametrize("model", ["sd3", "flux"])
def test_model_sampling_flux(server, model, which):
    if is_wide(server, model):
        pytest.skip(WIDE)
    size = {"max_shift": 1.15, "base_shift": 0.5, "width": 64, "height": 64}
    ours = patched(server, model, which, "ModelSamplingFlux", **size).assert_oracle()
    if model == "sd3":  # FLUX's sampling hands the network sigma, SD3's hands it 1000 sigma
        assert differs(ours, plain(server, "sd3", which))


@pytest.mark.parametrize("zsnr", [False, True])
@pytest.mark.parametrize(("which", "solver"), [("euler", None), ("published", "ds_vp-dit")])
def test_v_prediction_and_zero_terminal_snr(server, which, solver, zsnr):
    situation = patched(server, "sd15", which, "ModelSamplingDiscrete", sampling="v_prediction", zsnr=zsnr)
    if solver:
        situation.oracle = replace(situation.oracle, solver=solver, steps=5, table="vp-dit")
    ours = situation.assert_oracle()
    assert differs(ours, plain(server, "sd15", which))


@both_oracles
def test_a_true_v_prediction_model(server, which):
    Situation.of(server, "hydit", which).assert_oracle()


# --- Timesteps of eps and v models: indices into the model's table of noise levels, rounded to the nearest.


def watched(server, solver, steps, model="1", name=None):
    """Returns the sigmas of the calls, the timesteps that the network saw, and the latent."""
    situation = Situation.of(server, "sd15", "published")
    situation.cfg = 1.0
    name = name or f"{solver} {steps} {model}"
    situation.model = situation.add("watch", "TinyWatch", model=[model, 0], name=name)
    if model != "1":
        situation.prompt[model] = node("TinyContinuousTime", model=["1", 0])
    situation.solver()
    situation.prompt["ours"]["inputs"] |= {"solver": solver, "steps": steps}
    latent = situation.run("ours", ["ours", 0], ["ours", 1])
    situation.add("text", "PreviewAny", source=situation.add("seen", "TinySeen", latent=latent, name=name))
    (ours,) = situation.submit("ours")
    seen = json.loads(situation.history["outputs"]["text"]["text"][0])
    return torch.tensor(seen["sigma"]).double(), torch.tensor(seen["timestep"]).double(), ours


VP_TABLES = [
    *[("dyweight_sd15", steps) for steps in (4, 6, 8, 10)],
    *[("ds_vp-dit", steps) for steps in (5, 7, 10)],
]


@pytest.mark.parametrize(("solver", "steps"), VP_TABLES)
def test_the_model_gets_the_learned_level_and_its_network_the_nearest_index(server, solver, steps):
    sigmas, timesteps, _ = watched(server, solver, steps)
    levels = sd_sigmas()
    learned = load_solver(solver).table(steps, VPNoise.from_sigmas(levels)).sigmas
    assert_close(sigmas, learned, rtol=2e-6, atol=0.0)  # not the table's own level: the formula for D uses this one
    nearest = (learned.log()[:, None] - levels.log()).abs().argmin(1)
    assert torch.equal(timesteps.long(), nearest) and torch.equal(timesteps, timesteps.round())
    # Half an index at most: under 0.5 % of sigma, but for the clean end, where the table is coarse.
    inside = (learned > levels[0]) & (learned < levels[-1])
    off = (learned.log() - levels.log()[nearest]).abs()
    half_gap = torch.maximum(levels.log().diff().index_select(0, nearest.clamp(max=998)),
                             levels.log().diff().index_select(0, (nearest - 1).clamp(min=0))) / 2  # fmt: skip
    assert bool((off <= half_gap + 1e-6)[inside].all())
    assert bool((off[inside & (nearest > 30)] < 0.005).all())


def test_two_levels_that_round_to_one_index_are_two_calls_of_one_network(server):
    levels = sd_sigmas()
    solver = euler_solver("vp", 3)
    grid = solver.card.steps[3].grid.levels(3, VPNoise.from_sigmas(levels))
    nearest = int((grid[1].log() - levels.log()).abs().argmin())
    # The second call at an index's own level, the third 0.1 % above it: less than half of the 0.5 % to the next.
    t_scale = torch.stack([torch.ones(()).double(), levels[nearest] / grid[1], 1.001 * levels[nearest] / grid[2]])
    path = server.base / "models" / "solver_weights" / "twins.safetensors"
    replace(solver, parameters={3: {**solver.parameters[3], "t_scale": t_scale[None]}}).save(path, overwrite=True)
    sigmas, timesteps, _ = watched(server, path.name, 3)
    path.unlink()
    assert timesteps[1] == timesteps[2] == nearest
    assert_close(sigmas[1:], torch.stack([levels[nearest], levels[nearest] * 1.001]), rtol=2e-6, atol=0.0)
    assert sigmas[1] != sigmas[2]


@pytest.mark.parametrize(("solver", "steps"), [("dyweight_sd15", 6), ("ds_vp-dit", 6)])
def test_rounding_the_timestep_changes_the_picture_little(server, solver, steps):
    sigmas, timesteps, rounded = watched(server, solver, steps)
    same_sigmas, exact, smooth = watched(server, solver, steps, model="smooth")
    assert torch.equal(sigmas, same_sigmas)
    assert float((exact - timesteps).abs().max()) <= 0.5 and float((exact - timesteps).abs().max()) > 0.05
    effect = float((rounded - smooth).norm() / smooth.norm())
    print(f"{solver}, {steps} steps: rounding changes the latent by {effect:.2e} of its norm")
    assert 1e-5 < effect < 5e-3


# --- Models whose ODE is another one.

OTHERS = {
    "V_PREDICTION_DDPM": "V_PREDICTION_DDPM",
    "IMG_TO_IMG": "IMG_TO_IMG",
    "IMG_TO_IMG_FLOW": "IMG_TO_IMG_FLOW",
    "STABLE_CASCADE": "StableCascadeSampling",
}


def with_kind(server, kind):
    known = server.get("/object_info/TinySampling")["TinySampling"]["input"]["required"]["prediction"][0]
    if kind not in known:
        pytest.skip(f"this ComfyUI has no {kind} models: set COMFYUI_PATH to a newer one")
    situation = Situation.of(server, "sd15", "published")
    situation.solver()
    situation.add("patch", "TinySampling", model=["1", 0], prediction=kind)
    return situation


def test_cosmos_predict2_is_sampled_as_the_edm_model_that_it_is(server):
    situation = with_kind(server, "FLOW_COSMOS")
    situation.model = ["patch", 0]
    situation.prompt["theirs"] = EULER.sampler
    situation.prompt["ours"]["inputs"] |= {"model": ["patch", 0], "solver": euler_file(server, "edm")}
    for each in ("ours", "theirs"):
        situation.run(each, [each, 0], ["ours", 1])
    assert_same(*situation.submit("ours", "theirs"))


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("solver", ["dyweight_sd15", "auto"])
def test_a_model_with_another_ode_is_refused_by_the_node(server, kind, solver):
    situation = with_kind(server, kind)
    situation.prompt["ours"]["inputs"] |= {"model": ["patch", 0], "solver": solver}
    situation.model = ["patch", 0]
    situation.run("ours", ["ours", 0], ["ours", 1])
    message = error_in(situation)
    assert "learned solvers run on flow, eps, v and EDM models, this SD15 model's prediction is" in message
    assert OTHERS[kind] in message and "use a stock sampler for it" in message


@pytest.mark.parametrize("kind", OTHERS)
def test_a_model_patched_to_another_ode_after_the_node_is_refused_by_the_sampler(server, kind):
    situation = with_kind(server, kind)
    situation.model = ["patch", 0]
    situation.run("ours", ["ours", 0], ["ours", 1])
    message = error_in(situation)
    assert OTHERS[kind] in message and "use a stock sampler for it" in message


@pytest.mark.parametrize("sampling", ["img_to_img", "lcm"])
def test_what_stock_nodes_make_another_ode_of_is_refused_too(server, sampling):
    situation = patched(server, "sd15", "published", "ModelSamplingDiscrete", sampling=sampling, zsnr=False)
    kinds = server.get("/object_info/ModelSamplingDiscrete")["ModelSamplingDiscrete"]["input"]["required"]
    if sampling not in json.dumps(kinds):
        pytest.skip(f"this ComfyUI's ModelSamplingDiscrete has no {sampling}: set COMFYUI_PATH to a newer one")
    situation.solver()
    situation.run("ours", ["ours", 0], ["ours", 1])
    assert "use a stock sampler for it" in error_in(situation)
