"""The Fit Learned Solver node in real ComfyUI servers, end to end on tiny models."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from comfy_graphs import QUICK_FIT, fit, fitted_solver, log_and_progress, node, one_node, options
from comfy_host import Server, make_base
from learned_solvers.samplers import Guidance, load_solver
from learned_solvers.training import TEACHERS
from torch.testing import assert_close

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("model", "name", "family", "guidance", "dimensions"),
    [
        ("sd3", "mine/dyweight_new", "dyweight", "CFG 2", 4),
        ("sd15", "", "ds", "CFG 2", 4),
        ("flux", "dyweight_flux", "dyweight", "embedded guidance 3.5, CFG 1", 4),
        ("wan", "dyweight_wan", "dyweight", "CFG 2", 5),
    ],
)
def test_a_fitted_file_is_in_the_drop_downs_and_samples(server, model, name, family, guidance, dimensions):
    graph = fit(
        server,
        model,
        name=name,
        family=family,
        samples=2,
        cfg=1.0 if model == "flux" else 2.0,
        guidance="3.5" if model == "flux" else "2",
    )
    if graph.prompt["1"]["inputs"]["unet_name"].endswith(".pth"):
        pytest.skip("the full-width FLUX of an old core takes minutes: run with a newer core")
    graph.save(wired=one_node(["fit", 0], 2))
    with server.messages() as messages:
        (latent,) = graph.submit("wired")
        log, bar = log_and_progress(messages)
    path = server.solver(name or "ds_tiny_sd15")
    entry = path.relative_to(server.solvers).as_posix()
    assert entry in options(server, "LearnedSolverKSampler", "solver")
    assert sorted(options(server, "FitLearnedSolver", "teacher")) == sorted(TEACHERS)
    solver = load_solver(path)
    step = solver.card.steps[2]
    assert (
        solver.card.checkpoint == f"tiny_{model}"
        and len(solver.card.fingerprint) == 16
        and str(solver.card.guidance) == guidance
    )
    assert (step.teacher, step.teacher_steps) == ("dpmpp_2m", 6) and step.network_calls > 100
    assert f"**{step.error_after:.4f}**" in graph.text("fit") and str(path) in graph.text("fit")
    assert path.with_suffix(".md").exists() and not path.with_suffix(".fit").exists()
    forecast = re.search(r"(less than a minute|about [\d.]+ \w+) \(([\d,]+) calls at [\d,.]+ \w+ \w+\)", log)
    assert forecast and bar[0][0] <= 4 and bar[0][1] == int(forecast[2].replace(",", "")) and bar[-1][0] == bar[-1][1]
    assert "2 steps: held-out error" in log and re.search(r"The fit took less than a minute \(\d+ calls\)", log)
    assert torch.isfinite(latent).all() and latent.ndim == dimensions
    drawn = graph.picture("picture")
    assert drawn.shape[1] > 300 and drawn.shape[0] > 150 and drawn.std() > 20


def test_the_batch_size_of_a_call_does_not_change_the_result(server):
    """Nor does a call mix the prompts and the masks of its samples."""
    cards = []
    for batch in (1, 6):
        graph = fit(server, "sd3", name=f"batch{batch}", batch=batch, samples=6, guidance="1 3")
        other = graph.add("2b", "TinyConditioning", tokens=8, dim=64, pooled=32, seed=5)
        graph.add("both", "PromptBatch", one=["2", 0], two=other)
        for i, value in enumerate((0.1, 1.0)):
            solid = graph.add(f"mask{i}", "SolidMask", value=value, width=32, height=32)
            graph.add(f"image{i}", "MaskToImage", mask=solid)
        images = graph.add("images", "ImageBatch", image1=["image0", 0], image2=["image1", 0])
        masks = {"mask": graph.add("masks", "ImageToMask", image=images, channel="red"), "set_cond_area": "default"}
        graph.add("masked", "ConditioningSetMask", conditioning=["both", 0], strength=1.0, **masks)
        regions = graph.add("regions", "ConditioningCombine", conditioning_1=["masked", 0], conditioning_2=["3", 0])
        graph.prompt["fit"]["inputs"]["positive"] = regions
        cards.append(fitted_solver(graph).card.steps[2])
    one, six = cards
    assert six.error_after == pytest.approx(one.error_after, rel=2e-2)
    assert six.error_best_peer == pytest.approx(one.error_best_peer, rel=1e-3)


def test_a_fit_runs_again_only_if_its_file_is_gone(server):
    graph, path, times = fit(server, "sd3", name="gone"), server.solver("gone"), []
    for deleted in (False, False, True, False):
        if deleted:
            path.unlink()
        assert fitted_solver(graph).steps == (2,)
        times.append(path.stat().st_mtime_ns)
    assert times[0] == times[1] < times[2] == times[3]


@pytest.mark.parametrize(
    ("model", "widgets", "guidance"),
    [
        ("sd3", {"guidance": None}, Guidance("cfg", (1, 1.33, 2, 3.2), 2)),
        ("sd3", {"guidance": "4, 1.5", "cfg": 3.0}, Guidance("cfg", (1.5, 4), 3)),
        ("sd3", {"guidance": "", "cfg": 1.0}, Guidance("cfg", (1,), 1)),
        ("flux", {"guidance": "2 4", "cfg": 1.0}, Guidance("embedded", (2, 4), 3.5, 1)),
        ("flux", {"guidance": "3", "cfg": 2.0}, Guidance("embedded", (3,), 3, 2)),
    ],
)
def test_a_fit_has_parameters_for_each_guidance(server, model, widgets, guidance):
    graph = fit(server, model, name="spread", **QUICK_FIT, **widgets)
    if guidance.cfg == 2 and graph.prompt["1"]["inputs"]["unet_name"].endswith(".pth"):
        pytest.skip("the full-width FLUX of an old core takes minutes: run with a newer core")
    if widgets["guidance"] is None:
        del graph.prompt["fit"]["inputs"]["guidance"]  # as in a workflow that is older than this widget
    solver = fitted_solver(graph)
    assert solver.card.guidance == guidance and solver.card.steps[1].knots == (
        guidance.values if len(guidance.values) > 1 else ()
    )
    assert len(solver.parameters[1]["t_scale"]) == len(guidance.values)
    assert ("usually sampled at CFG 1, here at CFG 2" in graph.text("fit")) == (guidance.cfg == 2)


def test_the_loss_of_pictures_needs_a_vae_and_is_on_the_card(server):
    graph = fit(server, "sd3", name="pictures", **QUICK_FIT, loss="features")
    assert "no vae is connected: connect one, or use l2" in graph.error()
    vae = graph.add("vae", "VAELoader", vae_name="tiny_taef1.safetensors")
    graph.prompt["fit"]["inputs"]["vae"] = vae
    assert fitted_solver(graph).card.steps[1].loss == "features"


def test_an_existing_file_is_overwritten_only_on_request(server):
    before = fitted_solver(fit(server, "sd3", name="kept", **QUICK_FIT))
    message = fit(server, "sd3", name="kept", **QUICK_FIT, seed=4).error()
    assert "already exists: choose another file_name, or turn overwrite on" in message
    assert_close(load_solver(server.solver("kept")).parameters, before.parameters, rtol=0, atol=0)
    after = fitted_solver(fit(server, "sd3", name="kept", **QUICK_FIT, seed=4, overwrite=True))
    assert after.card.steps[1].error_after != before.card.steps[1].error_after


def test_a_lora_offloading_and_quantisation_are_part_of_the_model_and_constants_reach_its_network_whole(server):
    graph = fit(server, "sd3", name="plain", **QUICK_FIT)
    lora_file = {"lora_name": "tiny_sd3_lora.safetensors", "strength_model": 1.0}
    graph.add("lora", "LoraLoaderModelOnly", model=["1", 0], **lora_file)
    graph.add("offloaded", "TinyOffload", model=["lora", 0])
    graph.add("fp8", "UNETLoader", **{**graph.prompt["1"]["inputs"], "weight_dtype": "fp8_e4m3fn"})
    graph.add("constant", "TinyConstant", model=["1", 0])  # fails where it received a batch of them
    names = ("lora", "offloaded", "fp8")
    for name, cfg in (*((name, 2.0) for name in names), ("constant", 1.0)):  # an old core compares those of two prompts
        inputs = {
            **graph.prompt["fit"]["inputs"],
            "model": [name, 0],
            "file_name": name,
            "cfg": cfg,
            "guidance": f"{cfg}",
        }
        graph.prompt[f"fit {name}"] = node("FitLearnedSolver", **inputs)
    graph.submit()
    assert re.search(r"(?m)loaded partially.* [1-9]\d*$", server.log)  # the last number: patches added in each call
    assert "model weight dtype torch.float8_e4m3fn, manual cast: torch." in server.log
    solvers = {name: load_solver(server.solver(name)) for name in ("plain", *names)}
    assert {solver.card.checkpoint for solver in solvers.values()} == {"tiny_sd3"}
    assert_close(solvers["offloaded"].parameters[1], solvers["lora"].parameters[1], rtol=1e-3, atol=1e-4)
    plain, lora, offloaded, fp8 = (solver.card.steps[1].error_best_peer for solver in solvers.values())
    assert offloaded == pytest.approx(lora, rel=1e-4) and lora != pytest.approx(plain, rel=2e-2)
    # Weights rounded to 3 bits of mantissa make another model, but a similar one.
    assert fp8 != plain and fp8 == pytest.approx(plain, rel=0.2)


def solver_entries(server) -> set[str]:
    return {*options(server, "LearnedSolverKSampler", "solver")}


def test_a_fit_that_was_interrupted_and_killed_continues_lists_no_work_file_and_is_returned_when_done(server, tmp_path):
    make_base(server.checkout, base := tmp_path / "base")
    settings = {"steps": "2 3", "samples": 6, "teacher_steps": 8, "batch": 2}
    with Server(server.checkout, base) as host, ThreadPoolExecutor(1) as pool:
        graph, path = fit(host, "sd3", name="stopped", **settings), host.solver("stopped")
        before = solver_entries(host)

        def run_until(record: bytes):
            """The prompt, running until the journal has a record."""
            history = pool.submit(host.submit, graph.prompt)
            while not any(record in file.read_bytes() for file in path.with_suffix(".fit").glob("*/journal.work")):
                time.sleep(0.02)
            assert solver_entries(host) == before and not path.exists()
            return history

        interrupted = run_until(b"2/after")
        host.post("/interrupt", {})
        assert "execution_interrupted" in (kind for kind, _ in interrupted.result(60)["status"]["messages"])
        run_until(b"3/")
        host.process.kill()
    with Server(server.checkout, base) as host:
        graph.server, prompt = host, graph.prompt
        prompt["again"] = prompt.pop("fit")  # another number
        prompt["picture"]["inputs"]["images"] = ["again", 1]
        with host.messages() as messages:
            graph.submit()
            log, bar = log_and_progress(messages)
        left = re.search(r"left \((\d+) calls", log)
        assert "resuming the fit" in log and left and bar[0][0] == bar[0][1] - int(left[1]) > 50
        content, report, picture = path.read_bytes(), graph.text("again"), graph.picture("picture")
        prompt["again"]["inputs"]["overwrite"] = True  # the host runs the node again, which returns its file
        graph.submit()
        assert path.read_bytes() == content and not path.with_suffix(".fit").exists()
        assert graph.text("again") == report and (graph.picture("picture") == picture).all()
    assert (
        load_solver(path).card.steps == fitted_solver(fit(server, "sd3", name="whole", **settings)).card.steps
    )  # calls too


@pytest.mark.parametrize(
    ("fails", "remark"),
    [
        ("decoding", r"No picture \(OutOfMemoryError: a late failure, with the file in place: \[True\]\)"),
        ("sampling", r"No picture \(AssertionError: a late failure\)"),
    ],
)
def test_a_picture_that_fails_is_a_remark_and_no_call_follows_a_decoded_one(server, fails, remark):
    graph, path = fit(server, "sd3", name=fails, **QUICK_FIT), server.solver(fails)
    late = graph.add("late", "TinyLate", model=["1", 0], file=str(path), fails=fails)
    graph.prompt["fit"]["inputs"] |= {"model": late, "vae": ["late", 1]}
    assert fitted_solver(graph).steps == (1,)
    assert re.search(remark, graph.text("fit")) and "The solver file is complete" in graph.text("fit")
    assert graph.picture("picture").mean() > 200 and not path.with_suffix(".png").exists()  # a note on white


def test_a_shortage_that_only_the_host_recognises_halves_the_samples_per_call(server):
    graph = fit(server, "sd3", name="hungry", batch=4, **{**QUICK_FIT, "samples": 4})
    graph.prompt["fit"]["inputs"]["model"] = graph.add("patched", "TinyHungry", model=["1", 0], most=4, name="hungry")
    with server.messages() as messages:
        assert fitted_solver(graph).steps == (1,)
        log, _ = log_and_progress(messages)
    assert "out of memory with 4 samples per call: continuing with 2" in log
    graph.show("calls", graph.add("seen", "TinySeen", latent=["4", 0], name="hungry"))
    graph.submit()
    calls = json.loads(graph.text("calls"))
    first = calls.index(8)  # both prompts of four samples
    assert calls[first + 1] == "freed" and set(calls[first + 2 :]) <= {2, 4, "freed"}
