"""Parts of the documents that are written from the records, each between two comments with its name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import geometric_mean

from learned_solvers.samplers.files.write import write_whole
from learned_solvers.samplers.text import format_numbers

from .cost import STEPS, calls_alone, error_curve
from .fidelity import calls_needed, lead, ours, points
from .goals import goals
from .guidance import leads
from .half import DTYPES, leads_in_half
from .host_samplers import RECIPE
from .jobs import PARTS as MEASURED_PARTS
from .peers import best_value
from .record import RESULTS, read_measurements, read_records
from .setting import STEPS as ALL_STEPS
from .suite import BENCHMARKS

__all__ = ["PARTS", "with_tables", "write_tables"]

Lines = Iterator[str]
SAVING_STEPS = 5


def write_tables(document: Path) -> None:
    """Replaces the generated parts of a document by those of the current records."""
    text = document.read_text("utf-8")
    if (new := with_tables(text)) != text:
        write_whole(document, new.encode())
        print(f"tables written: {document}", flush=True)


def with_tables(text: str) -> str:
    """A document with the parts of the current records; those that have not been measured stay."""
    for name, write in PARTS.items():
        if part := "\n".join(write()):
            between = re.compile(rf"(?<=<!-- table: {name} -->\n).*?(?=<!-- end -->)", re.DOTALL)
            text = between.sub(lambda _, part=part: f"\n{part}\n\n", text, count=1)
    return text


def _table(head: list[str], rows: list[list[str]]) -> Lines:
    if rows:
        yield f"| {' | '.join(head)} |"
        yield "|---" * len(head) + "|"
        yield from (f"| {' | '.join(row)} |" for row in rows)


def _summary() -> Lines:
    """The sentences that the README needs."""
    if needed := [*_calls_needed().values()]:
        of_peers, of_euler = zip(*needed, strict=True)
        yield (
            f"For the error that a fitted solver has in {SAVING_STEPS} steps, *euler, simple* needs {_span(of_euler)}, "
            f"and the best stock sampler {_span(of_peers)}."
        )
    texts = {
        "default": "It is closer than the latter",
        "thorough": "With `--effort thorough`, not measured on emoji, it is closer",
    }
    for effort, text in texts.items():
        ratios, behind = dict[str, list[float]](), dict[str, list[int]]()
        for (name, guidance, steps), point in points(effort).items():
            ratio, title = lead(point, effort=effort), BENCHMARKS[name].title
            ratios.setdefault(title, []).append(ratio)
            if ratio <= 1:
                behind.setdefault(f"{title} at CFG {guidance:g}", []).append(steps)
        if ratios:
            every = [ratio for values in ratios.values() for ratio in values]
            factors = ", ".join(f"{geometric_mean(values):.2f} on {title}" for title, values in ratios.items())
            places = " and ".join(f"{where} in {format_numbers(steps)} steps" for where, steps in behind.items())
            yield (
                f"{text} at {sum(ratio > 1 for ratio in every)} of {len(every)} points (factor {factors})"
                f"{f', but not on {places}' if places else ''}."
            )


def _span(calls: Iterable[float | None]) -> str:
    """The smallest and largest of numbers of calls, of which None is more than were measured."""
    least, *_, most = sorted(calls, key=lambda number: number or math.inf)
    return f"{_number_of_calls(least)} to {_number_of_calls(most)}"


def _number_of_calls(calls: float | None) -> str:
    return f"{calls:.1f}" if calls else f"more than {ALL_STEPS[-1]}"


def _accuracy() -> Lines:
    """Best peer's error / ours at every point."""
    for effort in ("default", "thorough"):
        rows: dict[tuple[str, float], list[str]] = {}
        for (name, guidance, _), point in points(effort).items():
            row = rows.setdefault((name, guidance), [BENCHMARKS[name].title, f"{guidance:g}"])
            row.append(f"{lead(point, effort=effort):.2f}")
        if rows:
            yield f"Effort {effort}:"
            yield ""
            yield from _table(["network", "guidance", *(f"{n} steps" for n in ALL_STEPS)], [*rows.values()])
            yield ""


def _goals() -> Lines:
    rows = [[goal.text, f"{goal.count} of {goal.points}", goal.verdict] for goal in goals()]
    yield from _table(["condition", "points", "goal"], rows)


def _calls_needed() -> dict[tuple[str, float], list[float | None]]:
    """Calls that the best peer and Euler need for our error in 5 calls, by network and guidance."""
    needed, by_place = {}, points()
    for name, guidance in dict.fromkeys((name, guidance) for name, guidance, _ in by_place):
        at = {n: by_place[name, guidance, n] for n in ALL_STEPS}
        recipe = RECIPE[BENCHMARKS[name].noise.kind]
        curves = (
            {n: best_value(point, "error") for n, point in at.items()},
            {n: point["peers"][recipe]["error"] for n, point in at.items()},
        )
        needed[name, guidance] = [calls_needed(curve, ours(at[SAVING_STEPS])) for curve in curves]
    return needed


def _savings() -> Lines:
    rows = []
    for (name, guidance), needed in _calls_needed().items():
        rows.append([BENCHMARKS[name].title, f"{guidance:g}", *map(_number_of_calls, needed)])
    yield from _table(["network", "guidance", "best peer", "euler, simple"], rows)


def _guidance() -> Lines:
    """The best peer's error divided by the solvers', by guidance; the calls of the knots."""
    for record in read_records("guidance").values():
        at = {point["guidance"]: leads(point) for point in record["points"]}
        yield f"**{BENCHMARKS[record['network']].title}**"
        yield ""
        heads = ["CFG", "knots", "fitted there", f"fitted at {record['alone']:g}"]
        rows = [[f"{g:g}", *(f"{ratio:.2f}" for ratio in ratios.values())] for g, ratios in at.items()]
        yield from _table(heads, rows)
        first, *further = (geometric_mean(calls) for calls in record["calls"].values())
        ahead = sum(ratios["knots"] > 1 for ratios in at.values())
        near = sum(ratios["dedicated"] <= 1.1 * ratios["knots"] for ratios in at.values())
        yield ""
        yield (
            f"The first knot takes {first:,.0f} calls, a further one {geometric_mean(further):,.0f}. The solver with "
            f"knots is closer than the best peer at {ahead} of {len(at)} values; its error is at most a tenth above "
            f"that of a solver fitted there at {near} of them."
        )
        yield ""


def _generalisation() -> Lines:
    rows = [
        [record["what"], fitted, "; ".join(f"{used}: {ratio:.2f}" for used, ratio in row.items())]
        for record in read_records("generalisation").values()
        for fitted, row in record["ratios"].items()
    ]
    yield from _table(["what differs", "fitted on", "best peer's error / ours, by place of use"], rows)


def _transfers() -> Lines:
    """Each published solver on the networks of its prediction type, relative to the best peer and to Euler."""
    ratios: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for (name, *_), point in points().items():
        recipe = point["peers"][RECIPE[BENCHMARKS[name].noise.kind]]["error"]
        for file, measures in point["published"].items():
            pair = best_value(point, "error") / measures["error"], recipe / measures["error"]
            ratios.setdefault((file, BENCHMARKS[name].title), []).append(pair)
    rows = []
    for (file, title), pairs in sorted(ratios.items()):
        of_peer, of_euler = zip(*pairs, strict=True)
        cells = [
            f"{geometric_mean(of):.2f} ({sum(ratio > 1 for ratio in of)} of {len(of)})" for of in (of_peer, of_euler)
        ]
        rows.append([file, title, *cells])
    yield from _table(["bundled solver", "network", "best peer", "euler, simple"], rows)


def _half() -> Lines:
    rows = []
    for record in read_records("half").values():
        for point in record["points"]:
            cells = [f"{leads_in_half(point['float32'])['ours']:.2f}"]
            cells += [f"{ratio:.2f}" for dtype in DTYPES for ratio in leads_in_half(point[dtype]).values()]
            rows.append([BENCHMARKS[record["network"]].title, str(point["steps"]), *cells])
    heads = [f"{dtype}, fitted in {where}" for dtype in DTYPES for where in ("float32", "it")]
    yield from _table(["network", "steps", "float32", *heads], rows)


def _cost() -> Lines:
    """Thousand calls and error relative to the best peer's, of each effort and number of samples."""
    for name, benchmark in BENCHMARKS.items():
        for steps in STEPS:
            if curve := error_curve(name, steps):
                cells = [
                    f"{effort}{f' with {samples} samples' if samples else ''}: {calls / 1000:.1f} thousand, {ratio:.2f}"
                    for (effort, samples), (calls, ratio) in curve.items()
                ]
                yield f"- **{benchmark.title}, {steps} steps**: {'; '.join(cells)}"


def _calls() -> Lines:
    for effort in ("default", "thorough"):
        runs: dict[str, dict[int, list[int]]] = {}
        for (name, _, steps), point in points(effort).items():
            fits = [run for run in point["fits"] if (run["family"], run["effort"]) == ("dyweight", effort)]
            calls = [calls_alone(name, steps, effort, run) for run in fits]
            runs.setdefault(name, {}).setdefault(steps, []).extend(calls)
        rows = [
            [BENCHMARKS[name].title, *(f"{geometric_mean(calls):,.0f}" for calls in by_steps.values())]
            for name, by_steps in runs.items()
        ]
        if rows:
            yield from _table([f"effort {effort}", *(f"{n} steps" for n in ALL_STEPS)], rows)
            yield ""


def _size() -> Lines:
    cost = read_records("cost")
    if runs := cost.get("growth_with_size"):
        rows = [
            [f"{run['parameters'] / 1e6:.1f} M", f"{run['microseconds_per_call'] / 1e3:.2f}",
             f"{run['seconds'] / run['network_calls'] * 1e3:.2f}"] for run in runs
        ]  # fmt: skip
        yield from _table(["parameters", "ms per call in sampling", "in a fit"], rows)
    if peaks := cost.get("memory"):
        above = {way: (peaks[way] - peaks["nothing"]) / 2**20 for way in peaks}
        yield ""
        yield (
            f"Peak memory above a process that has only loaded the network: {above['sample']:.0f} MiB in sampling, "
            f"{above['gauss-newton']:.0f} MiB in a fit, {above['adam']:.0f} MiB in a fit with backpropagation (Adam)."
        )


def _overhead() -> Lines:
    if sizes := read_records("overhead").get("overhead"):
        names = [name for name in next(iter(sizes.values())) if name != "ipndm"]
        rows = [
            [size, f"{1e6 * times['ipndm']['seconds']:.0f} us",
             *(f"{times[name]['seconds'] / times['ipndm']['seconds']:.2f}" for name in names)]
            for size, times in sizes.items()
        ]  # fmt: skip
        yield from _table(["latent", "ComfyUI's ipndm", *names], rows)
        yield ""
        states = {name: round(max(times[name]["states"] for times in sizes.values())) for name in [*names, "ipndm"]}
        yield "Latents in memory: " + ", ".join(f"{name} {count}" for name, count in states.items()) + "."


def _provenance() -> Lines:
    records = [
        measurement["about"] | {"name": name}
        for part in MEASURED_PARTS
        for name, measurement in read_measurements(RESULTS / f"{part}.json").items()
    ]
    if not records:
        return
    commits, machines = (sorted({str(about[key]) for about in records}) for key in ("commit", "machine"))
    total, longest = sum(about["seconds"] for about in records), max(records, key=lambda about: about["seconds"])
    yield (
        f"On record: {len(records)} measurements at commit {', '.join(commits)}, {min(a['date'] for a in records)}, on "
        f"{'; '.join(machines)}. They took {total / 60:.0f} minutes, shared by two processes at a time, "
        f"the longest, {longest['name']}, {longest['seconds'] / 60:.0f}."
    )


PARTS: dict[str, Callable[[], Lines]] = {
    "summary": _summary, "accuracy": _accuracy, "goals": _goals, "savings": _savings, "guidance": _guidance,
    "generalisation": _generalisation, "transfers": _transfers, "half": _half, "cost": _cost, "calls": _calls,
    "size": _size, "overhead": _overhead, "provenance": _provenance,
}  # fmt: skip
