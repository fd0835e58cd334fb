"""The bundled solvers have the published parameters, number by number, and each of their tables samples."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from learned_solvers.samplers import EDMNoise, FlowNoise, VPNoise, list_solvers, load_solver
from learned_solvers.samplers.files.card import VERSION
from oracles import GaussianFlow, GaussianVE, Recorder, run, start

ROOT = Path(__file__).resolve().parents[2]
DATASETS = {f"dyweight_{name}": name for name in ("cifar10", "flux1-dev", "imagenet64")}
DATASETS |= {"dyweight_afhqv2-64": "afhqv2", "dyweight_ffhq64": "ffhq", "dyweight_sd15": "ms_coco"}
DATASETS |= {"dyweight_lsun-bedroom-ldm": "lsun_bedroom_ldm"}
DS = {"ds_flow-flowdcn": "flow-flowdcn", "ds_flow-sit": "flow-sit", "ds_vp-dit": "vp-dit"}
STEPS = {
    **dict.fromkeys(DATASETS, (3, 4, 5, 6, 7, 8, 9)),
    **{"dyweight_flux1-dev": (3, 5, 7), "dyweight_sd15": (4, 6, 8, 10)},
    **dict.fromkeys(DS, (5, 6, 7, 8, 9, 10)),
    "ds_flow-flowdcn": (5, 6, 7, 8, 9, 10, 15),
}
RIVAL = "00002-cifar-nfe4"  # a second table for 4 calls; the bundled one has a loss of the released code
RULES = {"polynomial": "polynomial", "discrete": "uniform_time", "flux_shift": "flux_shift"}
PIECEWISE = 'Fitted with the loss "piecewise", which the released code lacks.'
NOISE = {"edm": EDMNoise(), "flow": FlowNoise(tokens=1024), "vp": VPNoise.stable_diffusion()}
shipped = cache(load_solver)


def tables_of(*names: str) -> list[tuple[str, int]]:
    return [(name, steps) for name in names for steps in STEPS[name]]


@cache
def published(name: str) -> dict:
    return json.loads((ROOT / "tests" / "data" / f"{name}.json").read_text())["tables"]


def test_the_bundled_solvers_are_all_published_tables():
    assert {name: shipped(name).steps for name in list_solvers()} == dict(sorted(STEPS.items()))
    bundled = {step.source_table for name in DATASETS for step in shipped(name).card.steps.values()}
    assert bundled | {RIVAL} == set(published("dyweight")) and RIVAL not in bundled


@pytest.mark.parametrize(("name", "steps"), tables_of(*DATASETS))
def test_parameters_and_card_of_dyweight_are_the_published_ones(name, steps):
    step, parameters = shipped(name).card.steps[steps], shipped(name).parameters_at(steps)
    table = published("dyweight")[step.source_table]
    assert (table["dataset"], table["network_calls"]) == (DATASETS[name], steps)
    assert {key: tensor.tolist() for key, tensor in parameters.items()} == {k: table[k] for k in ("weights", "t_scale")}
    assert {tensor.dtype for tensor in parameters.values()} == {torch.float64}
    fit = ("history", "loss", "teacher", "teacher_steps")
    assert [getattr(step, key) for key in fit] == [table[key] for key in fit]
    assert step.note == (PIECEWISE if table["loss"] == "piecewise" else None)
    assert step.grid.rule == RULES[table["schedule"]]
    assert step.grid.parameters.get("rho", table.get("rho")) == table.get("rho")
    divisor = {"divisor": "call"} if name == "dyweight_flux1-dev" else {}
    assert step.options == divisor | ({"analytic_first": True} if table["afs"] else {})


@pytest.mark.parametrize(("name", "steps"), tables_of(*DS))
def test_parameters_of_ds_are_the_published_ones_with_times_that_sum_to_1(name, steps):
    table, parameters = published("ds_solver")[DS[name]][f"step{steps}"], shipped(name).parameters_at(steps)
    deltas = torch.tensor(table["timedeltas"], dtype=torch.float64)
    assert parameters["coeffs"].tolist() == table["coeffs"]
    assert parameters["timedeltas"].tolist() == (deltas / deltas.sum()).tolist()
    assert shipped(name).card.steps[steps].note is None


@pytest.mark.parametrize("name", STEPS)
def test_the_card_has_its_source_licence_date_and_version(name):
    card = shipped(name).card
    assert card.transferable == (name in ("ds_flow-sit", "ds_vp-dit"))
    assert (card.licence == "MIT") == (card.family == "ds")
    assert card.source.startswith("https://github.com/") and "arXiv" in card.citation
    assert (len(card.date), card.package_version) == (10, VERSION)


@pytest.mark.parametrize(("name", "steps"), tables_of(*STEPS))
def test_every_table_descends_to_a_finite_picture_in_its_calls(name, steps):
    solver = shipped(name)
    table = solver.table(steps, NOISE[solver.prediction])
    assert bool((table.levels.diff() < 0).all())
    recorder = Recorder(GaussianFlow() if solver.prediction == "flow" else GaussianVE())
    result = run(recorder, start(table.sigma_start), table)
    assert len(recorder.sigma) == table.nfe == steps
    assert float((result - 0.5).abs().max()) < 4  # data of mean 0.5 and standard deviation 0.5


def test_the_readme_has_a_row_per_file_with_facts_from_its_card():
    lines = (ROOT / "solver_weights" / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]
    cards = {name: shipped(name).card for name in list_solvers()}
    assert sorted(rows) == [
        [
            *(name, card.family, f"{card.architecture}: {card.checkpoint}", card.prediction),
            *(", ".join(map(str, card.steps)), str(card.guidance), card.source, card.licence),
        ]
        for name, card in cards.items()
    ]
