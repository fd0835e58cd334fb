"""Numbers in the documents against the benchmarks' records; their wording is free."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import cache
from operator import itemgetter
from statistics import median
from typing import Any

import pytest
import torch
from learned_solvers.samplers import EDMNoise, FlowNoise, VPNoise
from learned_solvers.samplers.schedules import Noise
from learned_solvers.training import EFFORTS, FitJob, FitSettings, most_calls
from learned_solvers.training.data.samples import Samples
from learned_solvers.training.starts.candidates import UsualSampler
from repository import ROOT

from benchmarks.figures import pairs
from benchmarks.jobs import SEEDS
from benchmarks.measures import lead_in_half
from benchmarks.peers import best_value, lead, recorded_points
from benchmarks.record import read_records
from benchmarks.suite import BENCHMARKS
from benchmarks.tables import with_tables

VP = VPNoise.stable_diffusion()


@cache
def points_by_set() -> list[dict[tuple[str, float, int], Any]]:
    """Points by network, guidance and calls: those on record, then those of the other two sets of starts."""
    again = list(read_records("again").values())
    sets = [recorded_points(), *([record for record in again if record["seed"] == seed] for seed in SEEDS)]
    return [{(r["network"], r["guidance"], p["steps"]): p for r in records for p in r["records"]} for records in sets]


def dyweight(point: dict[str, Any]) -> dict[str, float]:
    return point["ours"]["dyweight"]


def ratios(what: str) -> dict[str, dict[str, float]]:
    return next(record["ratios"] for record in read_records("generalisation").values() if record["what"] == what)


def half_points(dtype: str) -> list[Any]:
    return [point for r in read_records("half").values() if r["dtype"] == dtype for point in r["records"]]


def accuracy() -> Iterable[object]:
    for first, holds in (
        (3, lambda p: lead(p) > 1),
        (3, lambda p: lead(p) >= 2),
        (4, lambda p: lead(p) >= 2),
        (4, lambda p: lead(p, "median") >= 2),
        (4, lambda p: lead(p, "frechet") >= 3),
        (4, lambda p: dyweight(p)["error"] <= 1.15 * dyweight(p)["span"]),
        (4, lambda p: best_value(p, "error") >= 2 * dyweight(p)["span"]),
        (3, lambda p: lead(p, "frechet") < 1),
        (3, lambda p: abs(dyweight(p)["sharpness"] - 1)
            > abs(min(p["peers"].values(), key=itemgetter("error"))["sharpness"] - 1)),
    ):  # fmt: skip
        groups = [[point for point in points.values() if point["steps"] >= first] for points in points_by_set()]
        yield from (first, 10, len(groups[0]), *(sum(map(holds, group)) for group in groups))


def variation() -> Iterable[object]:
    by_place = {place: [lead(points[place]) for points in points_by_set()] for place in points_by_set()[0]}
    moved = [place for place, leads in by_place.items() if max(leads) / min(leads) > 6 / 5]
    assert all(steps >= 6 for *_, steps in moved)
    fits = [f"{row['unseen']:.2f}" for row in ratios("digits, starts").values()]
    return [len(by_place) - len(moved), len(by_place), len(moved), *fits]


def published_tables() -> Iterable[object]:
    tables = [(point, table) for point in points_by_set()[0].values() for table in point["published"].values()]
    ahead = [best_value(p, "error") / t["error"] for p, t in tables if t["error"] < best_value(p, "error")]
    assert all(table["error"] > dyweight(point)["error"] for point, table in tables)
    nearer = sum(table["frechet"] < dyweight(point)["frechet"] for point, table in tables)
    return [len(ahead), len(tables), f"{max(ahead):.1f}", nearer]


def half_precision() -> Iterable[object]:
    for dtype, where in (("float16", "network"), ("float16", "copy"), ("bfloat16", "copy")):
        points = half_points(dtype)
        leads = [lead_in_half(point, where) for point in points]
        yield from (sum(ratio > 1 for ratio in leads), sum(ratio >= 2 for ratio in leads))
        for late in (False, True) if where == "copy" else ():
            whole = [lead_in_half(point, "network") for point in points]
            changes = [a / b for a, b, p in zip(leads, whole, points, strict=True) if (p["steps"] >= 8) == late]
            yield abs(round(100 * median(changes) - 100))
    records = list(read_records("precision").values())
    for network in ("patches", "shapes", "digits"):
        for pair in zip(*(record["records"] for record in records if record["network"] == network), strict=True):
            errors = [point["on_copy"] for point in pair]
            yield from (pair[0]["steps"], *(f"{error['peer'] / error['ours']:.1f}" for error in errors))


def recipe() -> Iterable[object]:
    for run in (run for pair in pairs(read_records("recipe").values()) for run in pair):
        calls, teacher = run["network_calls"], run["teacher_calls"]
        yield from (f"{run['error']:.4f}", calls, calls - teacher, f"{run['seconds']:.0f}")


def latents() -> Iterable[object]:
    sizes = read_records("overhead")["overhead"].values()
    for sampler in ("dyweight, history 3", "dyweight, history 6", "ds_flow-sit, whole history", "ipndm"):
        yield from {round(samplers[sampler]["states"]) for samplers in sizes}


def most_calls_of_fit(steps: int, noise: Noise, numbers: int, usual: UsualSampler | None = None) -> int:
    """The limit on network calls of a fit with the default effort to samples of that many numbers."""
    samples, held_out = EFFORTS["default"].for_numbers(numbers).sizes(None)
    x = noise.sigma_max * torch.randn(samples + held_out, numbers, generator=torch.Generator().manual_seed(0))
    return most_calls(FitJob(FitSettings(steps=(steps,), usual=usual), Samples(x, {}, len(x)), noise, {}))


def limits() -> Iterable[object]:
    numbers = 4 * 64 * 64  # SD 1.5's
    yield from EFFORTS["default"].for_numbers(numbers).sizes(None)
    for steps in (3, 4, 5, 6, 8, 10):
        noises = (FlowNoise(), VP, EDMNoise())
        usual = (UsualSampler("euler", "simple", noise.teacher_grid) for noise in noises)
        most = max(most_calls_of_fit(steps, noise, numbers, u) for noise, u in zip(noises, usual, strict=True))
        yield from (100 * math.ceil(most / 100), steps)


@pytest.mark.parametrize(
    ("document", "heading", "values"),
    [
        ("docs/fit.md", "What does it cost?", limits),
        ("benchmarks/README.md", "Method", published_tables),
        ("benchmarks/README.md", "Accuracy", accuracy),
        ("benchmarks/README.md", "Accuracy", variation),
        ("benchmarks/README.md", "In half precision", half_precision),
        ("benchmarks/README.md", "What a fit costs", recipe),
        ("benchmarks/README.md", "What a step costs", latents),
    ],
)
def test_a_section_has_the_numbers_of_the_records(document, heading, values):
    """In its tables and its text, in this order, with others in between."""
    text = (ROOT / document).read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2]
    numbers = re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", re.split(r"^#", text, maxsplit=1, flags=re.MULTILINE)[0])
    remaining = iter([number.replace(",", "") for number in numbers])
    assert [value for value in map(str, values()) if value not in remaining] == [], "missing, or in another order"


def test_the_tables_are_those_of_the_records():
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert with_tables(text) == text, "run python -m benchmarks figures"
    emptied, count = re.subn(r"(?<=<!-- table: )(\w+ -->\n).*?(?=<!-- end -->)", r"\1", text, flags=re.DOTALL)
    assert count == 2 and emptied != text and with_tables(emptied) == text


def test_fitted_solvers_are_ahead_where_the_documents_say_so():
    for point in points_by_set()[0].values():
        for measures in point["ours"].values():
            assert measures["error"] < best_value(point, "error")
            assert measures["error"] >= 0.999 * measures["span"]  # a bound, but for rounding
    assert {record["calls"] for record in read_records("savings").values()} == {6, 7, 8, 9}
    for what in ("shapes, size", "digits, classes", "digits, network"):
        assert min(ratio for row in ratios(what).values() for ratio in row.values()) > 1
    for first, second in zip(half_points("float16"), half_points("bfloat16"), strict=True):
        for family, measures in first["ours"].items():  # on the float32 network, with either copy
            assert measures["network"] == second["ours"][family]["network"]


def test_fits_take_the_stated_parts_of_their_limits():
    cost = read_records("cost")
    runs = [(run, BENCHMARKS[name].noise) for name in BENCHMARKS for run in cost[f"growth_with_steps-{name}"]]
    for run, noise in runs:
        limit = most_calls_of_fit(run["steps"], noise, 8)
        assert 1 <= limit / (run["network_calls"] + run["teacher_calls"]) < 1.5
