"""What the Fit Learned Solver node refuses: widgets, and models that depend on earlier calls."""

from __future__ import annotations

import pytest
from comfy_graphs import CACHES, QUICK_FIT, Graph, fit, log_and_progress

pytestmark = pytest.mark.slow


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
    graph = fit(server, "sd3", name=name, **QUICK_FIT)
    kind, widgets = STATEFUL[name]
    graph.prompt["fit"]["inputs"]["model"] = graph.add("patched", kind, model=["1", 0], **widgets)
    if name == "unnamed":
        graph.prompt["fit"]["inputs"]["teacher_model"] = ["1", 0]
    with server.messages() as messages:
        error = graph.outcome()
        log, _ = log_and_progress(messages)
    assert (message in error) if message else not error
    assert (name == "random") == ("two equal calls of this model differ by" in log)
    if message:
        assert "teacher: " not in log and not list(server.solvers.glob(f"{name}*"))


def test_a_controlnet_with_several_pictures_is_refused(server):
    graph = fit(server, "sd15", name="control", **QUICK_FIT)
    control = graph.add("control", "ControlNetLoader", control_net_name="tiny_controlnet.safetensors")
    image = graph.add("image", "EmptyImage", width=32, height=32, batch_size=3, color=255)
    widgets = {"control_net": control, "image": image, "strength": 1.0, "start_percent": 0.0, "end_percent": 0.6}
    graph.add("applied", "ControlNetApplyAdvanced", positive=["2", 0], negative=["3", 0], **widgets)
    graph.prompt["fit"]["inputs"] |= {"positive": ["applied", 0], "negative": ["applied", 1]}
    assert "a ControlNet has 3 pictures: the host takes them by a sample's place in a call, so" in graph.error()


@pytest.mark.parametrize("place", ["model", "teacher_model"])
@pytest.mark.parametrize("name", CACHES)
def test_a_known_cache_is_refused_by_its_name(server, name, place):
    graph = fit(server, "sd3", name="cached", **QUICK_FIT)
    title = graph.add_cache(name)
    graph.prompt["fit"]["inputs"][place] = graph.model
    assert f"{title} is on this model: it reuses earlier calls, so nothing can be fitted" in graph.error()


def test_a_mean_flow_model_is_refused_for_a_fit_and_remarked_on_at_sampling(server):
    graph = fit(server, "sd3", name="mean", **QUICK_FIT)
    graph.prompt["fit"]["inputs"]["model"] = graph.add("mean", "TinyMeanFlow", model=["1", 0])
    assert "this is a MeanFlow model: it needs the next noise level too, so nothing can be fitted" in graph.error()
    graph = Graph.of(server, "sd3")
    graph.model = graph.add("mean", "TinyMeanFlow", model=["1", 0])
    graph.learn("mean", "auto", 6)
    graph.submit()
    assert "this is a MeanFlow model: its steps are Euler's" in graph.text("meaninfo")


@pytest.mark.parametrize(("later", "is_refused"), [(0.0, True), (1.0, False)])
def test_hook_keyframes_are_refused_if_they_change_something(server, later, is_refused):
    graph = fit(server, "sd3", name=f"hooks {later:g}", **QUICK_FIT)
    hooks = graph.add("lora", "CreateHookLoraModelOnly", lora_name="tiny_sd3_lora.safetensors", strength_model=1.0)
    first = graph.add("first", "CreateHookKeyframe", strength_mult=1.0, start_percent=0.0)
    frames = graph.add("second", "CreateHookKeyframe", strength_mult=later, start_percent=0.5, prev_hook_kf=first)
    hooks = graph.add("hooks", "SetHookKeyframes", hooks=hooks, hook_kf=frames)
    settings = {"strength": 1.0, "set_cond_area": "default", "hooks": hooks}
    positive = graph.add("scheduled", "ConditioningSetProperties", cond_NEW=["2", 0], **settings)
    graph.prompt["fit"]["inputs"]["positive"] = positive
    error = graph.outcome()
    assert ("has hook keyframes (a scheduled LoRA): they only move forward, so" in error) if is_refused else not error
