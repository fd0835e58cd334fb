"""Compare Samplers and Learned Solver Info, the nodes that draw, in real ComfyUI servers."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from comfy_host import error_of, succeeded
from comfy_prompts import WIRES, ksampler, model_nodes, node, saved, saved_latent
from learned_solvers.samplers import Guidance, Solver, load_solver
from PIL import Image

pytestmark = pytest.mark.comfy


def picture(server, history, key):
    entry = history["outputs"][key]["images"][0]
    with Image.open(server.base / "output" / entry["filename"]) as image:
        return np.asarray(image.convert("RGB")).copy()


def test_compare_prints_the_error_that_the_saved_latents_have(server):
    prompt = model_nodes(server, "sd15")
    own = {k: v for k, v in WIRES.items()}
    prompt["cmp"] = node(
        "CompareSamplers", **own, seed=7, cfg=2.0, solver="auto", steps="5 6", samplers="euler, heun, dpmpp_2m/karras",
        scheduler="simple", teacher="dpmpp_2m", teacher_steps=12, more_solvers="ds_vp-dit, dyweight_sd15",
    )  # fmt: skip
    prompt |= {"t": node("PreviewAny", source=["cmp", 1])}
    prompt["grid"] = node("SaveImage", images=["cmp", 0], filename_prefix="grid")
    prompt = saved(prompt, euler=ksampler("euler", 6), teacher=ksampler("dpmpp_2m", 12))
    history = succeeded(server.submit(prompt))
    table = history["outputs"]["t"]["text"][0]
    rows = {
        (int(r[0]), r[1].strip("*")): r[2:] for r in (line.strip("| ").split(" | ") for line in table.splitlines()[4:])
    }
    # The node measures in the model's own scale: SD's latents are stored divided by 0.18215.
    distance = 0.18215 * (saved_latent(server, history, "euler") - saved_latent(server, history, "teacher")).double()
    assert float(rows[6, "euler/simple"][1]) == pytest.approx(float(distance.square().mean().sqrt()), abs=2e-6)
    assert rows[6, "heun/simple"][0] == "5" and rows[6, "euler/simple"][0] == "6"  # heun's next count would be 7
    assert "was fitted for 4, 6, 8 and 10 steps" in rows[5, "dyweight_sd15"][1]
    assert "dyweight_sd15" in next(line for line in table.splitlines() if line.startswith("| 6 | **auto**"))
    grid = picture(server, history, "grid")
    assert grid.shape[0] > 300 and grid.shape[1] > 800 and (grid[:8, :8] == 255).all() and grid.std() > 20


def compared(server, model, **widgets):
    """Returns the history of a small comparison, its table in "t"."""
    prompt = model_nodes(server, model)
    own = {"solver": "auto", "steps": "6", "samplers": "euler", "scheduler": "simple", "teacher": "heun"}
    prompt["watched"] = node("TinyWatch", model=["1", 0], name="compared")
    prompt["cmp"] = node("CompareSamplers", **WIRES, seed=7, cfg=2.0, **own, teacher_steps=4)
    prompt["cmp"]["inputs"] |= {"model": ["watched", 0], **widgets}
    prompt["t"] = node("PreviewAny", source=["cmp", 1])
    return server.submit(prompt)


@pytest.mark.parametrize(
    ("widgets", "message"),
    [
        ({"samplers": "eular"}, "samplers: unknown sampler 'eular'; choose from euler, "),
        ({"more_solvers": "ds_flow"}, "more_solvers: unknown solver 'ds_flow'; choose from auto, "),
        ({"solver": "dyweight_flux1-dev"}, "dyweight_flux1-dev was fitted for flow models, this model is vp"),
        ({"steps": "20"}, "choose the steps of dyweight_sd15 (4, 6, 8, 10 steps)"),
    ],
)
def test_compare_refuses_what_it_cannot_run_before_it_samples(server, widgets, message):
    assert message in error_of(compared(server, "sd15", **widgets))
    prompt = {k: v for k, v in model_nodes(server, "sd15").items() if k == "4"}
    prompt["seen"] = node("TinySeen", latent=["4", 0], name="compared")
    prompt["t"] = node("PreviewAny", source=["seen", 0])
    told = succeeded(server.submit(prompt))["outputs"]["t"]["text"][0]
    assert json.loads(told)["sigma"] == []


@pytest.mark.parametrize("sampler", ["dyweight", "ds_solver"])
def test_compare_says_which_of_our_samplers_has_not_the_steps(server, sampler):
    history = compared(server, "sd15", solver="ds_vp-dit", steps="5 6", samplers=f"euler, {sampler}/karras")
    table = succeeded(history)["outputs"]["t"]["text"][0]
    assert re.search(rf"\| 6 \| {sampler}/karras \| 6 \| \d", table) and "| 5 | euler/simple | 5 | " in table
    if sampler == "dyweight":
        assert "| 5 | dyweight/karras | 0 | sampler dyweight: no dyweight solver for SD15 (vp) model has 5" in table
    else:
        assert re.search(r"\| 5 \| ds_solver/karras \| 5 \| \d", table)


def test_a_teacher_of_ours_that_has_not_the_steps_is_refused(server):
    message = error_of(compared(server, "sd15", teacher="dyweight", teacher_steps=5))
    assert "no dyweight solver for SD15 (vp) model has 5 steps" in message


def test_compare_says_which_sampler_cannot_do_with_so_few_calls(server):
    table = succeeded(compared(server, "sd3", samplers="dpm_adaptive, dpm_fast"))["outputs"]["t"]["text"][0]
    assert "| 6 | dpm_adaptive/simple | 0 | cannot sample in 6 model calls |" in table
    assert re.search(r"\| 6 \| dpm_fast/simple \| [1-6] \| \d", table)


@pytest.mark.parametrize(
    "solver", ["dyweight_sd15", "ds_flow-sit", "dyweight_cifar10", "dyweight_flux1-dev", "ds_vp-dit"]
)
def test_info_draws_every_step_count_and_reads_the_card(server, solver):
    prompt = {"i": node("LearnedSolverInfo", solver=solver, steps=0, scheduler="simple")}
    prompt |= {
        "t": node("PreviewAny", source=["i", 1]),
        "p": node("SaveImage", images=["i", 0], filename_prefix=solver),
    }
    history = succeeded(server.submit(prompt))
    drawn = picture(server, history, "p")
    steps = load_solver(solver).steps
    assert 1000 < drawn.shape[1] < 1600 and 350 * len(steps) < drawn.shape[0] < 500 * len(steps) + 100
    assert len({tuple(pixel) for pixel in drawn[::7, ::7].reshape(-1, 3)}) > 10
    card = history["outputs"]["t"]["text"][0]
    assert f"guidance: {load_solver(solver).card.guidance}" in card or load_solver(solver).card.guidance is None
    assert f"steps: {', '.join(map(str, steps))}" in card and load_solver(solver).card.checkpoint in card


def test_info_says_at_which_guidance_a_solver_has_parameters(server):
    solver = load_solver("dyweight_sd15")
    card = replace(
        solver.card,
        guidance=Guidance("cfg", (5.0, 7.5, 10.0)),
        steps={n: replace(step, knots=(5.0, 10.0)) for n, step in solver.card.steps.items()},
    )
    parameters = {n: {k: t.repeat(2, *[1] * (t.ndim - 1)) for k, t in p.items()} for n, p in solver.parameters.items()}
    path = server.base / "models" / "solver_weights" / "knots.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    Solver("knots", card, parameters).save(path)
    prompt = {"i": node("LearnedSolverInfo", solver=path.name, steps=4, scheduler="simple")}
    prompt["t"] = node("PreviewAny", source=["i", 1])
    lines = succeeded(server.submit(prompt))["outputs"]["t"]["text"][0].splitlines()
    path.unlink()
    assert "guidance: CFG 5, 7.5, 10" in lines
    options = "; ".join(f"{name} {value}" for name, value in solver.card.steps[4].options.items())
    assert any(line.startswith(f"4 steps: parameters at guidance 5, 10; {options}".rstrip("; ")) for line in lines)


def test_info_without_a_model_shows_the_grid_of_the_latents_size(server):
    prompt = {"small": node("EmptySD3LatentImage", width=256, height=512, batch_size=1)}
    prompt["usual"] = node("EmptySD3LatentImage", width=1024, height=1024, batch_size=1)
    for name, wires in (("none", {}), ("one", {"latent": ["usual", 0]}), ("other", {"latent": ["small", 0]})):
        prompt[f"i{name}"] = node(
            "LearnedSolverInfo", solver="dyweight_flux1-dev", steps=3, scheduler="simple", **wires
        )
        prompt[name] = node("SaveImage", images=[f"i{name}", 0], filename_prefix=name)
    history = succeeded(server.submit(prompt))
    none, one, other = (picture(server, history, name) for name in ("none", "one", "other"))
    assert np.array_equal(none, one) and not np.array_equal(none, other)


def test_info_shows_the_solver_on_a_models_own_schedule(server):
    prompt = model_nodes(server, "flux", width=128)
    prompt["i"] = node("LearnedSolverInfo", solver="dyweight_flux1-dev", steps=3, scheduler="simple")
    prompt["p"] = node("SaveImage", images=["i", 0], filename_prefix="plain")
    plain = picture(server, succeeded(server.submit(prompt)), "p")
    prompt["i"]["inputs"] |= {"model": ["1", 0], "latent": ["4", 0]}
    own = picture(server, succeeded(server.submit(prompt)), "p")
    assert plain.shape == own.shape and not np.array_equal(plain, own)
    prompt["i"]["inputs"] |= {"solver": "dyweight_sd15", "steps": 4}
    assert "was fitted for vp models, this model is flow" in error_of(server.submit(prompt))
