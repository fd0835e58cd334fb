"""The bundled solvers are the published figures, number by number, and every one of them samples."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from learned_solvers.samplers import EDMNoise, FlowNoise, Solver, VPNoise, list_solvers, load_solver, sample_table
from learned_solvers.samplers.files.solver import BUNDLED
from oracles import GaussianFlow, GaussianVE, Recorder

ROOT = Path(__file__).resolve().parents[2]
DATASETS = {
    "dyweight_afhqv2-64": "afhqv2",
    "dyweight_cifar10": "cifar10",
    "dyweight_ffhq64": "ffhq",
    "dyweight_flux1-dev": "flux1-dev",
    "dyweight_imagenet64": "imagenet64",
    "dyweight_lsun-bedroom-ldm": "lsun_bedroom_ldm",
    "dyweight_sd15": "ms_coco",
}
DS = {"ds_flow-flowdcn": "flow-flowdcn", "ds_flow-sit": "flow-sit", "ds_vp-dit": "vp-dit"}
PIXEL_STEPS = (3, 4, 5, 6, 7, 8, 9)
STEPS = {
    **dict.fromkeys(("dyweight_afhqv2-64", "dyweight_cifar10", "dyweight_ffhq64", "dyweight_imagenet64"), PIXEL_STEPS),
    "dyweight_flux1-dev": (3, 5, 7),
    "dyweight_lsun-bedroom-ldm": PIXEL_STEPS,
    "dyweight_sd15": (4, 6, 8, 10),
    "ds_flow-flowdcn": (5, 6, 7, 8, 9, 10, 15),
    "ds_flow-sit": (5, 6, 7, 8, 9, 10),
    "ds_vp-dit": (5, 6, 7, 8, 9, 10),
}
EVERY = [(name, steps) for name, counts in STEPS.items() for steps in counts]
# The table with the loss that the released code has wins over its rival for the same count of calls.
RIVALS = {"00002-cifar-nfe4"}
NOISE = {"edm": EDMNoise(), "flow": FlowNoise(tokens=1024), "vp": VPNoise.stable_diffusion()}
PIECEWISE = [("dyweight_afhqv2-64", 3), ("dyweight_afhqv2-64", 4), ("dyweight_ffhq64", 4)]


@cache
def published(name: str) -> dict:
    return json.loads((Path(__file__).parents[1] / "data" / f"{name}.json").read_text())["tables"]


@cache
def shipped(name: str) -> Solver:
    return load_solver(name)


def published_dyweight() -> dict[tuple[str, int], tuple[str, dict]]:
    """Returns the published tables and their names by bundled solver and count of calls."""
    names = {dataset: name for name, dataset in DATASETS.items()}
    tables = {key: table for key, table in published("dyweight").items() if key not in RIVALS}
    return {(names[table["dataset"]], table["network_calls"]): (key, table) for key, table in tables.items()}


def test_the_bundled_solvers_are_these():
    assert list_solvers() == sorted(STEPS)


@pytest.mark.parametrize(("name", "steps"), STEPS.items(), ids=STEPS)
def test_a_solver_has_the_published_step_counts(name, steps):
    assert shipped(name).steps == steps


def test_every_published_table_is_bundled():
    bundled = {key for key, _ in published_dyweight().values()}
    assert bundled == {step.source_table for name in DATASETS for step in shipped(name).card.steps.values()}
    assert bundled | RIVALS == set(published("dyweight"))
    assert set(published_dyweight()) == {(name, steps) for name, steps in EVERY if name in DATASETS}


@pytest.mark.parametrize(("name", "steps"), [(name, steps) for name, steps in EVERY if name in DATASETS])
def test_dyweight_figures_are_the_published_ones(name, steps):
    _, table = published_dyweight()[name, steps]
    own = shipped(name).parameters_at(steps)
    assert own["weights"].tolist() == table["weights"]
    assert own["t_scale"].tolist() == table["t_scale"]
    assert own["weights"].dtype == own["t_scale"].dtype == torch.float64


@pytest.mark.parametrize(("name", "steps"), [(name, steps) for name, steps in EVERY if name in DS])
def test_ds_figures_are_the_published_ones_with_times_that_sum_to_1(name, steps):
    table = published("ds_solver")[DS[name]][f"step{steps}"]
    own = shipped(name).parameters_at(steps)
    assert own["coeffs"].tolist() == table["coeffs"]
    deltas = torch.tensor(table["timedeltas"], dtype=torch.float64)
    assert own["timedeltas"].tolist() == (deltas / deltas.sum()).tolist()


@pytest.mark.parametrize(("name", "steps"), [(name, steps) for name, steps in EVERY if name in DATASETS])
def test_the_card_repeats_what_is_published_about_a_dyweight_table(name, steps):
    key, table = published_dyweight()[name, steps]
    step = shipped(name).card.steps[steps]
    rules = {"polynomial": "polynomial", "discrete": "uniform_time", "flux_shift": "flux_shift"}
    assert step.source_table == key
    assert (step.options.get("analytic_first", False), step.history, step.loss) == (
        table["afs"],
        table["history"],
        table["loss"],
    )
    assert (step.teacher, step.teacher_steps) == (table["teacher"], table["teacher_steps"])
    assert step.grid.rule == rules[table["schedule"]]
    assert step.grid.parameters.get("rho", table.get("rho")) == table.get("rho")
    assert step.options.get("divisor", "state") == ("call" if name == "dyweight_flux1-dev" else "state")


def test_of_two_tables_for_one_count_the_one_whose_loss_is_known_is_taken():
    solver = shipped("dyweight_cifar10")
    taken, rival = published("dyweight")["00001-cifar-nfe4"], published("dyweight")["00002-cifar-nfe4"]
    assert solver.parameters_at(4)["weights"].tolist() == taken["weights"] != rival["weights"]
    assert (solver.card.steps[4].source_table, solver.card.steps[4].loss) == ("00001-cifar-nfe4", "inception")
    assert (taken["network_calls"], rival["network_calls"], rival["loss"]) == (4, 4, "piecewise")


@pytest.mark.parametrize(("name", "steps"), EVERY)
def test_a_loss_that_nobody_can_repeat_is_said_so(name, steps):
    step = shipped(name).card.steps[steps]
    expected = (
        'Fitted with the loss "piecewise", which the released code lacks.' if (name, steps) in PIECEWISE else None
    )
    assert step.note == expected


@pytest.mark.parametrize("name", STEPS)
def test_only_what_the_authors_show_on_other_models_is_transferable(name):
    assert shipped(name).card.transferable == (name in ("ds_flow-sit", "ds_vp-dit"))


@pytest.mark.parametrize("name", STEPS)
def test_the_card_names_its_source_licence_date_and_version(name):
    card = shipped(name).card
    assert (card.licence == "MIT") == (card.family == "ds")
    assert card.source.startswith("https://github.com/")
    assert "arXiv" in card.citation
    assert (len(card.date), card.package_version) == (10, "0.1.0")


@pytest.mark.parametrize(("name", "steps"), EVERY)
def test_every_table_descends_to_a_finite_picture_in_its_calls(name, steps):
    solver = shipped(name)
    table = solver.table(steps, NOISE[solver.prediction])
    assert table.nfe == steps
    assert bool((table.levels.diff() < 0).all())
    recorder = Recorder(GaussianFlow() if solver.prediction == "flow" else GaussianVE())
    x = table.sigma_start * torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = sample_table(recorder, x, table, disable=True)
    assert len(recorder.sigma) == steps
    assert bool(torch.isfinite(result).all())
    assert float((result - 0.5).abs().max()) < 4  # data of mean 0.5 and standard deviation 0.5


@pytest.mark.parametrize("steps", STEPS["dyweight_flux1-dev"])
def test_the_last_row_of_the_flux_tables_falls_short(steps):
    row = shipped("dyweight_flux1-dev").parameters_at(steps)["weights"][-1]
    assert 0.75 < float(row.sum()) < 0.785


def test_the_ten_step_table_of_stable_diffusion_alone_is_polynomial_with_a_history_of_3():
    cards = shipped("dyweight_sd15").card.steps
    assert {n: (card.grid.rule, card.history) for n, card in cards.items()} == {
        4: ("uniform_time", 2),
        6: ("uniform_time", 2),
        8: ("uniform_time", 2),
        10: ("polynomial", 3),
    }


@pytest.mark.parametrize(("name", "lowest"), [("ds_flow-flowdcn", -8.2), ("ds_flow-sit", -2.98), ("ds_vp-dit", -2.02)])
def test_the_flowdcn_tables_alone_have_huge_coefficients(name, lowest):
    values = [float(own["coeffs"].min()) for own in shipped(name).parameters.values()]
    assert min(values) == pytest.approx(lowest, abs=0.005)


# The README beside the files.


def readme_rows() -> dict[str, list[str]]:
    """Returns the cells of each row by file."""
    lines = (ROOT / "solver_weights" / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {row[0]: row for row in rows[2:]}


def test_the_readme_has_one_row_per_file():
    assert sorted(readme_rows()) == sorted(path.stem for path in BUNDLED.glob("*.safetensors"))


@pytest.mark.parametrize("name", STEPS)
def test_a_row_of_the_readme_says_what_the_card_says(name):
    card = shipped(name).card
    model = f"{card.architecture}: {card.checkpoint}"
    steps = ", ".join(map(str, card.steps))
    assert readme_rows()[name] == [
        name, card.family, model, card.prediction, steps, str(card.guidance), card.source, card.licence
    ]  # fmt: skip
