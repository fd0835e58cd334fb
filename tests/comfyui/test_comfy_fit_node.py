"""The Fit Learned Solver node in real ComfyUI servers, end to end on tiny models, and its refusals."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from comfy_graphs import CACHES, Graph, fit, ksampler, node, one_node, options
from comfy_host import Server, make_base
from learned_solvers.samplers import Guidance, Solver, load_solver
from learned_solvers.training import TEACHERS
from torch.testing import assert_close

pytestmark = pytest.mark.slow
QUICK = {"samples": 2, "steps": "1", "teacher": "euler"}


def shown(messages) -> tuple[str, list[tuple[int, int]]]:
    """The lines that the server sends to be shown on nodes, and the places of the fit's bar with their total."""
    seen = list(messages)
    bar = [
        (data["value"], data["max"]) for kind, data in seen if kind == "progress" and data["node"] in ("fit", "again")
    ]
    return "\n".join(text for kind, text in seen if kind == "text"), bar


def fitted(graph) -> Solver:
    """Runs a fit and loads its file."""
    graph.submit()
    return load_solver(graph.server.solver(graph.prompt["fit"]["inputs"]["file_name"]))


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
        log, bar = shown(messages)
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
        cards.append(fitted(graph).card.steps[2])
    one, six = cards
    assert six.error_after == pytest.approx(one.error_after, rel=2e-2)
    assert six.error_best_peer == pytest.approx(one.error_best_peer, rel=1e-3)


def test_a_fit_runs_again_only_if_its_file_is_gone(server):
    graph, path, times = fit(server, "sd3", name="gone"), server.solver("gone"), []
    for deleted in (False, False, True, False):
        if deleted:
            path.unlink()
        assert fitted(graph).steps == (2,)
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
    graph = fit(server, model, name="spread", **QUICK, **widgets)
    if guidance.cfg == 2 and graph.prompt["1"]["inputs"]["unet_name"].endswith(".pth"):
        pytest.skip("the full-width FLUX of an old core takes minutes: run with a newer core")
    if widgets["guidance"] is None:
        del graph.prompt["fit"]["inputs"]["guidance"]  # as in a workflow that is older than this widget
    solver = fitted(graph)
    assert solver.card.guidance == guidance and solver.card.steps[1].knots == (
        guidance.values if len(guidance.values) > 1 else ()
    )
    assert len(solver.parameters[1]["t_scale"]) == len(guidance.values)
    assert ("usually sampled at CFG 1, here at CFG 2" in graph.text("fit")) == (guidance.cfg == 2)


@pytest.mark.parametrize(
    ("sampler", "sigmas", "message"),
    [
        ("euler", True, None),
        ("dpmpp_2m", False, "the teacher's sigmas is not connected"),
        ("euler_ancestral", True, "euler_ancestral draws noise, so no solver can follow it"),
    ],
)
def test_a_connected_sampler_is_the_teacher(server, sampler, sigmas, message):
    graph = fit(server, "sd3", name="today", **QUICK)
    inputs = graph.prompt["fit"]["inputs"]
    inputs["sampler"] = graph.add("sampler", "KSamplerSelect", sampler_name=sampler)
    if sigmas:
        levels = {"scheduler": "simple", "steps": 7, "denoise": 1.0}
        inputs["sigmas"] = graph.add("sigmas", "BasicScheduler", model=["1", 0], **levels)
    if message:
        assert message in graph.error()
    else:
        step = fitted(graph).card.steps[1]
        assert (step.teacher, step.teacher_steps) == (sampler, 7)


@pytest.mark.parametrize("kind", ["diffusion_models/tiny_sd3", "loras/tiny_sd3_lora"])
def test_a_distilled_model_or_lora_is_a_remark_unless_its_own_sampler_is_the_teacher(server, kind):
    file = server.base / "models" / f"{kind}.safetensors"
    if not (fast := file.with_stem(f"{file.stem}_lightning_4step")).exists():
        fast.hardlink_to(file)
    graph = fit(server, "sd3", name=fast.stem, **QUICK)
    if file.parent.name == "loras":
        lora = {"lora_name": fast.name, "strength_model": 1.0}
        graph.prompt["fit"]["inputs"]["model"] = graph.add("lora", "LoraLoaderModelOnly", model=["1", 0], **lora)
    else:
        graph.prompt["1"]["inputs"]["unet_name"] = fast.name
    with server.messages() as messages:
        fitted(graph)
        log = "".join(text for kind, text in messages if kind == "text")
    advice = "connect KSamplerSelect (euler) to sampler and BasicScheduler (simple, 4 steps) to sigmas, and set steps"
    for text in (log, graph.text("fit")):
        assert f"{fast.stem} looks distilled" in text and f"{advice} to 1." in text
    inputs = graph.prompt["fit"]["inputs"] | {"overwrite": True}
    inputs["sampler"] = graph.add("sampler", "KSamplerSelect", sampler_name="euler")
    schedule = {"scheduler": "simple", "steps": 4, "denoise": 1.0}
    inputs["sigmas"] = graph.add("sigmas", "BasicScheduler", model=["1", 0], **schedule)
    graph.prompt["fit"]["inputs"] = inputs
    assert fitted(graph).card.steps[1].teacher_steps == 4 and "distilled" not in graph.text("fit")


def test_another_model_at_its_own_guidance_is_the_teacher(server):
    """The card's error is that of the two models in the server; the held-out sample has number 2."""
    graph = fit(server, "sd3", name="other", **QUICK)
    inputs, seed = graph.prompt["fit"]["inputs"], graph.prompt["fit"]["inputs"]["seed"] + 2
    lora = graph.add(
        "lora", "LoraLoaderModelOnly", model=["1", 0], lora_name="tiny_sd3_lora.safetensors", strength_model=1.0
    )
    levels = {"scheduler": "simple", "steps": 7, "denoise": 1.0}
    inputs["sigmas"] = graph.add("sigmas", "BasicScheduler", model=["1", 0], **levels)
    inputs["sampler"] = graph.add("sampler", "KSamplerSelect", sampler_name="euler")
    inputs |= {"model": lora, "teacher_model": ["1", 0], "teacher_cfg": 3.5}
    step = fitted(graph).card.steps[1]
    assert (step.teacher, step.teacher_steps) == ("euler at guidance 3.5", 7)
    student = one_node("other.safetensors", 1, model=lora, seed=seed)
    graph.save(teacher=ksampler("euler", 7, cfg=3.5, seed=seed), student=student)
    teacher, student = graph.submit("teacher", "student")
    error = 1.5305 * float((student - teacher)[0].double().square().mean().sqrt())  # the card's is in the model's scale
    assert error == pytest.approx(step.error_after, rel=1e-3)


def test_the_loss_of_pictures_needs_a_vae_and_is_on_the_card(server):
    graph = fit(server, "sd3", name="pictures", **QUICK, loss="features")
    assert "no vae is connected: connect one, or use l2" in graph.error()
    vae = graph.add("vae", "VAELoader", vae_name="tiny_taef1.safetensors")
    graph.prompt["fit"]["inputs"]["vae"] = vae
    assert fitted(graph).card.steps[1].loss == "features"


def test_an_existing_file_is_overwritten_only_on_request(server):
    before = fitted(fit(server, "sd3", name="kept", **QUICK))
    message = fit(server, "sd3", name="kept", **QUICK, seed=4).error()
    assert "already exists: choose another file_name, or turn overwrite on" in message
    assert_close(load_solver(server.solver("kept")).parameters, before.parameters, rtol=0, atol=0)
    after = fitted(fit(server, "sd3", name="kept", **QUICK, seed=4, overwrite=True))
    assert after.card.steps[1].error_after != before.card.steps[1].error_after


CALLS = "the teacher makes 6 model calls (dpmpp_2m, 6 steps), but must make more than the solver"


@pytest.mark.parametrize(
    ("widgets", "message"),
    [
        ({"name": "../outside"}, "such as my-model or mine/my-model, got '../outside'"),
        ({"name": "x", "steps": "2 6"}, CALLS),
        ({"name": "x", "guidance": "3 high"}, "guidance must be numbers, such as 3 5 7.5 12, or empty, got '3 high'"),
        ({"name": "x", "steps": "4 six"}, "steps must be whole numbers from 1 to 100, such as 4 6 8"),
    ],
)
def test_impossible_widgets_are_refused(server, widgets, message):
    assert message in fit(server, "sd3", **widgets).error()


def test_a_lora_offloading_and_quantisation_are_part_of_the_model_and_constants_reach_its_network_whole(server):
    graph = fit(server, "sd3", name="plain", **QUICK)
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


def listed(server) -> set[str]:
    return {*options(server, "LearnedSolverKSampler", "solver")}


def test_a_fit_that_was_interrupted_and_killed_continues_lists_no_work_file_and_is_returned_when_done(server, tmp_path):
    make_base(server.checkout, base := tmp_path / "base")
    settings = {"steps": "2 3", "samples": 6, "teacher_steps": 8, "batch": 2}
    with Server(server.checkout, base) as host, ThreadPoolExecutor(1) as pool:
        graph, path = fit(host, "sd3", name="stopped", **settings), host.solver("stopped")
        before = listed(host)

        def run_until(record: bytes):
            """The prompt, running until the journal has a record."""
            history = pool.submit(host.submit, graph.prompt)
            while not any(record in file.read_bytes() for file in path.with_suffix(".fit").glob("*/journal.work")):
                time.sleep(0.02)
            assert listed(host) == before and not path.exists()
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
            log, bar = shown(messages)
        left = re.search(r"left \((\d+) calls", log)
        assert "resuming the fit" in log and left and bar[0][0] == bar[0][1] - int(left[1]) > 50
        content, report, picture = path.read_bytes(), graph.text("again"), graph.picture("picture")
        prompt["again"]["inputs"]["overwrite"] = True  # the host runs the node again, which returns its file
        graph.submit()
        assert path.read_bytes() == content and not path.with_suffix(".fit").exists()
        assert graph.text("again") == report and (graph.picture("picture") == picture).all()
    assert load_solver(path).card.steps == fitted(fit(server, "sd3", name="whole", **settings)).card.steps  # calls too


@pytest.mark.parametrize(
    ("fails", "remark"),
    [
        ("decoding", r"No picture \(OutOfMemoryError: a late failure, with the file in place: \[True\]\)"),
        ("sampling", r"No picture \(AssertionError: a late failure\)"),
    ],
)
def test_a_picture_that_fails_is_a_remark_and_no_call_follows_a_decoded_one(server, fails, remark):
    graph, path = fit(server, "sd3", name=fails, **QUICK), server.solver(fails)
    late = graph.add("late", "TinyLate", model=["1", 0], file=str(path), fails=fails)
    graph.prompt["fit"]["inputs"] |= {"model": late, "vae": ["late", 1]}
    assert fitted(graph).steps == (1,)
    assert re.search(remark, graph.text("fit")) and "The solver file is complete" in graph.text("fit")
    assert graph.picture("picture").mean() > 200 and not path.with_suffix(".png").exists()  # a note on white


def test_a_shortage_that_only_the_host_recognises_halves_the_samples_per_call(server):
    graph = fit(server, "sd3", name="hungry", batch=4, **{**QUICK, "samples": 4})
    graph.prompt["fit"]["inputs"]["model"] = graph.add("patched", "TinyHungry", model=["1", 0], most=4, name="hungry")
    with server.messages() as messages:
        assert fitted(graph).steps == (1,)
        log, _ = shown(messages)
    assert "out of memory with 4 samples per call: continuing with 2" in log
    graph.show("calls", graph.add("seen", "TinySeen", latent=["4", 0], name="hungry"))
    graph.submit()
    calls = json.loads(graph.text("calls"))
    first = calls.index(8)  # both prompts of four samples
    assert calls[first + 1] == "freed" and set(calls[first + 2 :]) <= {2, 4, "freed"}


STATEFUL = {  # node and widgets
    "momentum": ("APG", {"eta": 1.0, "norm_threshold": 5.0, "momentum": -0.5}),
    "no momentum": ("APG", {"eta": 1.0, "norm_threshold": 5.0, "momentum": 0.0}),
    "unnamed": ("TinyMemory", {}),
    "random": ("TinyRandom", {}),
}
REMEMBERS = "this model remembers earlier calls: after others, the same state gives a result that differs by"


@pytest.mark.parametrize(
    ("name", "message"), [("momentum", REMEMBERS), ("unnamed", REMEMBERS), ("no momentum", None), ("random", None)]
)
def test_a_model_that_remembers_earlier_calls_is_refused_before_the_fit(server, name, message):
    graph = fit(server, "sd3", name=name, **QUICK)
    kind, widgets = STATEFUL[name]
    graph.prompt["fit"]["inputs"]["model"] = graph.add("patched", kind, model=["1", 0], **widgets)
    with server.messages() as messages:
        error = graph.outcome()
        log = "".join(text for kind, text in messages if kind == "text")
    assert (message in error) if message else not error
    assert (name == "random") == ("two equal calls of this model differ by" in log)
    if message:
        assert not list(server.solvers.glob(f"{name}*"))


def test_a_controlnet_with_several_pictures_is_refused(server):
    graph = fit(server, "sd15", name="control", **QUICK)
    control = graph.add("control", "ControlNetLoader", control_net_name="tiny_controlnet.safetensors")
    image = graph.add("image", "EmptyImage", width=32, height=32, batch_size=3, color=255)
    widgets = {"control_net": control, "image": image, "strength": 1.0, "start_percent": 0.0, "end_percent": 0.6}
    graph.add("applied", "ControlNetApplyAdvanced", positive=["2", 0], negative=["3", 0], **widgets)
    graph.prompt["fit"]["inputs"] |= {"positive": ["applied", 0], "negative": ["applied", 1]}
    assert "a ControlNet has 3 pictures: the host takes them by a sample's place in a call, so" in graph.error()


@pytest.mark.parametrize("place", ["model", "teacher_model"])
@pytest.mark.parametrize("name", CACHES)
def test_a_known_cache_is_refused_by_its_name(server, name, place):
    graph = fit(server, "sd3", name="cached", **QUICK)
    title = graph.add_cache(name)
    graph.prompt["fit"]["inputs"][place] = graph.model
    assert f"{title} is on this model: it reuses earlier calls, so nothing can be fitted" in graph.error()


def test_a_mean_flow_model_is_refused_for_a_fit_and_remarked_on_at_sampling(server):
    graph = fit(server, "sd3", name="mean", **QUICK)
    graph.prompt["fit"]["inputs"]["model"] = graph.add("mean", "TinyMeanFlow", model=["1", 0])
    assert "this is a MeanFlow model: it needs the next noise level too, so nothing can be fitted" in graph.error()
    graph = Graph.of(server, "sd3")
    graph.model = graph.add("mean", "TinyMeanFlow", model=["1", 0])
    graph.learn("mean", "auto", 6)
    graph.submit()
    assert "this is a MeanFlow model: its steps are Euler's" in graph.text("meaninfo")


@pytest.mark.parametrize(("later", "is_refused"), [(0.0, True), (1.0, False)])
def test_hook_keyframes_are_refused_if_they_change_something(server, later, is_refused):
    graph = fit(server, "sd3", name=f"hooks {later:g}", **QUICK)
    hooks = graph.add("lora", "CreateHookLoraModelOnly", lora_name="tiny_sd3_lora.safetensors", strength_model=1.0)
    first = graph.add("first", "CreateHookKeyframe", strength_mult=1.0, start_percent=0.0)
    frames = graph.add("second", "CreateHookKeyframe", strength_mult=later, start_percent=0.5, prev_hook_kf=first)
    hooks = graph.add("hooks", "SetHookKeyframes", hooks=hooks, hook_kf=frames)
    settings = {"strength": 1.0, "set_cond_area": "default", "hooks": hooks}
    positive = graph.add("scheduled", "ConditioningSetProperties", cond_NEW=["2", 0], **settings)
    graph.prompt["fit"]["inputs"]["positive"] = positive
    error = graph.outcome()
    assert ("has hook keyframes (a scheduled LoRA): they only move forward, so" in error) if is_refused else not error
