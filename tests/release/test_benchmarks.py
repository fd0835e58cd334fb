"""The benchmarks' measures against closed forms, their command, and the records that it writes."""

from __future__ import annotations

import json
import re
import shutil
from itertools import pairwise
from unittest.mock import Mock

import pytest
import torch
from learned_solvers.samplers import euler, load_solver
from learned_solvers.training.data.samples import CountedDenoiser, Samples
from learned_solvers.training.data.teacher import Reference
from learned_solvers.training.data.trial import Trial
from oracles import IPNDM
from repository import ROOT

from benchmarks import cost, guidance, jobs, measures, overhead, peers, quick, record
from benchmarks.__main__ import main
from benchmarks.peers import recorded_peers
from benchmarks.quality import frechet, sharpness, span_error
from benchmarks.setting import Setting, fit_as_users_do
from benchmarks.suite import BENCHMARKS


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


@pytest.mark.parametrize(("truth", "distance"), [([0.3, 0.7, 0, 0], 0), ([0.3, 0.7, 3, 4], (25 / 4) ** 0.5)])
def test_the_span_bound_is_the_distance_to_the_span(truth, distance):
    x, picture = torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([[0, 1.0, 0, 0]])  # they span the run's states
    model = CountedDenoiser(lambda x, sigma: picture.expand_as(x), torch.float32)
    trial = Trial(model, Samples(x, {}, 1), Reference(torch.zeros(1), torch.tensor([[truth]])), 1)
    table = euler(torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
    assert span_error(trial, table) == pytest.approx(distance, abs=1e-6)


@pytest.mark.parametrize("history", [3, 6])
def test_a_step_holds_its_history_and_two_states(history):
    x = torch.randn(1, 4, 16, 16)
    states = overhead.peak_bytes(overhead.samplers()[f"dyweight, history {history}"], x) / x.nbytes
    assert states == pytest.approx(history + 2, abs=0.05)


@pytest.mark.parametrize(("name", "remaining"), [("digits", 0.22), ("patches", 0.17), ("shapes", 0.04)])
def test_a_network_denoises_its_own_pictures_and_follows_its_guidance(name, remaining):
    benchmark = BENCHMARKS[name]
    pictures, classes = benchmark.pictures()
    rows = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))[:64]
    x0, condition = pictures[rows], classes[rows].view(64, *benchmark.conditioning(1, torch.Generator()).shape[1:])
    model, level = benchmark.model(), 0.3
    signal = 1 - level if benchmark.noise.kind == "flow" else 1.0
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    sigma, extra_args = torch.full((64,), level), {benchmark.argument: condition}
    denoised = model(signal * x0 + level * noise, sigma, guidance=1.0, **extra_args)
    assert (denoised - x0).square().mean() < remaining * (level / signal) ** 2
    guidances = (1.0, 3.0, 5.0, torch.full((64,), 5.0))
    one, three, five, rows = (model(x0, sigma, guidance=guidance, **extra_args) for guidance in guidances)
    assert torch.equal(five, rows)
    torch.testing.assert_close(five - one, 2 * (three - one), rtol=0, atol=1e-5)  # linear, from the conditional model


@pytest.fixture
def one_seed(monkeypatch):
    for module in (cost, guidance):
        monkeypatch.setattr(module, "SEEDS", (0,))


def test_the_calls_of_the_knots_are_those_of_the_fit(one_seed, monkeypatch):
    fits = []

    def keep(*arguments: object, **more: object) -> object:
        fits.append(fit_as_users_do(*arguments, **more))
        return fits[-1]

    monkeypatch.setattr(guidance, "fit_as_users_do", keep)
    monkeypatch.setattr(guidance, "KNOTS", (1.0, 3.0))
    monkeypatch.setattr(guidance, "USED", (1.0, 3.0))
    made = guidance.knots("digits", Setting(unseen=24, ranked=2, steps=(3,)))
    assert list(made["calls"]) == ["3", "1"]  # the middle one first
    assert sum(calls for (calls,) in made["calls"].values()) == fits[0].solver.card.steps[3].network_calls + (
        fits[0].teacher_calls
    )
    at_1, at_3 = made["points"]
    assert at_3["knots"] == at_3["dedicated"] == at_3["alone"] and at_1["dedicated"] != at_1["alone"]
    assert guidance.leads({"peer": 6.0, "knots": [2.0, 8.0], "dedicated": [3.0], "alone": [6.0]}) == pytest.approx(
        {"knots": 1.5, "dedicated": 2.0, "alone": 1.0}
    )


def test_the_cost_of_a_fit_includes_its_teacher(one_seed, monkeypatch):
    monkeypatch.setattr(cost, "FITS", (("quick", None), ("default", 12)))
    made = cost.error_by_calls("digits", 5, Setting(unseen=24))
    assert [(run["effort"], run["samples"], run["teacher_calls"]) for run in made["fits"]] == [
        ("quick", None, 40 + 30 * (10 + 4)),  # the pilot, then six times five steps
        ("default", 12, 40 + 30 * (12 + 4)),
    ]
    peer = min(measures["error"] for measures in recorded_peers("digits", 3.0)[5].values())
    quick, default = ({**run, "network_calls": 1540, "error": peer} for run in made["fits"])
    seeds = [quick, {**quick, "network_calls": 4 * 2000 - 460, "error": 4 * peer}, default]
    curve = cost.error_curve({**made, "fits": seeds})
    assert list(curve) == [("default", 12), ("quick", None)]  # by calls
    assert curve["quick", None] == pytest.approx((2 * 2000, 2))  # geometric means


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "SOLVERS", tmp_path / "solvers")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the command sets it
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    return tmp_path


@pytest.mark.slow
def test_the_command_evaluates_recorded_solvers_on_starts_of_each_seed(results, monkeypatch, capsys):
    for part in ("fidelity", "peers"):
        shutil.copy(ROOT / "benchmarks" / "results" / f"{part}.json", results)
    monkeypatch.setattr(
        jobs, "Setting", lambda *sizes, **more: Setting(*sizes, **more | {"unseen": 24, "steps": (3, 5)})
    )
    main(["again", "--only", "digits-3.0", "--workers", "1"])
    assert re.findall(r"^Starts of seed (\d)", capsys.readouterr().out, re.MULTILINE) == ["1", "2"]
    stored = json.loads((results / "again.json").read_text())
    assert list(stored) == ["again-digits-3.0-1", "again-digits-3.0-2"]
    about = stored["again-digits-3.0-1"]["about"]
    assert about["command"] == "python -m benchmarks again --only digits-3.0" and about["samples"]["unseen"] == 24
    first, second = (measurement["record"]["records"] for measurement in stored.values())
    assert first[0]["ours"] != second[0]["ours"]

    benchmark = BENCHMARKS["digits"]
    model, samples = benchmark.model(), benchmark.starts(24, 10_001, 3.0)

    def gradient(x, sigma):
        return (x - model(x, torch.full((24,), sigma), **samples.extra_args)) / sigma

    x, history, levels = samples.x, [], benchmark.noise.teacher_grid(60).tolist()
    for level, following in pairwise(levels):
        history = [*history[-3:], gradient(x, level)]
        x = x + (following - level) * sum(w * d for w, d in zip(IPNDM[len(history) - 1], history, strict=True))
    teacher = x
    solver = load_solver(ROOT / "benchmarks/results/solvers/dyweight_digits_guidance-3.safetensors")
    for point in first:
        table, x, entries = solver.table(point["steps"], benchmark.noise), samples.x, []
        for scale, row, sigma in zip(table.scale, table.coeffs, table.sigmas, strict=False):
            entries.append(gradient(x, float(sigma)))
            x = float(scale) * x + sum(float(c) * h for c, h in zip(row, entries, strict=False))
        error = float((x - teacher).square().mean().sqrt())
        assert point["ours"]["dyweight"]["error"] == pytest.approx(error, rel=1e-5)
        assert point["ours"]["dyweight"]["span"] < error
        assert len(point["peers"]) >= 5 and all(peer["error"] > 0 for peer in point["peers"].values())


@pytest.mark.slow
def test_the_quick_check_reports_the_ratios_that_fail(results, monkeypatch, capsys):
    small = Setting(24, 8, unseen=64, ranked=16, steps=(3,), solvers=results)
    for measure in (measures.fidelity, peers.peers):
        monkeypatch.setattr(quick, measure.__name__, Mock(return_value=measure("digits", 3.0, small)))
    assert {file.name.partition("_")[0] for file in results.iterdir()} == {"dyweight", "ds"}
    size = "1x16x128x128"  # takes a second, so that other processes do not disturb its medians
    monkeypatch.setattr(overhead, "SIZES", {size: overhead.SIZES[size]})

    def check() -> tuple[object, list[str]]:
        with pytest.raises(SystemExit) as ending:
            main(["--quick"])
        lines = re.findall(r"^(?:all|FAILED).*", capsys.readouterr().out, re.MULTILINE)
        return ending.value.code, [re.sub(r"\d\.\d+", "#", line) for line in lines]

    assert check() == (0, ["all ratios hold"])
    monkeypatch.setattr(quick, "LEAST_RATIO", 2.0)
    monkeypatch.setattr(quick, "MOST_SPAN", 1.05)
    assert check() == (1, [f"FAILED 3 calls: error #, {bound} #" for bound in ("best peer's", "span bound")])
    for name in ("fidelity", "peers"):
        network, guidance, setting = getattr(quick, name).call_args.args
        assert (network, guidance, setting.steps) == ("digits", 3.0, (4, 5)) and setting.solvers != record.SOLVERS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("fidelty", "unknown part fidelty: choose from fidelity, peers"),
        ("--workers 0", "--workers must be at least 1, got 0"),
        ("savings --quick", "--quick cannot be combined with parts"),
        ("savings --only birds", "--only birds matches no job: choose a name or part of one from savings-patches"),
        ("savings --only digits brids", "--only brids matches no job"),
        ("savings --seed 7", "with `again` only"),
        ("again --seed -1", "--seed must be between 0 and 2^32 - 1"),
        ("figures --only digits", "--only selects measurements"),
        (f"savings --cache {__file__}/x", f"{__file__}/x"),
    ],
)
def test_a_wrong_command_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments.split())
    assert message in capsys.readouterr().err


def test_a_measurement_replaces_only_its_own_record_and_solvers(results, tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    for name, value, command in (("c", 3, "first"), ("a", 1, "first"), ("older", 4, "first"), ("a", {"x": 5}, "again")):
        (made / "one.safetensors").write_text(command)
        record.save("part", name, {"about": {"command": command}, "record": value}, ["a", "b", "c"], made)
        (results / "solvers" / "two.safetensors").write_text("other")
    stored = json.loads((results / "part.json").read_text())
    commands = [(name, entry["about"]["command"]) for name, entry in stored.items()]
    assert commands == [("a", "again"), ("c", "first"), ("older", "first")]
    assert record.read_records("part") == {"a": {"x": 5}, "c": 3, "older": 4}
    solvers = {file.stem: file.read_text() for file in (results / "solvers").iterdir()}
    assert solvers == {"one": "again", "two": "other"}


def test_a_broken_results_file_is_refused_before_anything_is_measured(results):
    for content, message in (('{"savings-digits-3.0": ', "is broken"), ("[]", "no measurements")):
        (results / "savings.json").write_text(content)
        with pytest.raises(ValueError, match=rf"savings\.json .*{message}"):
            record.check_part("savings")
    record.check_part("fidelity")  # has no file


def test_a_job_is_not_repeated_at_the_same_sizes(tmp_path):
    work = Mock(side_effect=[1, 2, 3], __name__="work")

    def run(command: str, fitted: int) -> tuple[int, str]:
        job = jobs.Job(work, ("digits",), Setting(fitted, 2))
        measurement = jobs.run_job(job, tmp_path, record.provenance(command))
        return measurement["record"], measurement["about"]["command"]

    assert [run("first", 8), run("second", 8)] == 2 * [(1, "first")]  # with the provenance of the measurement
    assert run("third", 16) == (2, "third")
    (tmp_path / "work-digits.json").write_text('{"network": "digits"}')  # another file of this name
    assert run("fourth", 16) == (3, "fourth")


def test_jobs_save_where_their_names_say(tmp_path, monkeypatch):
    by_part = jobs.jobs_by_part(tmp_path)
    assert all(job.setting.solvers == tmp_path / job.name for job in by_part["fidelity"])  # run_part takes them there
    for path, name in (("", "overhead_without_comfyui"), ("/comfy", "overhead")):  # the latter is not replaced
        monkeypatch.setenv("COMFYUI_PATH", path)
        assert [job.name for job in jobs.jobs_by_part(tmp_path)["overhead"]] == [name]
