"""Other packs' graphs: wrapped and copied samplers, context windows, cut schedules, one step at a time."""

from __future__ import annotations

import json
import re

import pytest
from comfy_graphs import WIRES, Graph, Situation, assert_same, differs, ksampler, node, options

STEPS = 6  # of dyweight_sd15 and ds_vp-dit


def watched(server, model, name, **size):
    """A graph whose model records its calls."""
    graph = Graph.of(server, model, **size)
    graph.model = graph.add("watched", "TinyWatch", model=graph.model, name=name)
    return graph


def record(graph, kind="places"):
    """What the model of a `watched` graph recorded so far."""
    seen = Graph.of(graph.server, "sd15")
    seen.show("calls", seen.add("seen", "TinySeen", latent=seen.latent, name=graph.prompt["watched"]["inputs"]["name"]))
    seen.submit()
    return json.loads(seen.text("calls"))[kind]


def advanced(sampler, first, last, steps=8, **changes):
    """KSamplerAdvanced for the steps `first` ... `last`, which continues another's state if `first` is not 0."""
    ends = {"start_at_step": first, "end_at_step": last, "steps": steps, "sampler_name": sampler, "scheduler": "simple"}
    ends |= {"add_noise": "disable" if first else "enable", "noise_seed": 7, "cfg": 2.0}
    ends |= {"return_with_leftover_noise": "enable" if last < steps else "disable"}
    return node("KSamplerAdvanced", **WIRES | ends | changes)


# ---- samplers that another node wraps or copies


@pytest.mark.parametrize("hidden", [0, 1, 2])
@pytest.mark.parametrize(("model", "solver", "split"), [("sd15", "dyweight_sd15", 0), ("sd3", "ds_flow-sit", 3)])
def test_a_wrapped_sampler_keeps_what_a_mask_keeps(server, model, solver, split, hidden):
    # The wrapper hides the latent, perhaps also the model; split: stops on the way, where the kept region has noise.
    graph = Situation.of(server, model)
    mask = graph.add("left", "SolidMask", value=0.0, width=8, height=8)
    patch = {"destination": mask, "source": graph.add("right", "SolidMask", value=1.0, width=4, height=8)}
    mask = graph.add("mask", "MaskComposite", **patch, x=4, y=0, operation="add")
    graph.latent = graph.add("masked", "SetLatentNoiseMask", samples=graph.draw(), mask=mask)
    sampler, sigmas = graph.learn("learned", solver, STEPS)
    if split:
        sigmas = graph.add("split", "SplitSigmas", sigmas=sigmas, step=split)
    graph.sample("bare", sampler, sigmas)
    graph.sample("stock", ["euler", 0], sigmas)
    graph.sample("wrapped", graph.add("wrapper", "TinyWrapped", sampler=sampler, hidden=hidden), sigmas)
    wrapped, bare, kept = graph.submit("wrapped", "bare", "stock" if split else "draw")
    assert_same(wrapped, bare)
    assert_same(wrapped[..., :4], kept[..., :4])
    assert differs(wrapped[..., 4:], kept[..., 4:])


def test_a_drop_down_sampler_in_a_wrapper_that_hides_the_model_is_refused(server):
    graph = Graph.of(server, "sd15")
    named = graph.add("named", "KSamplerSelect", sampler_name="dyweight")
    sigmas = graph.add("simple", "BasicScheduler", model=graph.model, scheduler="simple", steps=STEPS, denoise=1.0)
    graph.sample("run", graph.add("wrapper", "TinyWrapped", sampler=named, hidden=1), sigmas)
    assert "use the sampler of the Learned Solver node" in graph.error()
    graph.prompt["wrapper"]["inputs"]["hidden"] = 2
    graph.save(stock=ksampler("dyweight", STEPS))
    assert_same(*graph.submit("run", "stock"))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch"])
def test_a_copied_sampler_samples_the_same(server, how):
    graph = Graph.of(server, "flux")
    learned, sigmas = graph.learn("learned", "dyweight_flux1-dev", 3)
    named = graph.add("named", "KSamplerSelect", sampler_name="dyweight")
    for name, sampler in (("learned", learned), ("stock", named)):
        graph.sample(name, sampler, sigmas)
        graph.sample(f"{name} copy", graph.add(f"{name} copied", "TinyCopied", sampler=sampler, how=how), sigmas)
    learned, learned_copy, stock, stock_copy = graph.submit("learned", "learned copy", "stock", "stock copy")
    assert learned_copy.equal(learned) and stock_copy.equal(stock)


# ---- the host's list of levels


WHOLE = list(range(STEPS))


@pytest.mark.parametrize(
    ("model", "entrance", "places"),
    [
        ("sd15", "node", WHOLE),
        ("sd15", "wrapped", WHOLE),
        ("sd15", "dyweight", WHOLE),
        ("sd15", "half", [0, 1, 2]),
        ("sd15", "split", [0, 1]),
        ("sd3", "ds_solver", WHOLE),
        ("wan", "ds_solver", WHOLE),
    ],
)
def test_the_levels_of_the_host_are_those_that_are_called(server, model, entrance, places):
    graph = watched(server, model, f"places {model} {entrance}")
    if entrance in ("dyweight", "ds_solver", "half"):
        changes = {"denoise": 0.5} if entrance == "half" else {}
        graph.save(run=ksampler("dyweight" if entrance == "half" else entrance, STEPS, model=graph.model, **changes))
    else:
        sampler, sigmas = graph.learn("learned", "dyweight_sd15", STEPS)
        if entrance == "wrapped":
            sampler = graph.add("wrapper", "TinyWrapped", sampler=sampler, hidden=1)
        if entrance == "split":
            sigmas = graph.add("split", "SplitSigmas", sigmas=sigmas, step=2)
        graph.sample("run", sampler, sigmas)
    graph.submit("run")
    assert [place for (place,) in record(graph)] == places


def test_context_windows_move_with_the_steps(server):
    # Of "looped uniform" the windows depend on the step, so that every call has its own list of frames.
    graph = watched(server, "wan", "windows")
    graph.prompt["4"]["inputs"]["length"] = 41
    windows = {"context_length": 6, "context_overlap": 2, "context_schedule": "looped_uniform", "context_stride": 1}
    windows |= {"closed_loop": False, "fuse_method": "pyramid", "dim": 2, "freenoise": False}
    windows |= {"cond_retain_index_list": "", "split_conds_to_windows": False}
    windows |= {"latent_retain_index_list": "", "causal_window_fix": False}
    known = server.get("/object_info/ContextWindowsManual")["ContextWindowsManual"]["input"]
    widgets = {name: windows[name] for name in {**known["required"], **known.get("optional", {})} if name in windows}
    model = graph.add("windows", "ContextWindowsManual", model=graph.model, **widgets)
    graph.save(learned=ksampler("ds_solver", 8, model=model, cfg=1.0), euler=ksampler("euler", 8, model=model, cfg=1.0))
    before = len(server.log)
    graph.submit("learned", "euler")
    places, half = [place for (place,) in record(graph)], 8 * 3
    assert places[:half] == places[half:] == [step for step in range(8) for _ in range(3)]
    if lines := re.findall(r"Context window .*", server.log[before:]):  # a newer core logs the frames
        assert lines[:half] == lines[half:] and len({*lines}) > 3


# ---- parts of a schedule, and refusals that another pack hides

SET = "Set Learned Solver"
CUT = {  # the model, the run, and facts of the refusal
    "beginning": ("sd15", advanced("dyweight", 0, 4), ["end at sigma", SET]),
    "end": ("sd15", advanced("dyweight", 4, 8), ["without new noise", SET]),
    "end of the other family": ("sd15", advanced("ds_solver", 3, 8), ["without new noise", SET]),
}
for model, scheduler, calls, steps in (
    ("sd15", "simple", 4, 8),
    ("sd15", "karras", 6, 7),
    ("sd15", "linear_quadratic", 4, 30),
    ("sd3", "karras", 8, 20),  # all levels are close to 1
    ("sd3", "learned", 5, 10),
    ("wan", "beta", 5, 50),
):
    run = advanced("ds_solver", 0, calls, steps, scheduler=scheduler, return_with_leftover_noise="disable")
    facts = [f"first {calls} of the {steps} steps of {scheduler}", f"set steps to {steps} in {SET}"]
    CUT[f"beginning of {scheduler} on {model}, then to 0"] = (model, run, facts)


@pytest.mark.parametrize("case", CUT)
def test_a_part_of_a_schedule_is_refused_before_any_call(server, case):
    model, run, facts = CUT[case]
    graph = watched(server, model, f"cut {case}")
    graph.save(run={**run, "inputs": run["inputs"] | {"model": graph.model}})
    message = graph.error()
    assert [fact for fact in facts if fact not in message] == [], message
    assert record(graph) == []


@pytest.mark.parametrize(("model", "sampler"), [("sd15", "dyweight"), ("wan", "ds_solver")])
def test_two_experts_share_a_schedule_whose_steps_are_set(server, model, sampler):
    graph = watched(server, model, f"experts {model}")
    graph.model = graph.add("set", "SetLearnedSolver", model=graph.model, solver="auto", steps=8)
    graph.save(high=advanced(sampler, 0, 4, model=graph.model))
    graph.save(low=advanced(sampler, 4, 8, model=graph.model, latent_image=["high", 0]))
    high, low = graph.submit("high", "low")
    levels = record(graph, "sigma")
    assert len(levels) in (7, 8, 9) and levels == sorted(levels, reverse=True)
    assert differs(high, low)


@pytest.mark.parametrize(("model", "shift"), [("sd15", 0), ("sd3", 1), ("wan", 8)])
def test_no_whole_schedule_of_the_host_is_refused(server, model, shift):
    # In a model's time the last step of several of them is as large as of a schedule that was cut.
    graph = Graph.of(server, model)
    if shift:
        graph.model = graph.add("shift", "ModelSamplingSD3", model=graph.model, shift=shift)
    names, known = options(server, "KSampler", "scheduler"), server.get("/object_info")
    runs = {f"{name} {n}": ksampler("ds_solver", n, name, model=graph.model) for name in names for n in (5, 8)}
    graph.save(**runs)
    sampler = graph.add("named", "KSamplerSelect", sampler_name="ds_solver")
    large = {"steps": 5, "width": 2048, "height": 2048}
    for kind, widgets in (
        *([("Flux2Scheduler", large), ("OptimalStepsScheduler", {"model_type": "Wan", "steps": 5, "denoise": 1.0})]
          if shift else [("SDTurboScheduler", {"model": graph.model, "steps": 10, "denoise": 1.0}),
                         ("GITSScheduler", {"coeff": 0.8, "steps": 5, "denoise": 1.0})]),
    ):  # fmt: skip
        if kind in known:
            graph.sample(kind, sampler, graph.add(f"{kind} sigmas", kind, **widgets))
    graph.submit()


def test_sigmas_that_equal_a_cut_schedule_run_once_the_user_says_that_they_are_whole(server):
    # SDTurboScheduler's 5 levels are the first 5 of simple's 10.
    graph = watched(server, "sd15", "turbo")
    named = graph.add("named", "KSamplerSelect", sampler_name="ds_solver")
    sigmas = graph.add("turbo", "SDTurboScheduler", model=graph.model, steps=5, denoise=1.0)
    graph.sample("run", named, sigmas)
    assert f"set steps to 10 in {SET}; or, if they are whole, set steps to 5 there" in graph.error()
    assert record(graph) == []
    graph.model = graph.add("set", "SetLearnedSolver", model=["1", 0], solver="auto", steps=5)
    graph.prompt["runguider"]["inputs"]["model"] = graph.model
    graph.sample("node", *graph.learn("learned", "ds_vp-dit", 5))
    assert_same(*graph.submit("run", "node"))


def test_a_refusal_stops_a_pack_that_skips_errors_and_is_logged_once(server):
    graph = Graph.of(server, "sd15")
    graph.add("sampler", "KSamplerSelect", sampler_name="dyweight")
    wires = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent": ["4", 0]}
    graph.save(run=node("TinyStepByStep", **wires, sampler=["sampler", 0], steps=6))
    before = len(server.log)
    message = graph.error().strip()
    assert SET in message
    own = re.compile(rf"(\S*\[ERROR\]\S* )?{re.escape(message)}")
    assert len([line for line in server.log[before:].splitlines() if own.fullmatch(line)]) == 1
