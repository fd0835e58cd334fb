"""What the documents say of the benchmarks' records: every number of theirs is in a record."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest
import torch
from learned_solvers.samplers import FlowNoise, VPNoise
from learned_solvers.samplers.schedules import Noise
from learned_solvers.training import FitJob, FitSettings, Teacher, most_calls
from learned_solvers.training.data.samples import Samples

from benchmarks.figures import pairs
from benchmarks.jobs import SEEDS
from benchmarks.measures import lead_in_half
from benchmarks.peers import best_value, lead, recorded_points
from benchmarks.record import RESULTS, read_measurements, read_records
from benchmarks.suite import BENCHMARKS

ROOT = Path(__file__).resolve().parents[2]


def document(name: str) -> str:
    """Returns a document's text without its line breaks."""
    return " ".join((ROOT / name).read_text().split())


@pytest.mark.parametrize("steps", [3, 5, 7])
def test_the_record_shows_gauss_newton_at_the_best_gradient_recipe_for_a_twentieth_of_its_calls(steps):
    """The record of benchmarks.recipe, which is read and not run here."""
    newton, recipe = next(pair for pair in pairs(read_records("recipe").values()) if pair[0]["steps"] == steps)
    assert newton["error"] <= 1.025 * recipe["error"]
    assert newton["network_calls"] <= recipe["network_calls"] / 20
    own, theirs = (run["network_calls"] - run["teacher_calls"] for run in (newton, recipe))
    assert own <= theirs / 4  # without the teachers, which are most of the recipe's bill
    equal = theirs + 40 * 10_000  # with a teacher of as many calls as ours
    assert newton["network_calls"] <= equal / 14
    assert newton["seconds"] < recipe["seconds"]


def test_the_documents_say_what_the_record_of_fidelity_does():
    networks = recorded_points()
    points = [point for network in networks for point in network["records"]]
    assert len(networks) == 9 and len(points) == 54
    ours = [point["ours"]["dyweight"] for point in points]
    error = [best_value(r, "error") / o["error"] for r, o in zip(points, ours, strict=True)]
    frechet = [best_value(r, "frechet") / o["frechet"] for r, o in zip(points, ours, strict=True)]
    median = [best_value(r, "median") / o["median"] for r, o in zip(points, ours, strict=True)]
    span = [own["error"] / own["span"] for point in points for own in point["ours"].values()]
    assert min(span) >= 0.999  # a bound is one, but for rounding
    later = [i for i, point in enumerate(points) if point["steps"] >= 4]
    readme, told = document("README.md"), document("benchmarks/README.md")
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
    reach = sum(best_value(points[i], "error") >= 2 * ours[i]["span"] for i in later)
    assert f"at {reach} of 45 the bound itself is half the best peer's error or less" in told
    assert f"at least twice ours at {sum(median[i] >= 2 for i in later)} of 45" in told
    published = [(r, table["error"]) for r in points for table in r["published"].values()]
    ahead = [best_value(r, "error") / own for r, own in published if own < best_value(r, "error")]
    assert f"closer than the best peer at {len(ahead)} of {len(published)} points" in told
    assert max(ahead) <= 1.2 and all(own > r["ours"]["dyweight"]["error"] for r, own in published)
    nearer = [table["frechet"] < r["ours"]["dyweight"]["frechet"] for r in points for table in r["published"].values()]
    assert f"in Frechet distance they are ahead of it at {sum(nearer)}" in told


def test_the_documents_say_where_the_record_of_fidelity_shows_us_worse():
    points = [
        ((network["network"], network["guidance"], point["steps"]), point)
        for network in recorded_points()
        for point in network["records"]
    ]

    def worse(family: str, key: str) -> set[tuple[str, float, int]]:
        own = [(name, point) for name, point in points if family in point["ours"]]
        return {name for name, point in own if point["ours"][family][key] > best_value(point, key)}

    def best_peer(point: dict) -> dict:
        return min(point["peers"].values(), key=lambda peer: peer["error"])

    told = document("benchmarks/README.md")
    assert not worse("dyweight", "error") | worse("ds", "error")
    assert "In error than the best peer, on 512 starts: nowhere, neither DyWeight nor DS" in told
    in_3 = {("shapes", guidance, 3) for guidance in (1.0, 3.0, 7.0)} | {("patches", 3.0, 3)}
    assert worse("dyweight", "frechet") == in_3 | {("shapes", 1.0, 4)}
    assert "DyWeight at 5 of 54, in 3 calls (shapes at every guidance, patches at 3) and 4 (shapes at 1)" in told
    assert sum("ds" in point["ours"] for _, point in points) == 36
    assert len(worse("ds", "frechet")) == 6 and "DS at 6 of its 36, five of them on the patches" in told
    assert sum(name == "patches" for name, _, _ in worse("ds", "frechet")) == 5
    flat = [point for (name, guidance, _), point in points if (name, guidance) == ("shapes", 7.0)]
    ours = [point["ours"]["dyweight"]["sharpness"] for point in flat]
    peers = [best_peer(point)["sharpness"] for point in flat]
    assert f"leave {ours[0]:.1f} times the teacher's gradients in 3 calls (the best peer {peers[0]:.1f})" in told
    assert all(own < peer for own, peer in zip(ours[1:], peers[1:], strict=True))
    assert f"With more calls ours leave less than the peer's, which reach {max(peers):.1f} times" in told
    off = [abs(p["ours"]["dyweight"]["sharpness"] - 1) > abs(best_peer(p)["sharpness"] - 1) for _, p in points]
    assert f"further from the teacher's than the peer of least error at {sum(off)} of 54" in told


def test_the_documents_say_what_the_record_of_savings_does():
    found = list(read_records("savings").values())
    assert len(found) == 9 and {own["calls"] for own in found} == {6, 7, 8, 9}
    assert "One call more to four." in document("README.md")


def test_the_documents_say_what_the_record_of_other_starts_does():
    found = list(read_records("again").values())
    sets = [recorded_points(), *([own for own in found if own["seed"] == seed] for seed in SEEDS)]
    points = [
        {(own["network"], own["guidance"], point["steps"]): point for own in some for point in own["records"]}
        for some in sets
    ]
    assert [len(some) for some in points] == [54, 54, 54] and len(found) == 18
    leads = [{place: lead(point) for place, point in some.items()} for some in points]
    ahead, twice = ([sum(ratio >= least for ratio in some.values()) for some in leads] for least in (1, 2))
    later = [[point for (*_, steps), point in some.items() if steps >= 4] for some in points]
    half, third = ([sum(lead(p, key) >= least for p in some) for some in later]
                   for key, least in (("error", 2), ("frechet", 3)))  # fmt: skip
    near = [sum(p["ours"]["dyweight"]["error"] <= 1.15 * p["ours"]["dyweight"]["span"] for p in some) for some in later]
    readme, told = document("README.md"), document("benchmarks/README.md")
    assert ahead == [54, 54, 54]
    assert f"it is closer at all 54 again, twice as close at {twice[1]} and {twice[2]};" in readme
    assert f"on half of it at {half[1]} and {half[2]} of 45 ({half[0]} on record)" in told
    assert f"Frechet distance at {third[1]} and {third[2]} ({third[0]})" in told
    assert f"times the span bound at {near[1]} and {near[2]} ({near[0]})" in told
    three = {place: [some[place] for some in leads] for place in leads[0]}
    apart = {place: max(own) / min(own) for place, own in three.items()}
    moved = [place for place in apart if apart[place] > 6 / 5]
    assert len(moved) == 7 and all(steps >= 6 for *_, steps in moved)
    assert "seven leads change by more than a fifth, all with 6 calls and more" in readme
    assert f"within a fifth of each other at {54 - len(moved)} of 54" in told
    furthest = sorted(apart, key=apart.__getitem__)[-2:]
    assert furthest == [("patches", 3.0, 10), ("digits", 7.0, 8)]
    for place in furthest:
        assert f"({', '.join(f'{ratio:.2f}' for ratio in three[place])})" in told


def test_the_documents_say_what_more_samples_did():
    few, many = (read_measurements(RESULTS / f"{name}.json") for name in ("fidelity_96", "fidelity"))
    told, found = document("benchmarks/README.md"), []
    assert {own["about"]["samples"]["fitted"] for own in many.values()} == {480}
    for name, own in many.items():
        for old, new in zip(few[name]["record"]["records"], own["record"]["records"], strict=True):
            ratio = [new["ours"]["dyweight"][key] / old["ours"]["dyweight"][key] for key in ("error", "network_calls")]
            found.append((new["steps"], *ratio))
    assert f"lower at {sum(error < 1 for _, error, _ in found)} of {len(found)}" in told
    gains = [1 - median(e for steps, e, _ in found if (steps >= 8) == late) for late in (False, True)]
    assert f"by {100 * gains[0]:.0f} % at 3 to 6 calls and by {100 * gains[1]:.0f} % at 8 and 10" in told
    assert f"for {median(calls for *_, calls in found):.1f} times the calls on the median" in told


def test_the_documents_say_what_the_record_of_generalisation_does():
    ratios = {found["what"]: found["ratios"] for found in list(read_records("generalisation").values())}
    readme = document("README.md")
    patches, digits = (ratios[f"{name}, guidance"] for name in ("patches", "digits"))
    fitted = {"1": "1", "3": "3", "7": "7", "3 to 7": "3, 5, 7 in turn", "1 to 10": "1, 3, 6, 10 in turn"}
    assert list(patches) == list(digits) == list(fitted)
    for at, shown in fitted.items():
        cells = [f"{patches[at][used]:.2f} / {digits[at][used]:.2f}" for used in ("1", "3", "5", "7", "10")]
        assert f"| {' | '.join([shown, *cells])} |" in readme
    wide = {(name, used) for name, own in (("patches", patches), ("digits", digits)) for used in ("1", "3", "10")
            if own["1 to 10"][used] < 1}  # fmt: skip
    told = document("benchmarks/README.md")
    assert wide == {("patches", "1"), ("digits", "1"), ("patches", "3")}
    assert "The wide mix, 1 to 10, is behind at guidance 1, and on the patches at 3" in told
    first, second, third = (row["unseen"] for row in ratios["digits, starts"].values())
    assert f"come to {first:.2f}, {second:.2f} and {third:.2f}" in told
    assert max(first, second, third) / min(first, second, third) < 6 / 5 and "of less than a fifth are none" in told
    for what in ("shapes, size", "digits, classes", "digits, network"):
        assert min(ratio for row in ratios[what].values() for ratio in row.values()) > 1
    other = [
        ratios["patches, classes"][f"{a} half"][f"{b} half"] for a, b in (("first", "second"), ("second", "first"))
    ]
    assert f"on other classes of photo patches it is a little behind, {other[0]:.2f} and {other[1]:.2f}" in readme


def bound(steps: int, samples: int, held_out: int, noise: Noise, teacher: Teacher) -> int:
    """The most network calls of a fit to so many samples, and others that judge."""
    x = noise.sigma_max * torch.randn(samples + held_out, 8, generator=torch.Generator().manual_seed(0))
    settings = FitSettings(steps=(steps,), teacher=teacher, held_out=held_out)
    return most_calls(FitJob(settings, Samples(x, {}, len(x)), noise, {}))


def test_the_documents_say_what_the_record_of_cost_does():
    cost = read_records("cost")

    def part(run: dict, samples: int, held_out: int, noise: Noise) -> float:
        most = bound(run["steps"], samples, held_out, noise, Teacher("ipndm", 60))
        return most / (run["network_calls"] + run["teacher_calls"])

    parts, totals = [], {}
    for name, benchmark in BENCHMARKS.items():
        for run in cost[f"growth_with_steps-{name}"]:
            parts.append(part(run, 64, 22, benchmark.noise))
            totals[name, run["steps"]] = run["network_calls"]
    assert min(parts) >= 8 and max(parts) < 16.5
    assert all(totals[name, 8] / totals[name, 4] > 2.9 for name in BENCHMARKS)
    readme, told = document("README.md"), document("benchmarks/README.md")
    assert "A sixteenth to an eighth of such bounds is usual" in readme and "a sixteenth to an eighth" in told
    many = [run for run in cost["growth_with_samples"] if run["samples"] > 64]
    parts = [part(run, run["samples"], 32, FlowNoise()) for run in many]
    assert min(parts) >= 10 and max(parts) <= 30
    assert "with more than 64 samples a thirtieth to a tenth" in readme
    usual = [bound(n, 64, 22, VPNoise.stable_diffusion(), Teacher("heun", 30)) for n in (4, 6, 8)]
    usual = [f"{calls / 1000:.0f},000" for calls in usual]
    assert f"at most {usual[0]} for 4 steps, {usual[1]} for 6, {usual[2]} for 8" in readme
    errors = {(run["steps"], run["samples"]): run["error"] for run in cost["growth_with_samples"]}
    assert errors[5, 32] <= errors[5, 64] and 0.6 < errors[10, 256] / errors[10, 64] < 0.72  # as near; a third nearer
    size = [(r["seconds"] / r["network_calls"] * 1e6) / r["microseconds_per_call"] for r in cost["growth_with_size"]]
    assert max(size) < 2.15
    peaks = {way: peak - cost["memory"]["nothing"] for way, peak in cost["memory"].items()}
    assert peaks["sample"] < peaks["gauss-newton"] < peaks["adam"] / 4


def test_the_documents_say_what_the_record_of_half_does():
    found: dict[str, dict[tuple[str, float, int], dict]] = {"float16": {}, "bfloat16": {}}
    for own in list(read_records("half").values()):
        for point in own["records"]:
            found[own["dtype"]][own["network"], own["guidance"], point["steps"]] = point
    assert [len(points) for points in found.values()] == [54, 54]
    leads = {
        dtype: {place: (lead_in_half(point, "network"), lead_in_half(point, "copy")) for place, point in points.items()}
        for dtype, points in found.items()
    }
    told = document("benchmarks/README.md")
    float16, bfloat16 = leads["float16"].values(), leads["bfloat16"].values()
    ahead, twice = sum(copy > 1 for _, copy in float16), sum(copy >= 2 for _, copy in float16)
    assert (ahead, twice) == (sum(a > 1 for a, _ in float16), sum(a >= 2 for a, _ in float16))
    assert f"In float16 DyWeight is ahead at {ahead} of 54 and twice as close at {twice}, as in float32" in told
    assert f"is ahead at {sum(copy > 1 for _, copy in bfloat16)} too" in told
    assert f"but twice as close at {sum(copy >= 2 for _, copy in bfloat16)}:" in told
    late = [copy / whole for (_, _, steps), (whole, copy) in leads["bfloat16"].items() if steps >= 8]
    assert f"of a lead at 8 and 10 calls {100 * (1 - median(late)):.0f} % is lost on the median" in told
    behind = [place for place, (whole, _) in leads["float16"].items() if whole < 1]
    assert behind == [("digits", 7.0, 10)]
    whole, copy = leads["bfloat16"][behind[0]]
    assert f"squared error ({whole:.2f}; in bfloat16 {copy:.2f})" in told
    worst = min(leads["bfloat16"], key=lambda place: leads["bfloat16"][place][1] / leads["bfloat16"][place][0])
    assert worst == ("patches", 1.0, 10)
    whole, copy = leads["bfloat16"][worst]
    error = found["bfloat16"][worst]["ours"]["dyweight"]
    grown = error["copy"]["error"] / error["network"]["error"]
    assert f"10 calls: {whole:.2f} becomes {copy:.2f}, our error grows {grown:.1f} times" in told
    searched = [point for points in found.values() for point in points.values() if "ds" in point["ours"]]
    assert len(searched) == 2 * 36 and "DS is ahead at all of its 36 in both" in told
    for point in searched:
        assert point["ours"]["ds"]["copy"]["error"] < min(peer["copy"]["error"] for peer in point["peers"].values())


def test_the_networks_own_measures_in_the_record_of_half_are_those_of_an_unseen_set():
    """Those in float32 do not depend on the copy beside them."""
    kept = {
        (own["network"], own["guidance"], own["dtype"]): own["records"] for own in list(read_records("half").values())
    }
    for (name, guidance, _), points in kept.items():
        for here, there in zip(points, kept[name, guidance, "float16"], strict=True):
            for label, own in here["ours"].items():
                assert own["network"] == there["ours"][label]["network"]


def test_the_documents_say_what_the_record_of_precision_does():
    found = list(read_records("precision").values())
    on_copy: dict[tuple[str, int], list[str]] = {}  # float16, bfloat16
    for own in found:
        for run in own["records"]:
            ratio = run["on_copy"]["peer"] / run["on_copy"]["ours"]
            on_copy.setdefault((own["network"], run["steps"]), []).append(f"{ratio:.1f}")
            assert run["ours"] <= 1.01 * run["on_copy"]["ours"]
    assert len(found) == 6
    assert on_copy == {
        ("patches", 4): ["1.2", "1.2"], ("shapes", 4): ["1.4", "1.5"], ("digits", 4): ["1.7", "1.7"],
        ("digits", 6): ["2.4", "2.4"], ("digits", 8): ["2.2", "1.9"], ("digits", 10): ["2.3", "1.5"],
    }  # fmt: skip
    told = document("benchmarks/README.md")
    assert "1.2 times closer than the best peer on the patches, 1.4 and 1.5 on the shapes, 1.7 on the digits;" in told
    assert "there 2.4 in 6 calls, 2.2 (float16) and 1.9 (bfloat16) in 8, 2.3 and 1.5 in 10" in told
