"""The Learned Solver node in real ComfyUI servers: their own loaders, models of the real architectures, real files."""

from __future__ import annotations

import json
import os
import re
import shutil
import time

import pytest
import torch
from comfy_graphs import CACHES, DS_VP, Graph, Oracle, Situation, assert_same, ksampler, one_node, options
from learned_solvers.samplers import VPNoise, load_solver
from learned_solvers.samplers.files.solver import BUNDLED
from oracles import ds_solver, sd_sigmas
from torch.testing import assert_close

PUBLISHED = [  # every table on one model, and each family of grids on the other kinds of models
    *[("sd15", Oracle("dyweight_sd15", n, f"000{36 + i}-mscoco-nfe{2 * n}")) for i, n in enumerate((4, 6, 8, 10))],
    *[("flux", Oracle("dyweight_flux1-dev", n, f"flux1-dev-nfe{n}")) for n in (3, 5, 7)],
    *[("sd15", Oracle("ds_vp-dit", n, "vp-dit")) for n in (5, 6, 7, 8, 9, 10)],
    *[("sd3", Oracle("ds_flow-sit", n, "flow-sit")) for n in (5, 6, 7, 8, 9, 10)],
    *[("sd3", Oracle("ds_flow-flowdcn", n, "flow-flowdcn")) for n in (5, 6, 7, 8, 9, 10, 15)],
    *[(model, Oracle("ds_flow-sit", 6, "flow-sit")) for model in ("wan", "flux")],
    *[(model, Oracle("ds_flow-flowdcn", 15, "flow-flowdcn")) for model in ("wan", "flux")],
    ("hydit", DS_VP),  # v prediction
]


@pytest.mark.parametrize(("model", "oracle"), PUBLISHED, ids=lambda value: getattr(value, "table", value))
def test_the_result_equals_the_published_formula_by_hand(server, model, oracle):
    # TinyPublished is written out from the papers' figures and shares nothing with this package.
    learned, expected = Situation.of(server, model, oracle).pair()
    assert learned.ndim == (5 if model == "wan" else 4)
    assert_same(learned, expected, 1e-4)


EDM = ("ModelSamplingContinuousEDM", {"sampling": "edm", "sigma_max": 80.0, "sigma_min": 0.002})


@pytest.mark.parametrize(("kind", "inputs"), [EDM, ("TinySampling", {"prediction": "FLOW_COSMOS"})])
def test_an_edm_model_has_its_own_solvers(server, kind, inputs):
    if kind == "TinySampling" and "FLOW_COSMOS" not in options(server, kind, "prediction"):
        pytest.skip("this ComfyUI has no Cosmos Predict2: set COMFYUI_PATH to a newer one")
    situation = Situation.of(server, "sd15")
    situation.kind, situation.model = "edm", situation.add("edm", kind, model=["1", 0], **inputs)
    situation.sample_learned("cifar", "dyweight_cifar10", 5)
    situation.assert_oracle()
    assert situation.text("cifarinfo").splitlines()[0] == "dyweight_cifar10 (bundled): 5 steps, 5 model calls"
    assert torch.isfinite(situation.sampled("cifar")).all()


@pytest.mark.parametrize(
    ("solver", "steps"), [("dyweight_sd15", 4), ("dyweight_sd15", 10), ("ds_vp-dit", 5), ("ds_vp-dit", 10)]
)
def test_the_model_gets_the_learned_level_and_its_network_the_nearest_index(server, solver, steps):
    # Timesteps of eps and v models are indices into their table of noise levels.
    graph = Graph.of(server, "sd15")
    graph.cfg, name = 1.0, f"{solver} {steps}"
    graph.model = graph.add("watch", "TinyWatch", model=["1", 0], name=name)
    latent = graph.sample_learned("run", solver, steps)
    graph.show("calls", graph.add("seen", "TinySeen", latent=latent, name=name))
    graph.submit()
    calls = json.loads(graph.text("calls"))
    levels = sd_sigmas()
    learned = load_solver(solver).table(steps, VPNoise.from_sigmas(levels)).sigmas
    # The level itself, not the nearest of the 1000: the formula for D uses this one.
    assert_close(torch.tensor(calls["sigma"]).double(), learned, rtol=2e-6, atol=0.0)
    nearest = (learned.log()[:, None] - levels.log()).abs().argmin(1)
    assert torch.equal(torch.tensor(calls["timestep"]).double(), nearest.double())


@pytest.mark.parametrize(
    ("model", "choices"),
    [
        ("sd15", {6: "dyweight_sd15"}),
        ("flux", {5: "dyweight_flux1-dev"}),
        ("sd3", {6: "own.safetensors"}),
        ("wan", {5: "ds_flow-sit"}),
    ],
)
def test_auto_takes_the_users_file_or_the_models_own_solver_or_else_a_transferable_one(server, model, choices):
    if model == "sd3":
        ds_solver(6, architecture="SD3").save(server.solver("own"))
    graph = Graph.of(server, model)
    for steps in choices:
        graph.learn(f"{steps}", "auto", steps)
    graph.submit()
    for steps, solver in choices.items():
        info, place = graph.text(f"{steps}info"), "models/solver_weights" if solver[:3] == "own" else "bundled"
        assert info.splitlines()[0] == f"{solver} ({place}): {steps} steps, {steps} model calls"
        assert ("(transfer)" in info) == solver.startswith("ds_")
        assert ("WAN21_T2V with shift 8 (transfer): nobody has shown" in info) == (model == "wan")


@pytest.mark.parametrize("entrance", ["node", "ksampler", "dyweight"])
def test_after_a_transfer_to_a_large_shift_the_node_shows_what_a_fit_takes(server, entrance):
    graph = Graph.of(server, "wan")
    if entrance == "node":
        graph.sample_learned("run", "auto", 5)
    else:
        graph.save(run=one_node("auto", 5) if entrance == "ksampler" else ksampler("ds_solver", 5))
    with server.messages() as messages:
        graph.submit()
        last = [data for kind, data in messages if kind == "text"][-1]
    assert "ds_flow-sit, 5 calls. Fitted for SiT-XL/2 256x256, you use WAN21_T2V with shift 8 (transfer). " in last
    cost = server.get("/learned_solvers/fit_cost?steps=5")["cost"]
    times = r"(less than a minute|about [0-9.]+ (minutes?|hours))"
    assert re.search(rf"\. A fit usually takes {cost}, {times}\.$", last)
    calls = int(cost.split()[0].replace(",", ""))
    for seconds, duration in ((60 / calls, "1 minute"), (3600 * 20 / calls, "20.0 hours")):
        assert server.get(f"/learned_solvers/fit_cost?steps=5&seconds={seconds}")["cost"] == f"{cost}, about {duration}"


def test_the_grid_follows_the_size_that_is_sampled(server):
    graph = Graph.of(server, "flux", width=128)
    for name, latent in (("with", True), ("without", False)):
        graph.sample_learned(name, "dyweight_flux1-dev", 3, latent=latent)
    assert_close(*graph.submit("with", "without"))
    assert "sigmas shown for 1024x1024" in graph.text("withoutinfo")
    assert "shown for" not in graph.text("withinfo")
    assert "fitted at 512x512, you use 128x64" in graph.text("withinfo")


def test_new_files_appear_and_changed_files_run_again_without_a_restart(server):
    path = server.solver("mine/my-sd15")
    entry = f"mine/{path.name}"

    def sample():
        graph = Graph.of(server, "sd15")
        graph.sample_learned("run", entry, 6)
        (latent,) = graph.submit("run")
        cached = next(m[1]["nodes"] for m in graph.history["status"]["messages"] if m[0] == "execution_cached")
        return latent, "runsolver" not in cached

    shutil.copyfile(BUNDLED / "ds_vp-dit.safetensors", path)
    assert entry in options(server, "LearnedSolver", "solver")
    (first, first_ran), (_, again_ran) = sample(), sample()
    assert first_ran and not again_ran
    shutil.copyfile(BUNDLED / "dyweight_sd15.safetensors", path)
    os.utime(path, ns=(time.time_ns(), time.time_ns()))
    changed, changed_ran = sample()
    assert changed_ran and not torch.equal(changed, first)
    path.write_bytes(b"not a solver")
    graph = Graph.of(server, "sd15")
    graph.learn("run", entry, 6)
    assert "my-sd15.safetensors: " in graph.error()


def test_progress_and_previews_come_with_every_step(server):
    graph = Graph.of(server, "sd15", width=128)
    graph.prompt["5"]["inputs"]["noise_seed"] = 99  # not cached
    graph.sample_learned("run", "dyweight_sd15", 8)
    with server.messages() as messages:
        graph.submit()
        seen = list(messages)
    progress = [data for kind, data in seen if kind == "progress" and data["node"] == "run"]
    assert progress[-1]["value"] == 8 and {data["max"] for data in progress} == {8}
    assert [kind for kind, _ in seen].count("preview") >= 8


def test_the_note_on_a_node_has_the_solver_and_what_does_not_match(server):
    graph = Graph.of(server, "sd15")
    graph.save(stock=ksampler("dyweight", 6, cfg=5.5), one=one_node("dyweight_sd15", 6, cfg=5.5, denoise=0.5))
    with server.messages() as messages:
        graph.submit()
        notes = [data.rpartition("dyweight_sd15,")[2] for kind, data in messages if kind == "text"]
    facts = "Fitted at CFG 7.5, you use 5.5. Fitted at 512x512, you use 64x64."
    assert sorted(notes) == [f" {calls} calls. {facts}" for calls in (3, 6)]


def test_interrupt_stops_between_model_calls(server):
    graph = Graph.of(server, "sd15", width=256, height=256, batch=4)
    graph.prompt["5"]["inputs"]["noise_seed"] = 123
    graph.sample_learned("run", "ds_vp-dit", 10)
    with server.messages() as messages:
        server.post("/prompt", {"prompt": graph.prompt, "client_id": server.client})
        kinds = (kind for kind, _ in messages)
        assert "progress" in kinds  # reads that far
        server.post("/interrupt", {})
        assert "execution_interrupted" in kinds


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_on_the_model_is_a_remark_in_every_way_to_sample(server, name):
    graph = Graph.of(server, "sd3")
    remark = f"{graph.add_cache(name)} is on this model: it skips model calls, and a solver with few steps needs"
    graph.learn("node", "auto", 6)
    graph.save(one=one_node("auto", 6, model=graph.model), stock=ksampler("ds_solver", 6, model=graph.model))
    graph.show("one info", ["one", 1])
    before = len(server.log)
    with server.messages() as messages:
        graph.submit()
        notes = [text for kind, text in messages if kind == "text" and "is on this model" in text]
    assert all(remark in graph.text(info) for info in ("nodeinfo", "one info"))
    assert re.search(f"sampler ds_solver: .*{re.escape(remark)}", server.log[before:])
    title = remark.partition(":")[0]
    assert len(notes) == 2 and all(f"{title[0].upper()}{title[1:]}." in note for note in notes), notes
