"""The comparison on the bundled model: its numbers are those of k-diffusion's own samplers."""

from __future__ import annotations

import json

import pytest
import torch
from learned_solvers.samplers import FlowNoise, Grid, Solver
from learned_solvers.samplers.card import Card, StepCard
from learned_solvers.training import compare
from learned_solvers.training.demo import demo_starts
from learned_solvers.training.models.digits import load_digits
from learned_solvers.training.samples import Samples
from learned_solvers.training.teacher import Teacher
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
    card = Card("dyweight", "flow", "Digits", "digits", {4: StepCard(grid=GRID, divisor="call")})
    solver = Solver("ours", card, {4: {"weights": torch.eye(4).double(), "t_scale": torch.ones(4).double()}})
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
        (["--demo", "--samples", "0"], "must be a whole number of at least 1, got '0'"),
        (["--demo", "--steps", "4", "--grids", "none", *QUICK], "no solver and no peer has"),
        (["--checkpoint", "absent.safetensors", "--comfyui", "/nowhere"], "no ComfyUI in /nowhere"),
    ],
)
def test_what_cannot_be_compared_is_refused(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        compare.main([*options, "--output", str(tmp_path)])
    assert message in capsys.readouterr().err
