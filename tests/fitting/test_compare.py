"""The comparison and the demo fit on the bundled model, the former against k-diffusion's samplers; reports of fits."""

from __future__ import annotations

import json
import re

import pytest
import torch
from learned_solvers.samplers import FlowNoise, Grid, Solver, load_solver
from learned_solvers.samplers.files.card import Card, StepCard
from learned_solvers.training import FitResult, Peer, StepReport, Teacher, compare, fit_weights, table_of
from learned_solvers.training.command import demo
from learned_solvers.training.command.demo import demo_starts
from learned_solvers.training.comparison.measure import Entry, Refusal, Result, table_entries
from learned_solvers.training.comparison.measure import compare as compare_entries
from learned_solvers.training.comparison.plot import select_lines
from learned_solvers.training.data.samples import CountedDenoiser, Samples
from learned_solvers.training.models.emoji import load_emoji
from oracles import k_diffusion_module
from PIL import Image

SEED, SAMPLES = 5, 4
GRID = Grid("flow_shift", {"shift": 1.0})
DEMO = ["--demo", "--samples", str(SAMPLES), "--seed", str(SEED), "--teacher-steps", "12", "--threads", "1"]
PEERS = {"euler", "heun", "lms", "ipndm", "ipndm_v", "deis", "dpmpp_2m", "res_multistep", "uni_pc", "uni_pc_bh2"}
PEERS |= {"ab 2", "ab 3", "ipndm 2", "ipndm 3", "ipndm 4"}  # textbook methods


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A comparison at 4 and 5 calls on one grid, with Euler's method as a solver file: its folder and its record."""
    folder = tmp_path_factory.mktemp("compare")
    card = Card("dyweight", "flow", "Emoji", "emoji", {4: StepCard(grid=GRID, options={"divisor": "call"})})
    parameters = {"weights": torch.eye(4).double()[None], "t_scale": torch.ones(1, 4).double()}
    Solver("learned", card, {4: parameters}).save(folder / "learned.safetensors")
    options = [*DEMO, "--steps", "4", "5", "--grids", "shift 1", "--output", str(folder / "out")]
    compare.main([*options, "--solver", str(folder / "learned.safetensors")])
    return folder / "out", json.loads((folder / "out" / "compare.json").read_text())


def row_of(run, method: str, calls: int) -> dict:
    return next(row for row in run[1]["rows"] if (row["method"], row["calls"]) == (method, calls))


def error_of(name: str, steps: int) -> float:
    """The error of k-diffusion's sampler on the same starts."""
    x, extra_args = demo_starts(load_emoji(), SAMPLES, SEED)
    end = Teacher("heun", 12).reference(load_emoji(), Samples(x, extra_args, SAMPLES), FlowNoise()).end
    sampler = getattr(k_diffusion_module("sampling"), f"sample_{name}")
    levels = GRID.levels(steps, FlowNoise()).float()
    return float((sampler(load_emoji(), x, levels, extra_args=extra_args, disable=True) - end).square().mean().sqrt())


@pytest.mark.parametrize(
    ("method", "steps", "calls"), [("euler", 4, 4), ("dpmpp_2m", 5, 5), ("heun", 2, 4), ("heun", 3, 5)]
)
def test_a_row_has_the_error_of_k_diffusions_sampler(run, method, steps, calls):
    row = row_of(run, method, calls)
    assert row["error"] == pytest.approx(error_of(method, steps), rel=1e-4)
    assert row["used"] == (3 if (method, calls) == ("heun", 4) else calls)


def test_the_files_report_what_was_measured_a_learned_solver_first(run):
    folder, record = run
    rows = record["rows"]
    assert [row["method"] for row in rows if row["ours"]] == ["learned"] and rows[0]["calls"] == 4
    assert rows[0]["error"] == pytest.approx(error_of("euler", 4), rel=1e-4)
    assert {row["method"] for row in rows if row["calls"] == 5} == PEERS
    assert (record["samples"], record["seed"], record["teacher"]["calls"]) == (SAMPLES, SEED, 23)
    assert {"learned_solvers", "torch", "python"} <= set(record["versions"])
    # One grid per method, so no grid was tried on a few samples first.
    assert record["network_calls"] == SAMPLES * (23 + sum(row["used"] for row in rows))
    assert record["command"].startswith("python training/compare.py --demo --samples 4 --seed 5")
    table = (folder / "compare.md").read_text()
    line = next(line for line in table.splitlines() if line.startswith("| dpmpp_2m"))
    assert f"{row_of(run, 'dpmpp_2m', 5)['error']:.4f}" in line
    for name in ("compare.png", "pictures.png"):
        with Image.open(folder / name) as picture:
            assert 600 <= picture.width <= 1200 and len(picture.convert("L").getcolors(256) or []) > 20


def test_the_cost_is_printed_first_and_bounds_the_calls_and_files_are_not_overwritten(capsys, tmp_path):
    options = [*DEMO, "--steps", "3", "--grids", "shift 1", "shift 2", "--no-plot"]
    compare.main([*options, "--output", str(tmp_path)])
    output = capsys.readouterr().out
    cost = re.search(r"([\d,]+) network calls for the teacher .*, then at most ([\d,]+)\.", output)
    assert cost is not None
    teacher, most = (int(number.replace(",", "")) for number in cost.groups())
    report = (tmp_path / "compare.json").read_text()
    calls = json.loads(report)["network_calls"]
    assert teacher == 23 * SAMPLES and calls - teacher <= most <= 1.2 * (calls - teacher)
    assert re.search(r"The teacher took \d+ s; the rest takes (less than a minute|at most \d+ minutes?)\.", output)
    assert not (tmp_path / "compare.png").exists()
    with pytest.raises(SystemExit, match="1"):
        compare.main([*options, "--output", str(tmp_path)])
    assert "already exists: choose another --output, or add --overwrite" in capsys.readouterr().err
    assert (tmp_path / "compare.json").read_text() == report


def test_the_plot_has_all_learned_solvers_and_the_best_peer_of_each_number_of_calls():
    # Best on average: a, b, c, d, e; z is best at 5 calls only.
    ranks = {3: "abcdefz", 4: "abcdefz", 5: "zabcdef", 6: "abcdefz"}
    rows = [Result(n, n, m, "g", errors=(0.1 + i / 100,)) for n, names in ranks.items() for i, m in enumerate(names)]
    rows += [Result(n, n, name, "", learned=True, errors=(0.01,)) for n in (3, 5) for name in ("one", "two")]
    assert set(select_lines(rows)) == {"a", "b", "c", "z", "one", "two"}


def test_a_solver_that_cannot_run_has_a_reason_instead_of_an_error():
    def refuse(x, extra_args):
        raise Refusal("6 calls are too few")

    x, extra_args = demo_starts(load_emoji(), SAMPLES, SEED)
    model = CountedDenoiser(load_emoji(), torch.float32)
    entries = {2: [*table_entries(model, FlowNoise(), 2), Entry("learned", "", refuse, learned=True)]}
    results = compare_entries(entries, model, Samples(x, extra_args, 3), torch.zeros_like(x), pictures=2)
    assert (results[0].refusal, results[0].error, results[0].ends) == ("6 calls are too few", float("inf"), None)
    assert all(r.used == 2 and len(r.errors) == SAMPLES and r.ends.shape[0] == 2 for r in results if not r.refusal)
    assert [r.error for r in results[1:]] == sorted(r.error for r in results[1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "specify one model: --checkpoint FILE, or --diffusion-model FILE with"),
        ([*DEMO, "--steps", "4", "--grids", "none"], "no stock sampler uses 'none' at [4] calls; choose from 'shift 0"),
        (["--demo", "--guidance", "7"], "--demo cannot be combined with --guidance"),
        ([*DEMO, "--steps", "4", "23"], "the teacher makes 23 network calls, but must make more than the solvers' 23"),
        (["--demo", "--solver", "dyweight_sd15"], "dyweight_sd15 was fitted for vp models, but this model is flow"),
    ],
)
def test_an_impossible_comparison_is_refused(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        compare.main([*options, "--output", str(tmp_path)])
    assert message in capsys.readouterr().err


def test_the_demo_writes_a_solver_a_report_and_a_picture_of_the_prompts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "TEACHER", Teacher("ode", 12))
    options = ["--demo", "--steps", "3", "--prompt", "red heart", "cat face", "--output", str(tmp_path)]
    fit_weights.main(options)
    solver, text = load_solver(tmp_path / "dyweight_emoji.safetensors"), (tmp_path / "demo.md").read_text()
    step = solver.card.steps[3]
    assert step.error_after < step.error_best_peer and str(solver.card.guidance) == "CFG 4"
    assert f"**{step.error_after:.4f}**" in text and "on 4 held-out samples" in text
    with Image.open(tmp_path / "demo.png") as picture:
        assert 500 < picture.width < 900 and len(picture.convert("L").getcolors(256) or []) > 20
    for wrong, message in (
        (options, "already exists: add --overwrite"),
        (["--demo", "--prompt", "xyz", "--output", str(tmp_path / "new")], "knows no word"),
    ):
        with pytest.raises(SystemExit):
            fit_weights.main(wrong)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        fit_weights.main(["--checkpoint", "a.safetensors", "--prompt", "red heart"])
    assert "--prompt is for --demo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "median", "usual", "row", "verdict"),
    [
        (0.16, 0.04, "euler, shift 1", "| **0.1600** | 1.25 | 3.00 | 100 | 1 |",  # 0.20 / 0.16, 0.12 / 0.04
         "2.8 times closer than the usual sampler (euler, shift 1, 4 steps), 1.2 times closer than the best stock "
         "sampler tried (deis 2, shift 3)."),
        (0.16, 0.04, "", "| **0.1600** |", "1.2 times closer than the best stock sampler tried (deis 2, shift 3, "
         "4 steps)."),
        (0.16, 0.04, "heun, beta", "| **0.1600** |", "1.2 times closer than the best stock sampler tried ("),  # absent
        (0.1965, 0.15, "", "| **0.1965** | 1.02 | 0.80 | 100 | 1 |",
         "Not worth it: deis 2, shift 3, 4 steps, is as close to the teacher as the new solver: use it, or fit to more "
         "samples."),
        (0.21, 0.15, "", "| **0.2100** | 0.95 | 0.80 | 100 | 1 |",
         "Not worth it: deis 2, shift 3, 4 steps, is closer to the teacher than the new solver: use it"),
        (0.21, 0.10, "", "| **0.2100** | 0.95 | 1.20 | 100 | 1 |", "than the new solver, though its median is larger:"),
    ],
)  # fmt: skip
def test_a_report_begins_with_the_verdict_and_what_the_fit_took(error, median, usual, row, verdict):
    peers = (Peer("deis 2, shift 3", 0.20, 0.15), Peer("euler, shift 1", 0.45, 0.12))
    report = {4: StepReport(0.5, error, median, peers, 100, 1.0, "euler", usual=usual)}
    first, *lines = table_of(FitResult(load_solver("dyweight_sd15"), report, 1000, 16, seconds=700)).splitlines()
    assert sum(row in line for line in lines) == 1
    assert verdict in first and first.endswith("The fit took 12 minutes (1,100 calls).")
