"""Compare Samplers and Learned Solver Info, the nodes that draw, in real ComfyUI servers."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from comfy_graphs import WIRES, Graph, ksampler
from learned_solvers.samplers import load_solver
from oracles import knotted_solver


def draw(graph: Graph, key: str, kind: str, **inputs: object) -> None:
    """Adds a drawing node; `picture` and `text` return its outputs."""
    graph.add(f"{key}node", kind, **inputs)
    graph.add(key, "SaveImage", images=[f"{key}node", 0], filename_prefix=key)
    graph.show(f"{key}text", [f"{key}node", 1])


def comparison(server, **widgets: object) -> Graph:
    """A small comparison; the record of its model calls has the name of its widgets."""
    graph = Graph.of(server, "sd15")
    graph.model = graph.add("watched", "TinyWatch", model=graph.model, name=str(widgets))
    settings = {"seed": 7, "cfg": 2.0, "solver": "auto", "steps": "6", "samplers": "euler", "scheduler": "simple"}
    settings |= {"teacher": "heun", "teacher_steps": 4, **widgets}
    draw(graph, "comparison", "CompareSamplers", **WIRES | {"model": graph.model}, **settings)
    return graph


def calls_of(graph: Graph) -> list[float]:
    """The levels of all model calls of a comparison so far."""
    seen = Graph.of(graph.server, "sd15")
    name = graph.prompt["watched"]["inputs"]["name"]
    seen.show("calls", seen.add("seen", "TinySeen", latent=seen.latent, name=name))
    seen.submit()
    return json.loads(seen.text("calls"))["sigma"]


def test_the_errors_are_those_of_the_saved_latents(server):
    graph = comparison(
        server, steps="5 6", samplers="euler, heun, dpmpp_2m/karras", teacher="dpmpp_2m", teacher_steps=12,
        more_solvers="ds_vp-dit, dyweight_sd15",
    )  # fmt: skip
    graph.save(euler=ksampler("euler", 6), teacher=ksampler("dpmpp_2m", 12))
    end, goal = graph.submit("euler", "teacher")
    lines = graph.text("comparisontext").splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines[4:]]
    rows = {(int(calls), sampler.strip("*")): rest for calls, sampler, *rest in cells}
    # The node measures in the model's own scale: SD's latents are stored divided by 0.18215.
    error = 0.18215 * float((end - goal).double().square().mean().sqrt())
    assert float(rows[6, "euler/simple"][1]) == pytest.approx(error, abs=2e-6)
    assert rows[6, "heun/simple"][0] == "5" and rows[6, "euler/simple"][0] == "6"  # one more step of heun: 7 calls
    assert "4, 6, 8 and 10 steps" in rows[5, "dyweight_sd15"][1]
    assert "dyweight_sd15" in next(line for line in lines if line.startswith("| 6 | **auto**"))
    assert len(calls_of(graph)) >= 5 + 6 + 12
    grid = graph.picture("comparison")
    assert grid.shape[0] > 300 and grid.shape[1] > 800 and (grid[:8, :8] == 255).all() and grid.std() > 20


def test_a_comparison_whose_images_do_not_fit_into_memory_takes_them_in_parts(server):
    graph = Graph.of(server, "sd15", batch=3)
    hungry = graph.add("hungry", "TinyHungry", model=graph.model, most=2, name="comparison")  # one image, two prompts
    settings = {"seed": 7, "cfg": 2.0, "solver": "auto", "steps": "4", "samplers": "euler", "scheduler": "simple"}
    settings |= {"teacher": "heun", "teacher_steps": 4}
    for key, model in (("whole", graph.model), ("parts", hungry)):
        draw(graph, key, "CompareSamplers", **WIRES | {"model": model}, **settings)
    with server.messages() as messages:
        graph.submit()
        seen = [data for kind, data in messages if kind == "progress" and data["node"] == "partsnode"]
    assert [data["value"] for data in seen if data["max"] == 3] == [1, 2, 3]  # the teacher and two samplers
    parts, whole = (
        [float(number) for number in re.findall(r"\d+\.\d{6}", graph.text(f"{key}text"))] for key in ("parts", "whole")
    )
    assert len(whole) == 2 and parts == pytest.approx(whole, abs=2e-6)
    graph.show("calls", graph.add("seen", "TinySeen", latent=graph.latent, name="comparison"))
    graph.submit()
    calls = json.loads(graph.text("calls"))
    assert calls[:2] == [6, "freed"] and set(calls[2:]) <= {2, "freed"}


def test_a_sampler_that_cannot_run_has_its_reason_in_the_table(server):
    samplers = "euler, dyweight/karras, broken, ds_solver/karras, dpm_adaptive, dpm_fast"
    graph = comparison(server, solver="ds_vp-dit", steps="5 6", samplers=samplers)
    graph.submit()
    table = graph.text("comparisontext")
    for row in (
        r"5 \| euler/simple \| 5 \| \d",
        r"5 \| dyweight/karras \| 0 \| .*not 5",
        *(rf"{steps} \| ds_solver/karras \| {steps} \| \d" for steps in (5, 6)),
        r"6 \| dyweight/karras \| 6 \| \d",
        r"6 \| broken/simple \| 0 \| this sampler does not run on this machine",
        r"6 \| dpm_adaptive/simple \| 0 \| cannot sample in 6 model calls",
        r"6 \| dpm_fast/simple \| [1-6] \| \d",
    ):
        assert re.search(rf"\| {row}", table), row


@pytest.mark.parametrize(
    ("widgets", "message"),
    [
        ({"samplers": "eular"}, "samplers: unknown sampler 'eular'; choose from euler, "),
        ({"samplers": "euler/karas"}, "samplers: unknown scheduler 'karas'; choose from "),
        ({"more_solvers": "ds_flow"}, "more_solvers: unknown solver 'ds_flow'; choose from auto, "),
        ({"solver": "dyweight_flux1-dev"}, "dyweight_flux1-dev was fitted for flow models"),
        ({"steps": "20"}, "dyweight_sd15 has 4, 6, 8 and 10 steps, not"),
        ({"teacher": "dyweight", "teacher_steps": 5}, "dyweight_sd15 has 4, 6, 8 and 10 steps, not"),
    ],
)
def test_an_impossible_comparison_is_refused_before_it_samples(server, widgets, message):
    graph = comparison(server, **widgets)
    assert message in graph.error()
    assert calls_of(graph) == []


KNOTS = "knots.safetensors"
NAMES = ["dyweight_sd15", "ds_flow-sit", "dyweight_cifar10", "dyweight_flux1-dev", "ds_vp-dit", KNOTS]


@pytest.mark.parametrize("name", NAMES)
def test_info_draws_every_step_count_and_reads_the_card(server, name):
    knots = knotted_solver((5.0, 10.0))
    knots.save(server.solver("knots"))
    graph, solver = Graph(server, {}), knots if name == KNOTS else load_solver(name)
    draw(graph, "info", "LearnedSolverInfo", solver=name, steps=0, scheduler="simple")
    graph.submit()
    drawn, card = graph.picture("info"), graph.text("infotext")
    assert 1000 < drawn.shape[1] < 1600
    assert 350 * len(solver.steps) < drawn.shape[0] < 500 * len(solver.steps) + 100
    assert len({tuple(pixel) for pixel in drawn[::7, ::7].reshape(-1, 3)}) > 10
    assert f"guidance: {solver.card.guidance}" in card or solver.card.guidance is None
    assert name != KNOTS or {"guidance: CFG 5, 10", "2 steps: parameters at guidance 5, 10"} <= {*card.splitlines()}
    assert f"steps: {', '.join(map(str, solver.steps))}" in card and solver.card.checkpoint in card
    options = [option for step in solver.card.steps.values() for option in step.options.items()]
    assert all(f"{option} {value}" in card for option, value in options)


def test_info_shows_the_grid_on_the_connected_model_and_latent(server):
    graph = Graph.of(server, "flux", width=128)
    usual = graph.add("usual", "EmptySD3LatentImage", width=1024, height=1024, batch_size=1)
    small = graph.add("small", "EmptySD3LatentImage", width=256, height=512, batch_size=1)
    widgets = {"solver": "dyweight_flux1-dev", "steps": 3, "scheduler": "simple"}
    wires = {"none": {}, "usual": {"latent": usual}, "small": {"latent": small}}
    wires["model"] = {"model": graph.model, "latent": graph.latent}
    for name, inputs in wires.items():
        draw(graph, f"{name}info", "LearnedSolverInfo", **widgets, **inputs)
    graph.submit()
    plain, *others = (graph.picture(f"{name}info") for name in wires)
    assert [np.array_equal(other, plain) for other in others] == [True, False, False]
    assert all(other.shape == plain.shape for other in others)
    widgets |= {"solver": "dyweight_sd15", "steps": 4}
    draw(graph, "wrong", "LearnedSolverInfo", **widgets, **wires["model"])
    assert "dyweight_sd15 was fitted for vp models" in graph.error()
