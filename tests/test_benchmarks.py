"""The benchmarks' own measures against closed forms, their quick check, and the record that they leave."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from learned_solvers.samplers import FlowNoise, euler
from learned_solvers.training.objective import make_objective
from learned_solvers.training.problem import Problem
from learned_solvers.training.samples import CountedDenoiser, Samples
from learned_solvers.training.teacher import Reference

from benchmarks.fidelity import of_best_peer
from benchmarks.overhead import SIZES, _peak, _samplers
from benchmarks.quality import frechet, sharpness, span_error
from benchmarks.subjects import SUBJECTS

ROOT = Path(__file__).parent.parent


def test_the_frechet_distance_of_gaussians_is_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(200_000, 3, generator=generator, dtype=torch.float64)
    scale, shift = torch.tensor([2.0, 0.5, 1.0]), torch.tensor([1.0, 0.0, -2.0])
    b = a * scale + shift  # both covariances are diagonal: |shift|^2 + sum (scale - 1)^2
    expected = float(shift.square().sum() + (scale - 1).square().sum())
    assert frechet(a, b) == pytest.approx(expected, rel=0.02)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_the_sharpness_of_a_ramp_is_its_slope():
    down, right = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    assert sharpness((3 * down + 4 * right)[None, None]) == pytest.approx(5)


def span_problem(truth):
    """One start in 4 dimensions and a denoiser that returns a constant: the span is x_0 and that constant."""
    x, picture = torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([[0, 1.0, 0, 0]])
    model = CountedDenoiser(lambda x, sigma: picture.expand_as(x), torch.float32)
    reference = Reference(torch.zeros(1), truth[None])
    return Problem(model, None, Samples(x, {}, 1), reference, make_objective("l2"), 1)


def test_the_span_bound_is_the_distance_to_the_span():
    table = euler(torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
    inside = span_problem(torch.tensor([[0.3, 0.7, 0.0, 0.0]]))
    outside = span_problem(torch.tensor([[0.3, 0.7, 3.0, 4.0]]))
    assert span_error(inside, table) == pytest.approx(0, abs=1e-6)
    assert span_error(outside, table) == pytest.approx((25 / 4) ** 0.5)


def test_a_step_holds_no_more_states_than_the_window_and_two():
    x = torch.randn(1, 4, 16, 16)
    samplers = _samplers()
    # Three entries of the history, the state, the new state: all that a step with a window of 3 needs.
    assert _peak(lambda: samplers["dyweight, history 3"](x)) / x.nbytes == pytest.approx(5, abs=0.05)


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_network_denoises_its_own_pictures_and_follows_its_guidance(name):
    subject = SUBJECTS[name]
    pictures, classes = subject.pictures()
    rows = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))[:64]
    x0, condition = pictures[rows], classes[rows].view(64, *subject.conditioning(1, torch.Generator()).shape[1:])
    model, level = subject.model(), 0.3
    kept = 1 - level if isinstance(subject.noise, FlowNoise) else 1.0
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    sigma, own = torch.full((64,), level), {subject.argument: condition}
    denoised = model(kept * x0 + level * noise, sigma, guidance=1.0, **own)
    assert (denoised - x0).square().mean() < 0.5 * (level / kept) ** 2
    one, per_row = (model(x0, sigma, guidance=g, **own) for g in (5.0, torch.full((64,), 5.0)))
    assert torch.equal(one, per_row)


@pytest.mark.slow
def test_the_quick_check_holds():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick"], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all ratios hold" in done.stdout


def test_the_record_says_how_it_was_made():
    others = {"fuzz.json", "kill_fit.json"}  # of benchmarks that are no part of the command
    for path in (path for path in (ROOT / "benchmarks/results").glob("*.json") if path.name not in others):
        about = json.loads(path.read_text())["about"]
        assert about["command"].startswith("python") and about["date"] and about["version"] and about["torch"]


@pytest.mark.parametrize("steps", [3, 5, 7])
def test_the_record_shows_gauss_newton_at_the_best_gradient_recipe_for_a_twentieth_of_its_calls(steps):
    """The record of benchmarks/recipe.py, which is read and not run here."""
    record = json.loads((ROOT / "benchmarks/results/recipe.json").read_text())
    newton = next(run for run in record["gauss_newton"] if run["steps"] == steps)
    recipe = min((run for run in record["recipe"] if run["steps"] == steps), key=lambda run: run["error"])
    assert newton["error"] <= 1.02 * recipe["error"]
    assert newton["network_calls"] <= recipe["network_calls"] / 20
    assert newton["seconds"] < recipe["seconds"]


def test_the_documents_say_what_the_record_of_fidelity_does():
    networks = json.loads((ROOT / "benchmarks/results/fidelity.json").read_text())["records"]
    points = [record for network in networks for record in network["records"]]
    assert len(networks) == 9 and len(points) == 54
    ours = [record["ours"]["dyweight"] for record in points]
    error = [of_best_peer(r, "error") / o["error"] for r, o in zip(points, ours, strict=True)]
    frechet = [of_best_peer(r, "frechet") / o["frechet"] for r, o in zip(points, ours, strict=True)]
    median = [of_best_peer(r, "median") / o["median"] for r, o in zip(points, ours, strict=True)]
    span = [own["error"] / own["span"] for record in points for own in record["ours"].values()]
    assert min(span) >= 0.999  # a bound is one, but for rounding
    later = [i for i, record in enumerate(points) if record["steps"] >= 4]
    readme, told = (" ".join((ROOT / name).read_text().split()) for name in ("README.md", "benchmarks/README.md"))
    assert (
        f"at {sum(r > 1 for r in error)} of these 54 points, twice as close at {sum(r >= 2 for r in error)}" in readme
    )
    assert (
        f"that at {sum(error[i] >= 2 for i in later)} of 45, a lower error at {sum(error[i] > 1 for i in later)}"
        in told
    )
    assert f"Frechet distance: at {sum(frechet[i] >= 3 for i in later)} of 45" in told
    near = sum(ours[i]["error"] <= 1.15 * ours[i]["span"] for i in later)
    assert f"1.15 times the span bound: {near} of 45" in told
    reach = sum(of_best_peer(points[i], "error") >= 2 * ours[i]["span"] for i in later)
    assert f"at {reach} of 45 the bound itself is half the best peer's error or less" in told
    assert f"at least twice ours at {sum(median[i] >= 2 for i in later)} of 45" in told


@pytest.mark.slow
def test_the_command_shares_its_jobs_out_and_writes_a_record(tmp_path):
    own = tmp_path / "checkout"
    shutil.copytree(ROOT, own, ignore=shutil.ignore_patterns(".git", ".*_cache", "__pycache__", "tests", "docs"))
    (own / "benchmarks/results/overhead.json").unlink(missing_ok=True)
    environment = {key: value for key, value in os.environ.items() if key != "COMFYUI_PATH"}
    command = [sys.executable, "-m", "benchmarks", "overhead"]
    done = subprocess.run(command, cwd=own, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads((own / "benchmarks/results/overhead.json").read_text())
    assert found["about"]["command"] == "python -m benchmarks overhead"
    (sizes,) = found["records"]
    assert list(sizes) == list(SIZES)
    assert all(samplers["dyweight, history 3"]["seconds"] > 0 for samplers in sizes.values())
