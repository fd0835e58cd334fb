"""The benchmarks' own measures against closed forms, their quick check, and the record that they leave."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from learned_solvers.samplers import euler, load_solver
from learned_solvers.training.data.samples import CountedDenoiser, Samples
from learned_solvers.training.data.teacher import Reference
from learned_solvers.training.data.trial import Trial
from oracles import IPNDM

from benchmarks import jobs, record
from benchmarks.__main__ import main
from benchmarks.measures import again
from benchmarks.overhead import SIZES, peak_bytes, samplers
from benchmarks.quality import frechet, sharpness, span_error
from benchmarks.setting import Setting
from benchmarks.suite import BENCHMARKS

ROOT = Path(__file__).resolve().parents[2]


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
    return Trial(model, Samples(x, {}, 1), reference, 1)


def test_the_span_bound_is_the_distance_to_the_span():
    table = euler(torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
    inside = span_problem(torch.tensor([[0.3, 0.7, 0.0, 0.0]]))
    outside = span_problem(torch.tensor([[0.3, 0.7, 3.0, 4.0]]))
    assert span_error(inside, table) == pytest.approx(0, abs=1e-6)
    assert span_error(outside, table) == pytest.approx((25 / 4) ** 0.5)


def test_a_step_holds_no_more_states_than_the_window_and_two():
    x = torch.randn(1, 4, 16, 16)
    # The entries of the history, the state, the new state: all that a step needs.
    for history in (3, 6):
        states = peak_bytes(samplers()[f"dyweight, history {history}"], x) / x.nbytes
        assert states == pytest.approx(history + 2, abs=0.05)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_network_denoises_its_own_pictures_and_follows_its_guidance(name):
    benchmark = BENCHMARKS[name]
    pictures, classes = benchmark.pictures()
    rows = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))[:64]
    x0, condition = pictures[rows], classes[rows].view(64, *benchmark.conditioning(1, torch.Generator()).shape[1:])
    model, level = benchmark.model(), 0.3
    kept = 1 - level if benchmark.noise.kind == "flow" else 1.0
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    sigma, own = torch.full((64,), level), {benchmark.argument: condition}
    denoised = model(kept * x0 + level * noise, sigma, guidance=1.0, **own)
    assert (denoised - x0).square().mean() < 0.5 * (level / kept) ** 2
    one, per_row = (model(x0, sigma, guidance=g, **own) for g in (5.0, torch.full((64,), 5.0)))
    assert torch.equal(one, per_row)


def test_the_recorded_solvers_are_judged_again_on_starts_of_their_own_seed():
    found = again("digits", 3.0, 5, Setting(unseen=24, steps=(3, 5)))
    benchmark = BENCHMARKS["digits"]
    model, samples = benchmark.model(), benchmark.starts(24, 10_005, 3.0)

    def gradient(x, sigma):
        return (x - model(x, torch.full((24,), sigma), **samples.extra_args)) / sigma

    def error(ends):
        return float((ends - teacher).square().mean().sqrt())

    x, history, levels = samples.x, [], benchmark.noise.teacher_grid(60).tolist()
    for level, following in pairwise(levels):
        history = [*history[-3:], gradient(x, level)]
        x = x + (following - level) * sum(w * d for w, d in zip(IPNDM[len(history) - 1], history, strict=True))
    teacher = x
    solver = load_solver(record.SOLVERS / "dyweight_digits_guidance-3.safetensors")
    for point in found["records"]:
        table, x, entries = solver.table(point["steps"], benchmark.noise), samples.x, []
        for scale, row, sigma in zip(table.scale, table.coeffs, table.sigmas, strict=False):
            entries.append(gradient(x, float(sigma)))
            x = float(scale) * x + sum(float(c) * h for c, h in zip(row, entries, strict=False))
        assert point["ours"]["dyweight"]["error"] == pytest.approx(error(x), rel=1e-4)
        assert point["ours"]["dyweight"]["span"] < error(x)
        assert len(point["peers"]) >= 5 and all(peer["error"] > 0 for peer in point["peers"].values())
    other = again("digits", 3.0, 6, Setting(unseen=24, steps=(3,)))
    assert other["records"][0]["ours"] != found["records"][0]["ours"]


@pytest.mark.slow
def test_the_quick_check_holds():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick"], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all ratios hold" in done.stdout


def test_the_records_say_how_they_were_made():
    paths = [*(ROOT / "benchmarks/results").glob("*.json")]
    assert {path.stem for path in paths} >= {*jobs.PARTS, "recipe", "kill_fit"}
    for path in paths:
        for name, kept in json.loads(path.read_text()).items():
            about = kept["about"]
            assert about["command"].startswith("python") and about["date"] and about["version"] and about["torch"], name


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "SOLVERS", tmp_path / "solvers")
    return tmp_path


def test_a_measurement_replaces_its_own_record_and_solvers_alone(results, tmp_path):
    made = tmp_path / "made"
    made.mkdir()

    def save(name: str, value: object, command: str) -> None:
        measurement = {"about": {"command": command}, "record": value}
        record.save("part", name, measurement, ["a", "b", "c"], made)

    for name, value in (("c", 3), ("a", 1), ("of another time", 4)):
        (made / "one.safetensors").write_text(name)
        save(name, value, name)
    (results / "solvers" / "two.safetensors").write_text("kept")
    (made / "one.safetensors").write_text("new")
    save("a", {"x": 5}, "again")
    stored = json.loads((results / "part.json").read_text())
    assert [(name, one["record"], one["about"]["command"]) for name, one in stored.items()] == [
        ("a", {"x": 5}, "again"), ("c", 3, "c"), ("of another time", 4, "of another time"),
    ]  # fmt: skip
    assert record.read_records("part") == {"a": {"x": 5}, "c": 3, "of another time": 4}
    assert {file.name: file.read_text() for file in (results / "solvers").iterdir()} == {
        "one.safetensors": "new", "two.safetensors": "kept",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"), [('{"savings-digits-3.0": ', "is broken"), ("[]", "must contain measurements by name")]
)
def test_a_results_file_that_is_broken_is_refused_before_anything_is_measured(results, content, message):
    (results / "savings.json").write_text(content)
    with pytest.raises(ValueError, match=rf"savings\.json {message}.*: restore it from git, or delete it"):
        record.check_part("savings")
    record.check_part("fidelity")  # which is not there


def test_a_job_that_was_done_at_the_same_sizes_is_not_done_again(tmp_path):
    done = []

    def work(name: str, setting: Setting) -> int:
        done.append(setting.fitted)
        return len(done)

    def run(command: str, setting: Setting) -> tuple[int, str]:
        measurement = jobs.run_job(jobs.Job(work, ("digits",), setting), tmp_path, record.provenance(command))
        return measurement["record"], measurement["about"]["command"]

    assert run("first", Setting(8, 2)) == (1, "first")
    assert run("second", Setting(8, 2)) == (1, "first")  # what is recorded is how it was made
    assert run("third", Setting(16, 2)) == (2, "third")
    (tmp_path / "work-digits.json").write_text('{"network": "digits"}')  # another file of this name
    assert run("fourth", Setting(16, 2)) == (3, "fourth")
    assert done == [8, 16, 16]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("fidelty", "unknown part fidelty: choose from fidelity, peers"),
        ("--workers 0", "--workers must be at least 1, got 0"),
        ("savings --quick", "--quick has a small selection"),
        ("savings --only birds", "--only birds matches no job: choose a part of a name from savings-patches"),
        ("savings --only digits brids", "--only brids matches no job"),
        ("savings --seed 7", "--seed is from 0 to 2^32 - 1 and for `again` alone"),
        ("again --seed -1", "--seed is from 0 to 2^32 - 1"),
        ("figures --only digits", "--only selects measurements"),
        (f"savings --cache {Path(__file__) / 'x'}", str(Path(__file__) / "x")),
    ],
)
def test_a_wrong_command_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments.split())
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_shares_its_jobs_out_and_writes_a_record(tmp_path):
    own = tmp_path / "checkout"
    shutil.copytree(ROOT, own, ignore=shutil.ignore_patterns(".git", ".*_cache", "__pycache__", "tests", "docs"))
    environment = {key: value for key, value in os.environ.items() if key != "COMFYUI_PATH"}
    command = [sys.executable, "-m", "benchmarks", "overhead"]
    done = subprocess.run(command, cwd=own, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    kept = json.loads((own / "benchmarks/results/overhead.json").read_text())
    before = json.loads((ROOT / "benchmarks/results/overhead.json").read_text())
    assert kept["overhead"] == before["overhead"]  # it has ComfyUI's sampler beside, which is not here
    found = kept["overhead_without_comfyui"]
    assert found["about"]["command"] == "python -m benchmarks overhead"
    sizes = found["record"]
    assert list(sizes) == list(SIZES)
    assert all(samplers["dyweight, history 3"]["seconds"] > 0 for samplers in sizes.values())
