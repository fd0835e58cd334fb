"""Stock drop-downs, one-node sampling and its messages, in real ComfyUI servers."""

from __future__ import annotations

import itertools
import json
import re
import subprocess

import pytest
import torch
from comfy_host import error_of, python_of, succeeded
from comfy_prompts import WIRES, ksampler, learned, model_nodes, node, one_node, sampled, saved, saved_latent
from torch.testing import assert_close

pytestmark = pytest.mark.comfy
NAMES, SCHEDULER = ["dyweight", "ds_solver"], "learned"


def options(server, kind, name):
    entry = server.get(f"/object_info/{kind}")[kind]["input"]["required"][name]
    return entry[0] if isinstance(entry[0], list) else entry[1]["options"]


# ---- what loading the pack does


def own_lists(checkout):
    """Returns the host's own samplers and schedulers, without any pack."""
    code = """if True:
        import sys; sys.argv = ["main.py", "--cpu"]
        import comfy.options; comfy.options.enable_args_parsing()
        import json, comfy.samplers
        print(json.dumps([list(comfy.samplers.SAMPLER_NAMES), list(comfy.samplers.SCHEDULER_NAMES)]))"""
    command = [str(python_of(checkout)), "-B", "-c", code]
    ran = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


def test_stock_drop_downs_end_with_our_names_and_are_otherwise_the_hosts_own(server):
    samplers, schedulers = own_lists(server.checkout)
    samplers, schedulers = [*samplers, *NAMES], [*schedulers, SCHEDULER]
    for kind in ("KSampler", "KSamplerAdvanced", "KSamplerSelect"):
        assert options(server, kind, "sampler_name") == samplers
    for kind in ("KSampler", "KSamplerAdvanced", "BasicScheduler"):
        assert options(server, kind, "scheduler") == schedulers


def test_reloading_and_registering_again_change_nothing(server):
    prompt = {"r": node("ReloadPack", again=1), "t": node("PreviewAny", source=["r", 0])}
    lists = json.loads(succeeded(server.submit(prompt))["outputs"]["t"]["text"][0])
    assert lists["after"] == lists["before"] and lists["same"]
    assert lists["split"] == [["euler", "mine", *NAMES], ["euler", "heun", *NAMES]]
    # k-diffusion's module was reloaded: the names must still be found in it.
    prompt = saved(model_nodes(server, "sd15"), a=ksampler("ds_solver", 5))
    assert torch.isfinite(saved_latent(server, succeeded(server.submit(prompt)), "a")).all()


# ---- samplers in stock nodes


@pytest.mark.parametrize(
    ("model", "sampler", "solver", "steps", "scheduler"),
    [
        ("sd15", "dyweight", "dyweight_sd15", 6, "simple"),
        ("sd15", "ds_solver", "ds_vp-dit", 7, "karras"),
        ("sd15", "dyweight", "dyweight_sd15", 4, "learned"),
        ("flux", "dyweight", "dyweight_flux1-dev", 3, "simple"),
        ("sd3", "ds_solver", "ds_flow-sit", 5, "learned"),
        ("wan", "ds_solver", "ds_flow-sit", 5, "simple"),
    ],
)
def test_ksampler_equals_the_learned_solver_node_and_the_one_node(server, model, sampler, solver, steps, scheduler):
    prompt = {**model_nodes(server, model, width=96), "solver": learned(solver, steps)}
    prompt = sampled(prompt, ["solver", 0], ["solver", 1], "ours")
    prompt = saved(prompt, stock=ksampler(sampler, steps, scheduler), one=one_node(solver, steps))
    history = succeeded(server.submit(prompt))
    ours, stock, one = (saved_latent(server, history, name) for name in ("ours", "stock", "one"))
    scale = float(ours.abs().max())
    assert_close(stock, ours, rtol=0, atol=1e-5 * scale)
    assert_close(one, ours, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("model", "sampler", "steps", "message"),
    [
        ("sd15", "dyweight", 7, "choose the steps of dyweight_sd15 (4, 6, 8, 10 steps)"),
        ("sd15", "dyweight", 7, "or choose the sampler ds_solver (ds_vp-dit)"),
        ("sd3", "dyweight", 6, "Name a file, or the steps of the whole grid, with the node Set Learned Solver"),
        ("sd3", "ds_solver", 20, "one step more than requested (7 for 6)"),
        ("sd3", "ds_solver", 20, "choose the steps of ds_flow-sit (5, 6, 7, 8, 9, 10 steps)"),
    ],
)
def test_steps_that_no_solver_has_are_refused_with_the_list(server, model, sampler, steps, message):
    prompt = saved(model_nodes(server, model), a=ksampler(sampler, steps))
    assert message in error_of(server.submit(prompt))


def test_set_learned_solver_names_the_file_and_leaves_stock_samplers_alone(server):
    prompt = model_nodes(server, "sd3")
    prompt["set"] = node("SetLearnedSolver", model=["1", 0], solver="ds_flow-flowdcn", steps=0)
    prompt = saved(
        prompt,
        named=ksampler("ds_solver", 6, model=["set", 0]),
        same=one_node("ds_flow-flowdcn", 6),
        auto=ksampler("ds_solver", 6),
        euler=ksampler("euler", 6),
        patched=ksampler("euler", 6, model=["set", 0]),
    )
    history = succeeded(server.submit(prompt))
    got = {name: saved_latent(server, history, name) for name in ("named", "same", "auto", "euler", "patched")}
    assert torch.equal(got["named"], got["same"]) and torch.equal(got["euler"], got["patched"])
    assert not torch.allclose(got["named"], got["auto"], atol=1e-3)


def test_set_learned_solver_refuses_the_other_familys_sampler(server):
    prompt = model_nodes(server, "sd3")
    prompt["set"] = node("SetLearnedSolver", model=["1", 0], solver="ds_flow-sit", steps=0)
    prompt = saved(prompt, a=ksampler("dyweight", 6, model=["set", 0]))
    assert "choose the sampler ds_solver" in error_of(server.submit(prompt))


def test_set_learned_solver_names_the_steps_for_a_part_of_the_grid(server):
    prompt = model_nodes(server, "sd15")
    prompt["set"] = node("SetLearnedSolver", model=["1", 0], solver="dyweight_sd15", steps=8)
    advanced = {**WIRES, "model": ["set", 0], "noise_seed": 7, "cfg": 2.0, "steps": 8}
    advanced |= {"add_noise": "enable", "start_at_step": 4, "end_at_step": 10000}
    advanced |= {"return_with_leftover_noise": "disable", "sampler_name": "dyweight", "scheduler": "simple"}
    prompt = saved(prompt, a=node("KSamplerAdvanced", **advanced))
    assert torch.isfinite(saved_latent(server, succeeded(server.submit(prompt)), "a")).all()
    assert re.search("sampler dyweight: dyweight_sd15, [345] of its 8 model calls; fitted for v1-5", server.log)
    prompt["a"]["inputs"]["model"] = ["1", 0]  # unnamed, four sigmas are four steps
    prompt["a"]["inputs"]["start_at_step"] = 1
    message = error_of(server.submit(prompt))
    assert "dyweight solver for SD15 (vp) model has 7 steps" in message and "more than requested (7 for 6)" in message
    prompt["set"]["inputs"]["steps"] = 7  # named, they are no scheduler's
    prompt["a"]["inputs"]["model"] = ["set", 0]
    message = error_of(server.submit(prompt))
    assert "dyweight_sd15 was fitted for 4, 6, 8 and 10 steps, got 7" in message and "ddim_uniform" not in message
    prompt["set"]["inputs"]["steps"] = 0
    assert "ddim_uniform may produce one step more than requested" in error_of(server.submit(prompt))


def test_denoise_below_one_runs_the_last_part_of_the_solver(server):
    prompt = model_nodes(server, "sd15")
    prompt["calls"] = node("PreviewAny", source=["one", 1])
    prompt = saved(prompt, stock=ksampler("dyweight", 6, denoise=0.5), one=one_node("dyweight_sd15", 6, denoise=0.5))
    history = succeeded(server.submit(prompt))
    assert "3 of its 6 model calls, from sigma 1.6" in history["outputs"]["calls"]["text"][0]
    assert "dyweight_sd15 makes 3 model calls" in server.log
    line = "sampler dyweight: dyweight_sd15, 3 of its 6 model calls; 6 steps, as many as this node's sigmas: if a start"
    assert line in server.log
    stock, one = saved_latent(server, history, "stock"), saved_latent(server, history, "one")
    # They start at almost the same level: the scheduler's, and the one of the percentage.
    assert_close(stock, one, rtol=0, atol=0.1 * float(one.abs().max()))


def test_one_model_call_is_one(server):
    prompt = saved(model_nodes(server, "sd15"), a=ksampler("dyweight", 4, denoise=0.1))
    succeeded(server.submit(prompt))
    assert "sampler dyweight: dyweight_sd15, 1 of its 4 model calls" in server.log
    assert "dyweight_sd15 makes 1 model call; of the" in server.log


def test_the_whole_grid_is_its_steps_and_the_checkpoint_is_said(server):
    prompt = saved(model_nodes(server, "sd15"), a=ksampler("dyweight", 10))
    succeeded(server.submit(prompt))
    assert "sampler dyweight: dyweight_sd15, 10 steps; fitted for v1-5-pruned-emaonly; fitted at" in server.log


@pytest.mark.parametrize(("model", "solver"), [("sd15", "ds_vp-dit"), ("sd3", "ds_flow-sit")])
@pytest.mark.parametrize("steps", [6, 20])
def test_the_scheduler_gives_the_transferable_solvers_levels_from_the_top_to_zero(server, model, solver, steps):
    prompt = {k: v for k, v in model_nodes(server, model).items() if k == "1"}
    prompt["s"] = node("BasicScheduler", model=["1", 0], scheduler="learned", steps=steps, denoise=1.0)
    prompt["own"] = learned(solver, 6 if steps == 6 else 10, latent=False)
    prompt |= {"t": node("PreviewAny", source=["s", 0]), "u": node("PreviewAny", source=["own", 1])}
    outputs = succeeded(server.submit(prompt))["outputs"]
    got, own = (numbers(outputs[name]["text"][0]) for name in ("t", "u"))
    assert len(got) == steps + 1 and got[-1] == 0 and all(a > b for a, b in itertools.pairwise(got))
    if steps == 6:
        assert got[:-1] == pytest.approx(own[:-1], rel=1e-3)
    else:
        assert got[::2][:-1] == pytest.approx(own[:-1], rel=1e-3)  # every other level is one of the ten


def numbers(text):
    return [float(word) for word in re.findall(r"-?\d+\.?\d*(?:e[-+]?\d+)?", text.partition("[")[2].partition("]")[0])]


def test_the_scheduler_refuses_edm_models(server):
    prompt = {k: v for k, v in model_nodes(server, "sd15").items() if k == "1"}
    prompt["edm"] = node("ModelSamplingContinuousEDM", model=["1", 0], sampling="edm", sigma_max=80.0, sigma_min=0.002)
    prompt["s"] = node("BasicScheduler", model=["edm", 0], scheduler="learned", steps=6, denoise=1.0)
    prompt["t"] = node("PreviewAny", source=["s", 0])
    assert "no learned schedule for them: choose another scheduler" in error_of(server.submit(prompt))


def test_the_browser_can_ask_for_the_step_counts_of_a_file(server):
    assert server.get("/learned_solvers/steps?solver=dyweight_sd15") == {"steps": [4, 6, 8, 10]}
    with pytest.raises(OSError, match="404"):
        server.get("/learned_solvers/steps?solver=../secret")
    steps = server.get("/object_info/LearnedSolverKSampler")["LearnedSolverKSampler"]["input"]["required"]["steps"]
    assert steps[0] == "INT"


# ---- descriptions and tooltips


def test_every_node_and_every_input_is_explained(server):
    ours = {k: v for k, v in server.get("/object_info").items() if v["category"] == "sampling/learned solvers"}
    assert len(ours) == 6
    for name, entry in ours.items():
        assert entry["description"] and entry["display_name"] != name
        inputs = {**entry["input"].get("required", {}), **entry["input"].get("optional", {})}
        assert [key for key, value in inputs.items() if not value[1].get("tooltip")] == []
        assert len(entry["output_tooltips"]) == len(entry["output"])
