"""Stock drop-downs and nodes, in real ComfyUI servers, and what explains the nodes to a user."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace

import pytest
import torch
from comfy_graphs import WIRES, Graph, assert_same, differs, ksampler, node, one_node, options
from comfy_host import Server, run_script
from host_server import ROOT
from learned_solvers.samplers import load_solver

NAMES = ["dyweight", "ds_solver"]

# ---- what loading the pack does


@pytest.fixture(scope="module")
def imported(server):
    """What importing the pack does, measured in a separate process, and the host's lists before the import."""
    pack = server.base / "custom_nodes" / "learned-solvers"
    return json.loads(run_script(server.checkout, "import_pack.py", pack).splitlines()[-1])


def test_stock_drop_downs_end_with_our_names_and_are_otherwise_the_hosts_own(server, imported):
    samplers, schedulers = imported["samplers"], imported["schedulers"]
    for kind in ("KSampler", "KSamplerAdvanced", "KSamplerSelect"):
        names = [name for name in options(server, kind, "sampler_name") if name != "broken"]  # the test pack's
        assert names == [*samplers, *NAMES]
    for kind in ("KSampler", "KSamplerAdvanced", "BasicScheduler"):
        assert options(server, kind, "scheduler") == [*schedulers, "learned"]


def test_reloading_and_registering_again_change_nothing(server):
    graph = Graph.of(server, "sd15")
    graph.show("lists", graph.add("reload", "ReloadPack", again=1))
    graph.submit()
    lists = json.loads(graph.text("lists"))
    assert lists["after"] == lists["before"] and lists["same"]
    assert lists["split"] == [["euler", "mine", *NAMES], ["euler", "heun", *NAMES]]
    # k-diffusion's module was reloaded: the names must still be found in it.
    graph.save(run=ksampler("ds_solver", 5))
    assert all(torch.isfinite(latent).all() for latent in graph.submit("run"))


def test_importing_the_pack_loads_no_package_and_touches_no_file_and_no_network(server, imported):
    assert imported["nodes"] > 0
    assert imported["written"] == imported["read"] == imported["network"] == []
    pack = server.base / "custom_nodes" / "learned-solvers"
    folders = [pack, pack / "nodes", pack / "samplers", *(pack / "samplers").iterdir()]
    assert {*imported["listed"]} <= {str(folder) for folder in folders}  # where Python looks
    assert imported["foreign"] == []  # the host has all that it needs
    # A server that only samples does not load the code that fits a solver.
    assert imported["own"] and {name.split(".")[1] for name in imported["own"]} == {"nodes", "samplers"}


def test_a_server_with_two_copies_serves_one_and_names_the_other(server, tmp_path):
    copies = [tmp_path / "custom_nodes" / name for name in ("learned-solvers", "learned-solvers-main")]
    for copy in copies:
        copy.parent.mkdir(exist_ok=True)
        copy.symlink_to(ROOT, target_is_directory=True)
    with Server(server.checkout, tmp_path) as two:
        assert two.get("/learned_solvers/steps?solver=dyweight_sd15") == {"steps": [4, 6, 8, 10]}
        assert options(two, "LearnedSolverKSampler", "solver")
        assert len([path for path in two.get("/extensions") if path.endswith("/learned_solvers.js")]) == 1
        (line,) = [line for line in two.log.splitlines() if "custom_nodes twice" in line]
        assert all(f"{copy} is " in line for copy in copies)


# ---- samplers and scheduler in stock nodes


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
    graph = Graph.of(server, model, width=96)
    graph.sample_learned("custom", solver, steps)
    graph.save(stock=ksampler(sampler, steps, scheduler), one=one_node(solver, steps))
    custom, stock, one = graph.submit("custom", "stock", "one")
    assert_same(stock, custom)
    assert_same(one, custom)


def test_auto_takes_the_file_of_this_checkpoint_and_names_the_others(server):
    graph = Graph.of(server, "sd15")
    loads = {"plain": "default", "fp8": "fp8_e4m3fn"}
    for key, dtype in loads.items():
        graph.add(key, "UNETLoader", unet_name="tiny_sd15.safetensors", weight_dtype=dtype)
    lora = graph.add(
        "lora", "LoraLoaderModelOnly", model=["1", 0], lora_name="tiny_lora.safetensors", strength_model=1.0
    )
    graph.save(run=ksampler("euler", 1, model=lora))
    graph.add("sd2", "UNETLoader", unet_name="tiny_sd21.safetensors", weight_dtype="default")
    for key in (*loads, "sd2"):
        graph.show(key + "text", graph.add(key + "print", "TinyFingerprint", model=[key, 0]))
    graph.show("loratext", graph.add("loraprint", "TinyFingerprint", model=lora, after=["run", 0]))
    graph.submit()
    plain, fp8, sd2, with_lora = (graph.text(f"{key}text") for key in ("plain", "fp8", "sd2", "lora"))
    assert plain == with_lora and len({plain, sd2, fp8}) == 3 and fp8 == ""
    solver = load_solver("dyweight_sd15")
    for name, facts in {
        "own": {"checkpoint": "mine", "fingerprint": plain, "date": "2026-01-01"},
        "newer": {"checkpoint": "other", "fingerprint": sd2, "date": "2026-02-01"},
    }.items():
        replace(solver, card=replace(solver.card, **facts)).save(server.solver(name))
    graph = Graph.of(server, "sd15")
    graph.save(run=one_node("auto", 6), named=one_node("newer.safetensors", 6))
    graph.show("info", ["run", 1])
    graph.show("namedinfo", ["named", 1])
    graph.submit()
    info = graph.text("info")
    assert info.startswith("own.safetensors (models/solver_weights): 6 steps") and "fitted for mine" in info
    assert "also fitted for SD15: newer.safetensors, dyweight_sd15" in info
    assert "fitted for other, you use another SD15 checkpoint" in graph.text("namedinfo")


def test_set_learned_solver_names_the_file_and_leaves_stock_samplers_alone(server):
    graph = Graph.of(server, "sd3")
    model = graph.add("set", "SetLearnedSolver", model=["1", 0], solver="ds_flow-flowdcn", steps=0)
    graph.save(same=one_node("ds_flow-flowdcn", 6))
    for name in ("ds_solver", "euler"):
        graph.save(**{name: ksampler(name, 6), f"patched {name}": ksampler(name, 6, model=model)})
    runs = ("patched ds_solver", "same", "ds_solver", "euler", "patched euler")
    named, same, auto, euler, patched_euler = graph.submit(*runs)
    assert torch.equal(named, same) and torch.equal(euler, patched_euler)
    assert differs(named, auto)


def test_set_learned_solver_may_take_the_nearest_steps(server):
    graph = Graph.of(server, "sd15")
    nearest = {"model": ["1", 0], "solver": "dyweight_sd15", "steps": 0, "missing_steps": "nearest"}
    for name, solver in (("named", "dyweight_sd15"), ("auto", "auto")):
        model = graph.add(f"set {name}", "SetLearnedSolver", **nearest | {"solver": solver})
        graph.save(**{name: ksampler("dyweight", 20, model=model)})
    graph.save(ten=ksampler("dyweight", 10))
    with server.messages() as messages:
        named, auto, ten = graph.submit("named", "auto", "ten")
        notes = [data for kind, data in messages if kind == "text"]
    assert_same(named, ten)
    assert_same(auto, ten)
    assert sum("dyweight_sd15, 10 calls. Nearest to the 20 steps requested. Fitted" in note for note in notes) == 2


def test_set_learned_solver_names_the_steps_for_a_part_of_the_grid(server):
    graph = Graph.of(server, "sd15")
    patched = graph.add("set", "SetLearnedSolver", model=["1", 0], solver="dyweight_sd15", steps=8)
    advanced = {**WIRES, "noise_seed": 7, "cfg": 2.0, "steps": 8, "sampler_name": "dyweight", "scheduler": "simple"}
    advanced |= {"add_noise": "enable", "return_with_leftover_noise": "disable", "end_at_step": 10000}

    def run_from(step, model, set_steps):
        graph.prompt["set"]["inputs"]["steps"] = set_steps
        graph.save(run=node("KSamplerAdvanced", **advanced | {"model": model, "start_at_step": step}))
        return graph

    before = len(server.log)
    assert all(torch.isfinite(latent).all() for latent in run_from(4, patched, 8).submit("run"))
    assert re.search("sampler dyweight: dyweight_sd15, [345] of its 8 model calls; fitted at", server.log[before:])
    # Without the steps of the whole grid, the sigmas of seven steps are a grid of seven, from any scheduler.
    for model, set_steps, hint in ((["1", 0], 8, True), (patched, 7, False), (patched, 0, True)):
        message = run_from(1, model, set_steps).error()
        assert "dyweight_sd15" in message and re.search(r"\b7\b(?! for 6)", message)
        assert ("ddim_uniform may produce one more step" in message) == hint


def test_the_log_says_how_much_of_the_grid_ran(server):
    graph = Graph.of(server, "sd15")
    graph.save(half=ksampler("dyweight", 6, denoise=0.5), one=one_node("dyweight_sd15", 6, denoise=0.5))
    graph.save(last=ksampler("dyweight", 4, denoise=0.1), whole=ksampler("dyweight", 10))
    graph.show("info", ["one", 1])
    before = len(server.log)
    half, one = graph.submit("half", "one")
    assert "3 of its 6 model calls, from sigma 1.6" in graph.text("info")
    # They start at almost the same level: the scheduler's, and the one of the percentage.
    assert_same(half, one, 0.1)
    for line in (
        "sampler dyweight: dyweight_sd15, 3 of its 6 model calls; fitted",
        "dyweight_sd15 makes 3 model calls; only",
        "sampler dyweight: dyweight_sd15, 1 of its 4 model calls",
        "dyweight_sd15 makes 1 model call; only",
        "sampler dyweight: dyweight_sd15, 10 steps; fitted at CFG 7.5, you use 2; fitted at 512x512",
    ):
        assert line in server.log[before:]


@pytest.mark.parametrize(("model", "solver"), [("sd15", "ds_vp-dit"), ("sd3", "ds_flow-sit")])
def test_the_scheduler_gives_the_transferable_solvers_levels_from_the_top_to_zero(server, model, solver):
    graph = Graph.of(server, model)
    for steps, count in ((6, 6), (20, 10)):
        schedule = {"model": ["1", 0], "scheduler": "learned", "steps": steps, "denoise": 1.0}
        graph.show(f"{steps}", graph.add(f"schedule{steps}", "BasicScheduler", **schedule))
        graph.show(f"own{steps}", graph.learn(f"own{steps}", solver, count, latent=False)[1])
    graph.submit()
    for steps in (6, 20):
        levels, solver_levels = graph.numbers(f"{steps}"), graph.numbers(f"own{steps}")
        assert len(levels) == steps + 1 and levels[-1] == 0 and all(a > b for a, b in itertools.pairwise(levels))
        every = steps // (len(solver_levels) - 1)  # of 20, every other level is one of the ten
        assert levels[::every][:-1] == pytest.approx(solver_levels[:-1], rel=1e-3)


# ---- tooltips and help


def test_every_node_and_every_input_is_explained(server):
    entries = {k: v for k, v in server.get("/object_info").items() if v["category"] == "sampling/learned solvers"}
    assert len(entries) == 7
    for name, entry in entries.items():
        assert "learned-solvers" in entry["python_module"]
        assert entry["description"] and entry["display_name"] != name
        assert len(entry["output_tooltips"]) == len(entry["output"])
        page = server.request(f"/extensions/learned-solvers/docs/{name}.md").decode()
        assert page.startswith(f"# {entry['display_name']}\n")
        inputs = {**entry["input"].get("required", {}), **entry["input"].get("optional", {})}
        assert [key for key, value in inputs.items() if not value[1].get("tooltip")] == []
        assert [key for key in inputs if not re.search(rf"^\|[^|]*\b{key}\b", page, re.M)] == []
    steps = entries["LearnedSolverKSampler"]["input"]["required"]["steps"]
    assert steps[0] == "INT"  # for the API, also where the page shows a list
