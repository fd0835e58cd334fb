"""The comparison on the bundled model: its numbers are those of k-diffusion's own samplers."""

from __future__ import annotations

import json
import re

import pytest
import torch
from learned_solvers.samplers import FlowNoise, Grid, Solver
from learned_solvers.samplers.files.card import Card, StepCard
from learned_solvers.training import compare
from learned_solvers.training.command.demo import demo_starts
from learned_solvers.training.comparison.measure import Entry, Refusal, Result, table_entries
from learned_solvers.training.comparison.measure import compare as compare_entries
from learned_solvers.training.comparison.plot import select_lines
from learned_solvers.training.data.samples import CountedDenoiser, Samples
from learned_solvers.training.data.teacher import Teacher
from learned_solvers.training.models.digits import load_digits
from oracles import k_diffusion_module
from PIL import Image

SEED, SAMPLES = 5, 4
GRID = Grid("flow_shift", {"shift": 1.0})
QUICK = ["--samples", str(SAMPLES), "--seed", str(SEED), "--teacher-steps", "12", "--threads", "1"]
PEERS = {"euler", "heun", "lms", "ipndm", "ipndm_v", "deis", "dpmpp_2m", "res_multistep", "uni_pc", "uni_pc_bh2"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A comparison at 4 and 5 calls on one grid, with Euler's method as a solver file; the folder and its record."""
    folder = tmp_path_factory.mktemp("compare")
    card = Card("dyweight", "flow", "Digits", "digits", {4: StepCard(grid=GRID, options={"divisor": "call"})})
    solver = Solver("ours", card, {4: {"weights": torch.eye(4).double()[None], "t_scale": torch.ones(1, 4).double()}})
    solver.save(folder / "ours.safetensors")
    options = ["--demo", *QUICK, "--steps", "4", "5", "--grids", "shift 1", "--output", str(folder / "out")]
    compare.main([*options, "--solver", str(folder / "ours.safetensors")])
    return folder / "out", json.loads((folder / "out" / "compare.json").read_text())


def error_of(name: str, steps: int) -> float:
    """The error of k-diffusion's sampler on the same starts."""
    x, extra_args = demo_starts(SAMPLES, SEED)
    end = Teacher("heun", 12).reference(load_digits(), Samples(x, extra_args, SAMPLES), FlowNoise()).end
    sampler = getattr(k_diffusion_module("sampling"), f"sample_{name}")
    levels = GRID.levels(steps, FlowNoise()).float()
    return float((sampler(load_digits(), x, levels, extra_args=extra_args, disable=True) - end).square().mean().sqrt())


@pytest.mark.parametrize(
    ("method", "steps", "calls"),
    [("euler", 4, 4), ("dpmpp_2m", 4, 4), ("dpmpp_2m", 5, 5), ("heun", 2, 4), ("heun", 3, 5)],
)
def test_a_row_is_the_error_of_k_diffusions_sampler(run, method, steps, calls):
    row = next(row for row in run[1]["rows"] if (row["method"], row["calls"]) == (method, calls))
    assert row["error"] == pytest.approx(error_of(method, steps), rel=1e-4)
    assert row["used"] == (3 if (method, calls) == ("heun", 4) else calls)


def test_our_row_stands_first_and_only_where_the_solver_has_the_calls(run):
    rows = run[1]["rows"]
    assert [row["method"] for row in rows if row["ours"]] == ["ours"] and rows[0]["calls"] == 4
    assert rows[0]["error"] == pytest.approx(error_of("euler", 4), rel=1e-4)
    textbook = {"ab 2", "ab 3", "ipndm 2", "ipndm 3", "ipndm 4"}
    assert {row["method"] for row in rows if row["calls"] == 5} == PEERS | textbook


def test_the_record_says_what_was_measured(run):
    folder, record = run
    assert (record["samples"], record["seed"], record["teacher"]["calls"]) == (SAMPLES, SEED, 23)
    assert {"learned_solvers", "torch", "python"} <= set(record["versions"])
    # One grid a method, so nothing was tried beside what the rows tell; pictures come later.
    assert record["network_calls"] == SAMPLES * (23 + sum(row["used"] for row in record["rows"]))
    assert record["command"].startswith("python training/compare.py --demo --samples 4 --seed 5")
    table = (folder / "compare.md").read_text()
    error = next(row["error"] for row in record["rows"] if (row["method"], row["calls"]) == ("dpmpp_2m", 5))
    assert f"{error:.4f}" in next(line for line in table.splitlines() if line.startswith("| dpmpp_2m"))


def test_the_cost_is_told_first_and_bounds_what_is_made(run, capsys, tmp_path):
    compare.main(
        ["--demo", *QUICK, "--steps", "3", "--grids", "shift 1", "shift 2", "--output", str(tmp_path), "--no-plot"]
    )
    told = capsys.readouterr().out
    found = re.search(r"([\d,]+) network calls for the teacher .*, then at most ([\d,]+);", told)
    assert found is not None
    teacher, most = (int(number.replace(",", "")) for number in found.groups())
    made = json.loads((tmp_path / "compare.json").read_text())["network_calls"]
    assert teacher == 23 * SAMPLES and made - teacher <= most <= 1.2 * (made - teacher)
    assert re.search(r"The teacher took \d+ s: at most \d+ minutes? more", told)


def test_the_plot_has_the_best_peer_of_every_number_of_calls_and_every_solver_of_ours():
    # Best on average: a, b, c, d, e; z is best at 5 calls alone.
    ranks = {3: "abcdefz", 4: "abcdefz", 5: "zabcdef", 6: "abcdefz"}
    rows = [
        Result(n, n, name, "g", errors=(0.1 + i / 100,)) for n, names in ranks.items() for i, name in enumerate(names)
    ]
    rows += [Result(n, n, name, "its own", ours=True, errors=(0.01,)) for n in (3, 5) for name in ("one", "two")]
    assert set(select_lines(rows)) == {"a", "b", "c", "z", "one", "two"}


def test_a_solver_that_cannot_run_has_its_reason_in_place_of_an_error():
    def refuse(x, extra_args):
        raise Refusal("6 calls are too few")

    x, extra_args = demo_starts(SAMPLES, SEED)
    model = CountedDenoiser(load_digits(), torch.float32)
    entries = {2: [*table_entries(model, FlowNoise(), 2), Entry("ours", "its own", refuse, ours=True)]}
    results = compare_entries(entries, model, Samples(x, extra_args, 3), torch.zeros_like(x), pictures=2)
    assert (results[0].refusal, results[0].error, results[0].ends) == ("6 calls are too few", float("inf"), None)
    assert all(r.used == 2 and len(r.errors) == SAMPLES and r.ends.shape[0] == 2 for r in results if not r.refusal)
    assert [r.error for r in results[1:]] == sorted(r.error for r in results[1:])


def test_a_solver_is_also_found_where_a_fit_writes_it(tmp_path, capsys):
    (tmp_path / "comfy").mkdir()
    (tmp_path / "comfy" / "sd.py").touch()
    folder = tmp_path / "models" / "solver_weights"
    folder.mkdir(parents=True)
    (folder / "mine.safetensors").write_text("nothing")
    model = ["--checkpoint", "absent.ckpt", "--comfyui", str(tmp_path), "--output", str(tmp_path / "out"), "--no-plot"]
    for name, told in (
        ("mine", f"{folder / 'mine.safetensors'}: not a"),
        ("other", "other.safetensors does not exist"),
    ):
        with pytest.raises(SystemExit):
            compare.main([*model, "--solver", f"{name}.safetensors"])
        assert capsys.readouterr().err.startswith(told)


def test_the_pictures_are_drawn(run):
    folder, _ = run
    for name in ("compare.png", "pictures.png"):
        with Image.open(folder / name) as picture:
            assert 600 <= picture.width <= 1200 and len(picture.convert("L").getcolors(256) or []) > 20


def test_files_that_exist_are_not_overwritten(run, capsys):
    before = (run[0] / "compare.json").read_bytes()
    with pytest.raises(SystemExit) as stopped:
        compare.main(["--demo", *QUICK, "--steps", "4", "--output", str(run[0])])
    assert stopped.value.code == 1
    assert "exists already: choose another --output, or add --overwrite" in capsys.readouterr().err
    assert (run[0] / "compare.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name one model: --checkpoint FILE, or --diffusion-model FILE with"),
        (["--demo", "--samples", "0"], "must be a whole number from 1 to 9999999, got '0'"),
        (
            ["--demo", "--steps", "4", "--grids", "none", *QUICK],
            "no peer has 'none' at [4] calls; choose from 'shift 0.5', ",
        ),
        (["--demo", "--guidance", "7"], "--demo cannot be combined with --guidance"),
        (["--demo", "--steps", "26", *QUICK], "make more calls than what it judges, 26; it makes 23: raise"),
        (["--demo", "--seed", "9" * 20], "must be a whole number below 2^64"),
        (["--checkpoint", "absent.safetensors", "--comfyui", "/nowhere"], "no ComfyUI in /nowhere"),
    ],
)
def test_what_cannot_be_compared_is_refused(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        compare.main([*options, "--output", str(tmp_path)])
    assert message in capsys.readouterr().err
