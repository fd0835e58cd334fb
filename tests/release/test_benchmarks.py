"""The benchmarks' measures against closed forms, their command, and the records that it writes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from learned_solvers.samplers import dpmpp_2m, euler, heun
from learned_solvers.training.data.samples import CountedDenoiser, Samples
from learned_solvers.training.data.teacher import Reference
from learned_solvers.training.data.trial import Trial
from oracles import f64

from benchmarks import cost, fidelity, guidance, jobs, overhead, quick, record, setting
from benchmarks.__main__ import main
from benchmarks.goals import goals
from benchmarks.host_samplers import table_of
from benchmarks.peers import all_peers, measure_peers
from benchmarks.quality import frechet, quality, sharpness
from benchmarks.setting import unseen_trial
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
    x, picture = (f64(*values).view(1, 1, 2, 2).float() for values in ((1, 0, 0, 0), (0, 1, 0, 0)))  # span the states
    model = CountedDenoiser(lambda x, sigma: picture.expand_as(x), torch.float32)
    end = f64(*truth).view(1, 1, 1, 2, 2).float()
    trial = Trial(model, Samples(x.repeat(2, 1, 1, 1), {}, 1), Reference(torch.zeros(1), end.repeat(1, 2, 1, 1, 1)), 2)
    small = replace(BENCHMARKS["digits"], pictures=lambda: (torch.rand(64, 1, 4, 4), torch.arange(64) % 2), name="tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BENCHMARKS, "tiny", replace(small, shape=(1, 2, 2)))
        patch.setattr("benchmarks.quality.features", lambda benchmark, images: images.flatten(1))
        measured = quality(small, trial, euler(f64(1.0, 0.5, 0.0)))
    assert measured["span"] == pytest.approx(distance, abs=1e-6)
    assert measured["error"] == pytest.approx(float((picture - end).square().mean().sqrt()), abs=1e-6)


def test_a_sampler_of_linear_steps_becomes_its_table():
    sigmas = f64(14.0, 6.0, 2.0, 0.5, 0.0)

    def sample(model, x, sigmas):
        """DPM-Solver++(2M) by k-diffusion's formula."""
        before = None
        for i in range(len(sigmas) - 1):
            denoised, t, t_next = model(x, sigmas[i] * x.new_ones([1])), -sigmas[i].log(), -sigmas[i + 1].log()
            h = t_next - t
            mixed = denoised
            if before is not None and sigmas[i + 1] > 0:
                r = (t + sigmas[i - 1].log()) / h
                mixed = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * before
            x, before = sigmas[i + 1] / sigmas[i] * x - (-h).expm1() * mixed, denoised
        return x

    made, expected = table_of(sample, sigmas), dpmpp_2m(sigmas)
    for name in ("levels", "sigmas", "scale", "coeffs"):
        torch.testing.assert_close(getattr(made, name), getattr(expected, name), rtol=1e-9, atol=1e-12)
    assert made.entry == expected.entry


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


def test_the_calls_of_the_knots_are_those_of_the_fit(monkeypatch):
    fits = []

    def keep(*arguments: object, **more: object) -> object:
        fits.append(setting.fit(*arguments, **more))
        return fits[-1]

    monkeypatch.setattr(guidance, "fit", keep)
    made = guidance.knots("digits", 3, guidance.Values((1.0, 3.0), (1.0, 3.0), 3.0, (0,), 24))
    assert list(made["calls"]) == ["3", "1"]  # the middle one first
    assert sum(calls for (calls,) in made["calls"].values()) == fits[0].solver.card.steps[3].network_calls + (
        fits[0].teacher_calls
    )
    at_1, at_3 = made["points"]
    assert at_3["knots"] == at_3["dedicated"] == at_3["alone"] and at_1["dedicated"] != at_1["alone"]
    assert guidance.leads({"peer": 6.0, "knots": [2.0, 8.0], "dedicated": [3.0], "alone": [6.0]}) == pytest.approx(
        {"knots": 1.5, "dedicated": 2.0, "alone": 1.0}
    )


def test_the_cost_of_a_fit_includes_its_teacher(results):
    made = cost.error_by_calls("digits", 5, [("quick", None), ("default", 12)], (0,), 24)
    assert [(run["effort"], run["samples"], run["teacher_calls"]) for run in made["fits"]] == [
        ("quick", None, 40 + 30 * (10 + 4)),  # the pilot, then six times five steps
        ("default", 12, 40 + 30 * (12 + 4)),
    ]
    made["fits"] += [{**made["fits"][0], "network_calls": 4 * 1540 + 3 * 460, "error": 4 * made["fits"][0]["error"]}]
    made["fits"][0]["network_calls"] = 1540
    run = {"family": "dyweight", "effort": "default", "samples": 30, "network_calls": 2000, "error": 0.02}
    point = {"steps": 5, "fits": [run, {**run, "family": "ds", "error": 1}], "peers": {"euler": {"error": 0.04}}}
    record.save("cost", "error_by_calls-digits-5", {"about": {"code": ""}, "record": made}, ["error_by_calls-digits-5"])
    at_3 = {"network": "digits", "guidance": 3.0, "points": [point]}
    record.save("fidelity", "a", {"about": {"code": ""}, "record": at_3}, ["a"])
    curve = cost.error_curve("digits", 5)
    assert [*curve] == [("default", 12), ("default", None), ("quick", None)]  # by calls
    assert curve["quick", None] == pytest.approx((4000, 2 * made["fits"][0]["error"] / 0.04))  # geometric means
    assert curve["default", None] == pytest.approx((2000 + 40 + 30 * (30 + 4), 0.5))


def test_the_goals_count_the_points_that_meet_them(results):
    def point(name: str, steps: int) -> dict[str, object]:
        fit = {"family": "dyweight", "effort": "default", "error": 1.0, "frechet": 1.0}
        fit["span"] = 0.9 if name == "digits" else 0.5
        peer = {"error": {3: 1.1, 4: 2.0, 5: 2.0}.get(steps, 1.9), "frechet": 3.0 if steps == 10 else 2.9}
        return {"steps": steps, "fits": [fit], "peers": {"best": peer, "euler": {"error": 4.0, "frechet": 9.0}}}

    for name, benchmark in BENCHMARKS.items():
        for value in benchmark.guidances:
            points = [point(name, steps) for steps in setting.STEPS]
            place = {"network": name, "guidance": value, "points": points}
            order = [*record.read_records("fidelity"), f"{name} {value}"]
            record.save("fidelity", order[-1], {"about": {"code": ""}, "record": place}, order)
    made = [(goal.count, goal.points, goal.threshold) for goal in goals()]
    assert made == [(72, 72, 72), (72, 72, 0), (24, 60, 30), (15, 45, 30), (12, 60, 40), (0, 60, 0)]


def test_calls_are_interpolated_in_the_logarithm_of_the_error():
    curve = {4: 0.4, 6: 0.1, 8: 0.05}
    assert fidelity.calls_needed(curve, 0.2) == pytest.approx(5)
    assert fidelity.calls_needed(curve, 0.01) is None


def test_the_peers_include_what_is_better_on_all_starts():
    benchmark = BENCHMARKS["digits"]
    unseen = unseen_trial(benchmark, 3.0, 24)
    measured, options = measure_peers(benchmark, unseen, 3), all_peers(3, benchmark.noise)
    errors = {c.name: float(unseen.errors(c.table).mean()) ** 0.5 for c in options}
    assert min(values["error"] for values in measured.values()) <= 1.02 * min(errors.values())
    assert measured["euler, shift 1"]["error"] == pytest.approx(errors["euler, shift 1"], rel=1e-5)
    assert len({c.method for c in options}) > 15 and all(c.table.nfe <= 3 for c in options)


@pytest.fixture
def results(tmp_path, monkeypatch):
    for module in (record, jobs):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the command sets it
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    return tmp_path


def test_a_recorded_error_is_that_of_the_fitted_solver_on_unseen_starts(monkeypatch):
    fits = []

    def keep(*arguments: object, **more: object) -> object:
        fits.append(setting.fit(*arguments, **more))
        return fits[-1]

    monkeypatch.setattr(fidelity, "fit", keep)
    (point,) = fidelity.fidelity("digits", 3.0, (3,), [("dyweight", "quick", 5)], 24)["points"]
    benchmark = BENCHMARKS["digits"]
    model, samples = benchmark.model(), benchmark.starts(24, 99, 3.0)

    def run(table) -> torch.Tensor:
        x, entries = samples.x, []
        for scale, row, sigma in zip(table.scale, table.coeffs, table.sigmas, strict=True):
            denoised = model(x, torch.full((24,), float(sigma)), **samples.extra_args)
            entries.append(denoised if table.entry == "denoised" else (x - denoised) / float(sigma))
            x = float(scale) * x + sum(float(c) * h for c, h in zip(row, entries, strict=False))
        return x

    teacher = run(heun(torch.linspace(1, 0, 101, dtype=torch.float64)))  # another method, on an even grid
    (made,) = point["fits"]
    error = float((run(fits[0].solver.table(3, benchmark.noise)) - teacher).square().mean().sqrt())
    assert made["error"] == pytest.approx(error, rel=0.02) and made["span"] < made["error"]
    assert made["effort"] == "quick" and made["network_calls"] == fits[0].report[3].network_calls


@pytest.mark.slow
def test_the_quick_check_reports_the_ratios_that_fail(results, monkeypatch, capsys):
    small = fidelity.fidelity("digits", 3.0, (5,), [("dyweight", "default", 0)], 64)
    monkeypatch.setattr(quick, "fidelity", Mock(return_value=small))
    size = "1x16x128x128"  # takes a second, so that other processes do not disturb its medians
    monkeypatch.setattr(overhead, "SIZES", {size: overhead.SIZES[size]})

    def check() -> tuple[object, list[str]]:
        with pytest.raises(SystemExit) as ending:
            main(["--quick"])
        lines = re.findall(r"^(?:all|FAILED).*", capsys.readouterr().out, re.MULTILINE)
        return ending.value.code, [re.sub(r"\d\.\d+", "#", line) for line in lines]

    assert check() == (0, ["all ratios hold"])
    monkeypatch.setattr(quick, "LEAST_LEAD", 4.0)
    monkeypatch.setattr(quick, "MOST_SPAN", 1.001)
    failed = ("the best peer's error is only # times ours", "error #, span bound #")
    assert check() == (1, [f"FAILED 5 steps: {text}" for text in failed])
    assert list(results.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("fidelty", "unknown part fidelty: choose from fidelity, guidance"),
        ("--workers 0", "--workers must be at least 1, got 0"),
        ("half --quick", "--quick cannot be combined with parts"),
        ("half --only birds", "--only birds matches no job: choose a name or part of one from half-emoji"),
        ("half --only digits brids", "--only brids matches no job"),
        ("figures --only digits", "figures makes none"),
    ],
)
def test_a_wrong_command_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments.split())
    assert message in capsys.readouterr().err


def test_a_measurement_replaces_only_its_own_record(results):
    (results / "part.json").write_text('{"a": {"about": {"command": "before records named their code"}, "record": 0}}')
    for name, value, code in (("c", 3, "1"), ("a", 1, "1"), ("older", 4, "1"), ("a", {"x": 5}, "2")):
        record.save("part", name, {"about": {"code": code}, "record": value}, ["a", "b", "c", "older"])
    assert record.read_records("part") == {"a": {"x": 5}, "c": 3, "older": 4}
    record.save("part", "b", {"about": {"code": "2"}, "record": 2}, ["a", "b", "c"])
    assert list(json.loads((results / "part.json").read_text())) == ["a", "b", "c"]


def test_a_broken_results_file_is_refused_before_anything_is_measured(results):
    for content, message in (('{"half-digits": ', "is broken"), ("[]", "no measurements")):
        (results / "half.json").write_text(content)
        with pytest.raises(ValueError, match=rf"half\.json .*{message}"):
            record.check_part("half")
    record.check_part("fidelity")  # has no file


def test_the_command_resumes_after_the_measurements_on_record(results, monkeypatch, capsys):
    def names(**options: bool) -> list[str]:
        return [job.name for made in jobs.select_jobs(["half"], **options).values() for job in made]

    everything = names()
    jobs.run_jobs({"half": [jobs.Job(_half_of, ("digits",))]}, 1, "the command")  # in a separate process
    about = json.loads((results / "half.json").read_text())["half-digits"]["about"]
    assert record.read_records("half") == {"half-digits": {"network": "digits"}}
    assert about["command"] == "the command" and {"commit", "code", "machine", "torch", "numpy", "date"} <= set(about)
    assert names() == [name for name in everything if name != "half-digits"] and names(repeat=True) == everything
    monkeypatch.setattr(jobs, "code_hash", lambda: "another")
    assert names() == everything
    with pytest.raises(RuntimeError, match="half-0: ZeroDivisionError"):
        jobs.run_jobs({"half": [jobs.Job(_half_of, (0,))]}, 1, "the command")


def _half_of(name: str | float) -> dict[str, object]:
    return {"network": name if isinstance(name, str) else 1 / name}


_half_of.__name__ = "half"


def test_a_measurement_without_comfyui_has_its_own_name(monkeypatch):
    for path, name in (("", "overhead_without_comfyui"), ("/comfy", "overhead")):  # the latter is not replaced
        monkeypatch.setenv("COMFYUI_PATH", path)
        assert [job.name for job in jobs.jobs_by_part()["overhead"]] == [name]
