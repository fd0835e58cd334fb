"""Figures drawn from the results files, one message each, readable at the width of a README."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from operator import itemgetter
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from .cost import earlier_fits, error_curve, fits_by_calls
from .guidance import leads
from .measures import SAVING_STEPS, lead_in_half
from .peers import best_value, lead, recorded_points
from .record import read_records
from .tables import NAMES

__all__ = ["draw", "pairs"]

OURS, SEARCHED, PEER, PUBLISHED, BOUND = "#d1495b", "#edae49", "#30638e", "#8d96a3", "#222222"
NETWORKS = ("#4a7c59", "#7a5195", "#8a6240")
KINDS = {"digits": "flow, transformer", "patches": "VP/eps, U-Net", "shapes": "EDM, U-Net"}
MIXES = {"3 to 7": "3, 5, 7", "1 to 10": "1, 3, 6, 10"}  # guidance values that the samples of a fit alternate between
_QUALITY = ("error", "frechet", "closer")
FIGURES = {"fidelity": _QUALITY, "peers": _QUALITY, "cost": ("cost", "calls", "size", "memory")}  # others: as the part
SMALL_SIZE = (4.5, 3.1)  # inches, half the usual width
STYLE = {
    "font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110, "legend.frameon": False,
    "axes.titlesize": 11, "figure.titlesize": 13, "legend.fontsize": 9, "figure.constrained_layout.use": True,
}  # fmt: skip


def draw(figures: Path, parts: Collection[str] = ()) -> None:
    """Writes the images of some parts or, without `parts`, of all; skips those without records."""
    figures.mkdir(exist_ok=True)
    plt.style.use(STYLE)
    points, cost = recorded_points(), read_records("cost")
    at_3 = [record for record in points if record["guidance"] == 3]
    calls = {name: cost[f"growth_with_steps-{name}"] for name in NAMES if f"growth_with_steps-{name}" in cost}
    drawings: dict[str, tuple[Any, ...]] = {
        "error": (at_3, _panels, _errors, 3.7,
                  "Distance to the teacher at equal calls (guidance 3)", "error to the teacher (RMSE)"),
        "frechet": (at_3, _panels, _by_calls, 3.7,
                    "Distance to the teacher's distribution at equal calls (guidance 3)",
                    "Fréchet distance to the teacher"),
        "closer": (points, _panels, _closer, 2.6,
                   "Best peer's error / DyWeight's (RMSE to the teacher)", "guidance"),
        "savings": (read_records("savings").values(), _panels, _savings, 2.3,
                    "Calls of the best peer (blue) for the error of a fitted solver in 5 calls (red)", "guidance"),
        "generalisation": (read_records("generalisation").values(), _generalisation),
        "half": (read_records("half").values(), _single, _half, (6, 4.4),
                 "float16 keeps the ratios of float32; bfloat16 reduces the largest",
                 "best peer's error / DyWeight's, float32", "the same in half precision"),
        "calls": (calls, _single, _calls, SMALL_SIZE,
                  "Calls of a fit by steps", "steps of the solver", "thousand network calls"),
        "cost": (fits_by_calls(), _cost),
        "guidance": (read_records("guidance").values(), _guidance),
        "size": (cost.get("growth_with_size"), _single, _size, SMALL_SIZE,
                 "A call in a fit takes at most about twice\nas long as in sampling",
                 "network parameters", "ms per call and sample"),
        "memory": (cost.get("memory"), _single, _memory, SMALL_SIZE,
                   "Memory without and with backpropagation", "", "MiB above an idle process"),
        "overhead": (read_records("overhead").get("overhead"), _single, _overhead, (8, 3),
                     "A learned step costs less than an iPNDM step",
                     "", "time per step outside\nthe network (iPNDM = 1)"),
        "recipe": (pairs(read_records("recipe").values()), _single, _recipe, (8, 3.2),
                   "The error of the papers' recipe (within 2.5 %, or lower) for a fraction of the calls",
                   "thousand network calls of the fit (a backward pass counts as two)", ""),
    }  # fmt: skip
    wanted = {name for part in parts for name in FIGURES.get(part, [part])} or set(drawings)
    for name, (records, make, *arguments) in drawings.items():
        if name not in wanted:
            continue
        if not records:
            print(f"not measured: {name}", flush=True)
            continue
        figure = make(records, *arguments)
        figure.savefig(figures / f"{name}.png", bbox_inches="tight")
        plt.close(figure)
        print(f"written: {figures / f'{name}.png'}", flush=True)


def pairs(records: Collection[Any]) -> list[tuple[Any, Any]]:
    """Pairs each Levenberg-Marquardt fit with the best run of the recipe at the same step count, if there is one."""
    recipes, newtons = ([r for r in records if r["way"] == way] for way in ("recipe", "gauss-newton"))
    candidates = [(newton, [recipe for recipe in recipes if recipe["steps"] == newton["steps"]]) for newton in newtons]
    return [(newton, min(runs, key=itemgetter("error"))) for newton, runs in candidates if runs]


def _single(
    records: Any, plot: Callable[[Axes, Any], None], size: tuple[float, float], title: str, xlabel: str, ylabel: str
) -> Figure:
    """A figure with one plot."""
    figure, axis = plt.subplots(figsize=size)
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
    plot(axis, records)
    return figure


def _panels(
    records: Collection[Any], plot: Callable[[Axes, list[Any]], None], height: float, title: str, ylabel: str
) -> Figure:
    """A figure with a panel per network, its records in ascending guidance."""
    by_name: dict[str, list[Any]] = {record["network"]: [] for record in records}
    for record in sorted(records, key=itemgetter("guidance")):
        by_name[record["network"]].append(record)
    figure, axes = plt.subplots(1, len(by_name), figsize=(3.1 * len(by_name), height), squeeze=False)
    for axis, (name, network_records) in zip(axes[0], by_name.items(), strict=True):
        axis.set(title=f"{NAMES[name]}\n{KINDS[name]}", xlabel="network calls")
        plot(axis, network_records)
    axes[0][0].set_ylabel(ylabel)
    figure.suptitle(title)
    if axes[0][0].get_legend_handles_labels()[0]:
        _legend_below(axes[0][0], 3)
    return figure


def _legend_below(axis: Axes, columns: int) -> None:
    """Places the legend of a plot below the whole figure."""
    handles, labels = axis.get_legend_handles_labels()
    axis.figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=10)


def _set_ticks(side: Axis, ticks: Sequence[float]) -> None:
    """Sets the ticks of a logarithmic axis; the default powers of ten are too sparse to read values."""
    labels = FixedFormatter([f"{tick:g}" for tick in ticks])
    side.set(major_locator=FixedLocator(ticks), major_formatter=labels, minor_locator=NullLocator())


def _heat_map(axis: Axes, ratios: list[list[float]], rows: Sequence[str], columns: Sequence[str]) -> None:
    """Draws ratios as labelled cells, blue above 1 and red below."""
    values = np.array(ratios)
    axis.imshow(np.log2(values), cmap="RdBu", vmin=-1.5, vmax=1.5, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        color = "white" if abs(np.log2(value)) > 1 else "black"
        axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=9, color=color)
    axis.set_xticks(range(len(columns)), columns, fontsize=9)
    axis.set_yticks(range(len(rows)), rows, fontsize=9)
    axis.spines[:].set_visible(False)


def _errors(axis: Axes, records: list[Any]) -> None:
    """Draws errors and the span bound against calls."""
    _by_calls(axis, records, "error")
    steps, bounds = zip(*((r["steps"], r["ours"]["dyweight"]["span"]) for r in records[0]["records"]), strict=True)
    axis.plot(steps, bounds, "--", color=BOUND, lw=1, label="span bound of DyWeight's trajectory")
    _set_ticks(axis.yaxis, [0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.4])


def _by_calls(axis: Axes, records: list[Any], key: str = "frechet") -> None:
    """Draws a measure of the peers, the published tables and the fitted solvers against calls."""
    points = records[0]["records"]
    steps = [point["steps"] for point in points]
    axis.plot(steps, [best_value(point, key) for point in points], "o-", color=PEER, label="best peer on its best grid")
    published = [(r["steps"], min(p[key] for p in r["published"].values())) for r in points if r["published"]]
    if published:  # markers only, as some counts are missing; first, as one marker is below the DS line
        label = "best of the published tables (of other models)"
        axis.plot(*zip(*published, strict=True), "v", color=PUBLISHED, zorder=3, label=label)
    for family, color, label in (("ds", SEARCHED, "DS, fitted"), ("dyweight", OURS, "DyWeight, fitted")):
        if family in points[0]["ours"]:
            axis.plot(steps, [point["ours"][family][key] for point in points], "s-", color=color, label=label)
    axis.set_yscale("log")
    axis.xaxis.set(major_locator=FixedLocator(steps), minor_locator=NullLocator())
    axis.grid(axis="y", alpha=0.3)


def _closer(axis: Axes, records: list[Any]) -> None:
    """Draws the best peer's error over DyWeight's, by guidance and calls."""
    leads = [[lead(point) for point in record["records"]] for record in records]
    steps = [str(point["steps"]) for point in records[0]["records"]]
    _heat_map(axis, leads, [f"{record['guidance']:g}" for record in records], steps)


def _savings(axis: Axes, records: list[Any]) -> None:
    """Draws the calls that the best peer needs for our error at 5 calls, one bar per guidance."""
    for row, record in enumerate(records):
        most = record["calls"] or max(map(int, record["peers"]))
        axis.barh(row, most, color=PEER, height=0.6)
        axis.barh(row, SAVING_STEPS, color=OURS, height=0.6)
        axis.text(most + 0.15, row, str(record["calls"] or f"more than {most}"), va="center")
    axis.set_yticks(range(len(records)), [f"{record['guidance']:g}" for record in records])
    axis.set(title=NAMES[records[0]["network"]], xlim=(0, 11), xticks=range(0, 11, 2))
    axis.invert_yaxis()


def _generalisation(records: Any) -> Figure:
    """One heat map per question: the best peer's error / ours, by place of the fit and place of use."""
    drawn = [record for record in records if "starts" not in record["what"]]
    drawn.sort(key=lambda record: "guidance" not in record["what"])  # the most common question first
    figure, axes = plt.subplots(2, 3, figsize=(10.5, 6))
    for axis, record in zip(axes.flat, drawn, strict=False):
        rows = list(record["ratios"].values())
        labels = [MIXES.get(label) or label for label in record["ratios"]]
        _heat_map(axis, [list(row.values()) for row in rows], labels, list(rows[0]))
        axis.set(title=record["what"], xlabel="used at", ylabel="fitted at")
    for axis in list(axes.flat)[len(drawn) :]:
        axis.set_axis_off()
    figure.suptitle("Best peer's error / the solver's at 5 calls, away from the fit (blue, above 1: solver better)")
    return figure


def _half(axis: Axes, records: Any) -> None:
    """Draws the best peer's error / DyWeight's in half precision against that in float32, one marker per point."""
    for dtype, color in (("float16", PEER), ("bfloat16", OURS)):
        for name, marker in (("digits", "o"), ("patches", "s"), ("shapes", "^")):
            points = [p for r in records if (r["dtype"], r["network"]) == (dtype, name) for p in r["records"]]
            x, y = ([lead_in_half(point, where) for point in points] for where in ("network", "copy"))
            axis.plot(x, y, marker, color=color, ms=5, alpha=0.75, label=f"{dtype}, {NAMES[name]}")
    axis.plot([0.5, 4.5], [0.5, 4.5], "--", color=BOUND, lw=1, label="equal")
    axis.set(xscale="log", yscale="log")
    for side in (axis.xaxis, axis.yaxis):
        _set_ticks(side, [0.5, 1, 1.5, 2, 3, 4])
    axis.grid(alpha=0.3)
    axis.legend()


def _cost(records: Collection[Any]) -> Figure:
    """A panel per step count: the errors of fits, relative to the best peer's, against their network calls."""
    counts = list(dict.fromkeys(record["steps"] for record in records))
    figure, axes = plt.subplots(
        1, len(counts), figsize=(4.8 * len(counts), 4.5), sharex=True, sharey=True, squeeze=False
    )
    for axis, steps in zip(axes[0], counts, strict=True):
        calls_of: dict[str, list[float]] = {}
        of_network = {record["network"]: record for record in records if record["steps"] == steps}
        for name, color in zip(NAMES, NETWORKS, strict=True):
            if name not in of_network:
                continue
            curve = error_curve(of_network[name])
            efforts = {effort: point for (effort, samples), point in curve.items() if samples is None}
            for effort, (calls, _) in efforts.items():
                calls_of.setdefault(effort, []).append(calls / 1000)
            _in_thousands(axis, curve.values(), "o-", color=color, ms=3, label=NAMES[name])
            _in_thousands(axis, efforts.values(), "o", color=color, ms=8)
            _in_thousands(axis, earlier_fits(name, steps).values(), "o", color=color, ms=8, mfc="white", mew=1.5)
        axis.axhline(1, color=PEER, lw=2)
        axis.set(title=f"{steps} steps", xscale="log", yscale="log", ylim=(0.36, 1.45))
        axis.set_xlabel("thousand network calls of the fit, teacher included")
        for effort, calls in calls_of.items():
            axis.text(geometric_mean(calls), 1.28, effort, ha="center", fontsize=10)
        axis.text(
            0.99, 0.985, "best stock sampler", transform=axis.get_yaxis_transform(), color=PEER, ha="right", va="top"
        )
        _set_ticks(axis.xaxis, [2, 5, 10, 20, 50, 100, 200])
        axis.grid(axis="y", alpha=0.3)
    _set_ticks(axes[0][0].yaxis, [0.4, 0.5, 0.6, 0.7, 0.8, 1])
    axes[0][0].set_ylabel("error relative to the best stock sampler's")
    axes[0][0].plot([], [], "o", color=BOUND, ms=8, mfc="white", mew=1.5, label="earlier method, 96 and 480 samples")
    _legend_below(axes[0][0], 4)
    figure.suptitle("What error a fit reaches, by what it costs (lower is better)")
    return figure


def _in_thousands(axis: Axes, points: Collection[tuple[float, float]], line: str, **style: Any) -> None:
    """Draws points of calls and errors."""
    axis.plot([calls / 1000 for calls, _ in points], [error for _, error in points], line, **style)


def _guidance(records: Any) -> Figure:
    """A panel per network: the best peer's error / ours at each guidance."""
    figure, axes = plt.subplots(1, len(records), figsize=(4.8 * len(records), 3.9), sharey=True, squeeze=False)
    ways = {
        "dedicated": ("fitted at that CFG alone", "--", BOUND),
        "alone": ("fitted at CFG 3, used everywhere", "-", PEER),
        "knots": ("one solver with knots (large markers)", "-", OURS),
    }
    for axis, record in zip(axes[0], records, strict=True):
        at = {point["guidance"]: leads(point) for point in record["points"]}
        for way, (label, line, color) in ways.items():
            axis.plot(list(at), [ratios[way] for ratios in at.values()], line, c=color, marker="o", ms=3.5, label=label)
        at_knots = {value: ratios["knots"] for value, ratios in at.items() if f"{value:g}" in record["calls"]}
        axis.plot(*zip(*at_knots.items(), strict=True), "o", color=OURS, ms=8)
        axis.axhline(1, color=BOUND, lw=1)
        axis.set(title=f"{NAMES[record['network']]}, {record['steps']} steps", xlabel="CFG", xscale="log", yscale="log")
        _set_ticks(axis.xaxis, list(at))
        axis.grid(axis="y", alpha=0.3)
    _set_ticks(axes[0][0].yaxis, [0.3, 0.4, 0.5, 0.7, 1, 1.5, 2, 2.5])
    axes[0][0].set_ylabel("best stock sampler's error / ours")
    _legend_below(axes[0][0], 3)
    figure.suptitle("One solver with knots for all CFG values (above 1: better than every stock sampler)")
    return figure


def _calls(axis: Axes, by_network: Any) -> None:
    """Draws the calls of a fit against the steps of its solver."""
    for (name, runs), color in zip(by_network.items(), NETWORKS, strict=False):
        calls = [(run["network_calls"] + run["teacher_calls"]) / 1000 for run in runs]
        axis.plot([run["steps"] for run in runs], calls, "o-", color=color, label=NAMES[name])
    axis.set_ylim(0)
    axis.legend()


def _size(axis: Axes, runs: Any) -> None:
    """Draws the time per call in a fit and in sampling, by network size."""
    positions, sampling = np.arange(len(runs)), [run["microseconds_per_call"] / 1e3 for run in runs]
    fitting = [run["seconds"] / run["network_calls"] * 1e3 for run in runs]
    axis.bar(positions - 0.2, sampling, 0.38, color=PEER, label="sampling")
    axis.bar(positions + 0.2, fitting, 0.38, color=OURS, label="fitting")
    axis.set_xticks(positions, [f"{run['parameters'] / 1e6:.1f} M" for run in runs])
    axis.legend()


def _memory(axis: Axes, peaks: Any) -> None:
    """Draws the peak memory of sampling and of both optimisers."""
    ways = {"sample": "sampling", "gauss-newton": "fit, Levenberg-\nMarquardt", "adam": "fit, Adam"}
    megabytes = [(peaks[way] - peaks["nothing"]) / 2**20 for way in ways]
    bars = axis.bar(list(ways.values()), megabytes, 0.55, color=[PEER, OURS, PUBLISHED])
    axis.bar_label(bars, [f"{value:.0f}" for value in megabytes], fontsize=10)
    axis.margins(y=0.12)


def _overhead(axis: Axes, records: Any) -> None:
    """Draws time per step outside the network, relative to ComfyUI's iPNDM."""
    samplers = (
        ("dyweight, history 3", "DyWeight, history 3", OURS, 1.0),
        ("dyweight, history 6", "history 6", OURS, 0.55),
        ("ds_flow-sit, whole history", "DS-Solver", SEARCHED, 1.0),
        ("euler", "Euler of k-diffusion", PEER, 1.0),
    )
    for i, (name, label, color, alpha) in enumerate(samplers):
        ratios = [times[name]["seconds"] / times["ipndm"]["seconds"] for times in records.values()]
        axis.bar(np.arange(len(records)) + 0.21 * (i - 1.5), ratios, 0.19, color=color, alpha=alpha, label=label)
    axis.axhline(1, color=BOUND, lw=1, ls="--")
    axis.text(len(records) - 0.55, 1.03, "iPNDM of ComfyUI", ha="right", fontsize=10)
    axis.set_xticks(range(len(records)), [label.replace(" ", "\n") for label in records], fontsize=9)
    _legend_below(axis, 4)


def _recipe(axis: Axes, records: Any) -> None:
    """Draws the calls of both fits per step count, the teacher's in a paler colour."""
    for row, (newton, recipe) in enumerate(records):
        for position, run, color in ((row - 0.2, newton, OURS), (row + 0.2, recipe, PEER)):
            total, teacher = run["network_calls"] / 1000, run["teacher_calls"] / 1000
            fit = total - teacher
            axis.barh(position, fit, 0.36, color=color)
            axis.barh(position, teacher, 0.36, left=fit, color=color, alpha=0.4)
            text = f"{fit:.0f} + {teacher:.0f} for the teacher; error {run['error']:.4f}"
            left = fit if run is recipe else total  # a long bar has room on its pale part
            axis.text(left + 8, position, text, va="center", fontsize=9.5, color=BOUND)
    axis.set_yticks(range(len(records)), [f"solver of\n{newton['steps']} calls" for newton, _ in records])
    axis.barh([0], [0], color=OURS, label="Levenberg-Marquardt, no backpropagation")
    axis.barh([0], [0], color=PEER, label="the papers' recipe, Adam")
    axis.invert_yaxis()
    _legend_below(axis, 2)
