"""Figures drawn from the results files, one message each, readable at the width of a README."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

from .cost import STEPS as COST_STEPS
from .cost import error_curve
from .fidelity import Point, lead, ours, points
from .guidance import leads
from .half import DTYPES, leads_in_half
from .host_samplers import RECIPE
from .peers import best_value
from .record import read_records
from .setting import STEPS
from .suite import BENCHMARKS

__all__ = ["FIGURES", "draw"]

OURS, THOROUGH, OURS_OTHERWISE, DS = "#d1495b", "#7d1128", "#e8a0a8", "#edae49"  # learned solvers
PEER, RECIPE_COLOR, BOUND = "#30638e", "#8fb8de", "#222222"
DTYPE_COLORS = {"float16": ("#a9cfc4", "#2a7f73"), "bfloat16": ("#c4c4c4", "#6e6e6e")}  # by where it was fitted
COLORS = {"digits": "#4a7c59", "patches": "#7a5195", "shapes": "#8a6240", "emoji": "#d17a22"}
KINDS = {"digits": "flow, 8x8", "patches": "VP/eps, 3x16x16", "shapes": "EDM, 3x16x16", "emoji": "flow, 3x32x32"}
PEER_NAME, RECIPE_NAME = "best stock sampler", "euler, simple"
RATIO = f"{PEER_NAME}'s error / the learned solver's"
GUIDANCE = 3.0
WIDTH = 8.8  # inches; at 100 dots per inch, GitHub's width of a README
STYLE = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 100, "savefig.dpi": 200,
    "legend.frameon": False, "axes.titlesize": 10, "figure.titlesize": 12, "legend.fontsize": 10,
    "figure.constrained_layout.use": True,
}  # fmt: skip


def draw(folder: Path) -> None:
    """Writes the images whose parts have been measured."""
    folder.mkdir(exist_ok=True)
    plt.style.use(STYLE)
    for name, make in FIGURES.items():
        figure = make()
        if figure is None:
            print(f"not measured: {name}", flush=True)
            continue
        figure.savefig(folder / f"{name}.png")
        plt.close(figure)
        print(f"written: {folder / f'{name}.png'}", flush=True)


def _panels(count: int, height: float, **more: Any) -> tuple[Figure, list[Axes]]:
    figure, axes = plt.subplots(1, count, figsize=(WIDTH, height), squeeze=False, **more)
    return figure, list(axes[0])


def _legend_below(axis: Axes, columns: int) -> None:
    """Places the legend of a plot below the whole figure."""
    axis.figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=columns)


def _set_ticks(side: Axis, ticks: Sequence[float]) -> None:
    """Sets the ticks of a logarithmic axis."""
    labels = FixedFormatter([f"{tick:g}" for tick in ticks])
    side.set(major_locator=FixedLocator(ticks), major_formatter=labels, minor_locator=NullLocator())


def _draw_peer(axis: Axes) -> None:
    """Draws the best stock sampler, which ratios relate to, as a line at 1."""
    axis.axhline(1, color=PEER, lw=2, label=PEER_NAME)


def _heat_map(axis: Axes, ratios: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str]) -> None:
    """Draws ratios as labelled cells, red above 1, where the solver is better, and blue below."""
    values = np.array(ratios)
    axis.imshow(np.log2(values), cmap="RdBu_r", vmin=-1.5, vmax=1.5, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        color = "white" if abs(np.log2(value)) > 1 else "black"
        axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=9, color=color)
    axis.set_xticks(range(len(columns)), columns, fontsize=9)
    axis.set_yticks(range(len(rows)), rows, fontsize=9)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _at_3() -> dict[str, dict[int, Point]]:
    """The points at guidance 3, by network and steps."""
    by_name: dict[str, dict[int, Point]] = {}
    for (name, guidance, steps), point in points().items():
        if guidance == GUIDANCE:
            by_name.setdefault(name, {})[steps] = point
    return by_name


def _by_calls(key: str, title: str, label: str) -> Figure | None:
    """A panel per network: a measure against calls."""
    if not (by_name := _at_3()):
        return None
    figure, axes = _panels(len(by_name), 3.6)
    for axis, (name, at) in zip(axes, by_name.items(), strict=True):
        recipe = [point["peers"].get(RECIPE[BENCHMARKS[name].noise.kind], {}).get(key) for point in at.values()]
        axis.plot(list(at), recipe, "o-", color=RECIPE_COLOR, ms=4, label=RECIPE_NAME)
        axis.plot(list(at), [best_value(p, key) for p in at.values()], "o-", color=PEER, ms=4, label=PEER_NAME)
        for effort, color in (("default", OURS), ("thorough", THOROUGH)):
            axis.plot(list(at), [ours(p, key, effort) for p in at.values()], "s-", color=color, ms=4,
                      label=f"learned, effort {effort}")  # fmt: skip
        if key == "error":
            spans = [np.nanmin([ours(p, "span", effort) for effort in ("default", "thorough")]) for p in at.values()]
            axis.plot(list(at), spans, "--", color=BOUND, lw=1, label="bound of linear solvers")
        axis.set(title=f"{BENCHMARKS[name].title}\n{KINDS[name]}", xlabel="steps", yscale="log")
        if key == "error":  # a decade or two, for which powers of ten are too sparse
            _set_ticks(axis.yaxis, [0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5])
        _set_ticks(axis.xaxis, list(at))
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel(label)
    _legend_below(axes[0], 3)
    figure.suptitle(title)
    return figure


def _error() -> Figure | None:
    return _by_calls("error", "Distance to the teacher at equal steps (guidance 3; lower is better)", "error (RMSE)")


def _frechet() -> Figure | None:
    title = "Distance to the teacher's distribution at equal steps (guidance 3; lower is better)"
    return _by_calls("frechet", title, "Fréchet distance")


def _closer() -> Figure | None:
    """A panel per network: the best peer's error / ours, by guidance and steps."""
    rows: dict[str, dict[float, list[float]]] = {}
    for (name, guidance, _), point in points().items():
        rows.setdefault(name, {}).setdefault(guidance, []).append(lead(point))
    if not rows:
        return None
    figure, axes = _panels(len(rows), 2.3)
    for axis, (name, ratios) in zip(axes, rows.items(), strict=True):
        _heat_map(axis, list(ratios.values()), [f"{guidance:g}" for guidance in ratios], [str(n) for n in STEPS])
        axis.set(title=f"{BENCHMARKS[name].title}\n{KINDS[name]}", xlabel="steps")
    axes[0].set_ylabel("guidance")
    figure.suptitle(f"{RATIO.capitalize()} (red: the learned one is closer)")
    return figure


def _cost() -> Figure | None:
    """A panel per step count: the errors of fits, relative to the best peer's, against their network calls."""
    curves = {
        steps: {name: curve for name in BENCHMARKS if (curve := error_curve(name, steps))} for steps in COST_STEPS
    }
    if not all(curves.values()):
        return None
    figure, axes = _panels(len(curves), 4.0, sharex=True, sharey=True)
    for axis, (steps, by_name) in zip(axes, curves.items(), strict=True):
        calls_of: dict[str, list[float]] = {}
        for name, curve in by_name.items():
            efforts = {effort: point for (effort, samples), point in curve.items() if samples is None}
            for effort, (calls, _) in efforts.items() if name != "emoji" else ():
                calls_of.setdefault(effort, []).append(calls / 1000)
            for points_of_line, style in ((curve, {"ms": 3, "ls": "-"}), (efforts, {"ms": 8, "ls": ""})):
                label = BENCHMARKS[name].title if style["ls"] else None
                calls, ratios = zip(*points_of_line.values(), strict=True)
                axis.plot(np.divide(calls, 1000), ratios, marker="o", color=COLORS[name], label=label, **style)
        _draw_peer(axis)
        axis.set(title=f"{steps} steps", xscale="log", yscale="log", ylim=(0.35, 1.6))
        axis.set_xlabel("thousand network calls of the fit, teacher included")
        for effort, calls in calls_of.items():
            axis.text(geometric_mean(calls), 1.4, effort, ha="center", fontsize=9)
        _set_ticks(axis.xaxis, [0.5, 1, 2, 5, 10, 20, 50, 100, 200])
        axis.grid(axis="y", alpha=0.3)
    _set_ticks(axes[0].yaxis, [0.4, 0.5, 0.6, 0.7, 0.8, 1, 1.2])
    axes[0].set_ylabel(f"error relative to the {PEER_NAME}'s")
    _legend_below(axes[0], 5)
    figure.suptitle("What error a fit reaches for how many calls (guidance 3; large markers: efforts)")
    return figure


def _guidance() -> Figure | None:
    """A panel per network: the best peer's error / ours at each guidance."""
    if not (records := list(read_records("guidance").values())):
        return None
    figure, axes = _panels(len(records), 3.6, sharey=True)
    ways = {
        "dedicated": ("fitted at that CFG alone", "--", OURS_OTHERWISE),
        "alone": ("fitted at one CFG, used everywhere", "-", OURS_OTHERWISE),
        "knots": ("fitted at knots (large markers)", "-", OURS),
    }
    for axis, record in zip(axes, records, strict=True):
        at = {point["guidance"]: leads(point) for point in record["points"]}
        for way, (label, line, color) in ways.items():
            axis.plot(list(at), [ratios[way] for ratios in at.values()], line, c=color, marker="o", ms=3, label=label)
        at_knots = {value: ratios["knots"] for value, ratios in at.items() if f"{value:g}" in record["calls"]}
        axis.plot(*zip(*at_knots.items(), strict=True), "o", color=OURS, ms=8)
        _draw_peer(axis)
        axis.set(title=f"{BENCHMARKS[record['network']].title}, {record['steps']} steps", xlabel="CFG")
        axis.set(xscale="log", yscale="log")
        _set_ticks(axis.xaxis, [value for value in at if value not in (1.5, 8.5)])
        axis.grid(axis="y", alpha=0.3)
    _set_ticks(axes[0].yaxis, [0.3, 0.4, 0.5, 0.7, 1, 1.5, 2, 2.5])
    axes[0].set_ylabel(RATIO.replace(" / ", "\n/ "))
    _legend_below(axes[0], 2)
    figure.suptitle("One file for every CFG (above 1: closer than every stock sampler)")
    return figure


def _generalisation() -> Figure | None:
    """One heat map per question: the best peer's error / ours, by place of the fit and place of use."""
    if not (records := list(read_records("generalisation").values())):
        return None
    lines = -(-len(records) // 3)
    figure, axes = plt.subplots(lines, 3, figsize=(WIDTH, 2.3 * lines + 0.4), squeeze=False)
    for axis in axes.flat[len(records) :]:
        axis.set_axis_off()
    for axis, record in zip(axes.flat, records, strict=False):
        ratios = record["ratios"]
        rows = [list(row.values()) for row in ratios.values()]
        _heat_map(axis, rows, list(ratios), list(next(iter(ratios.values()))))
        axis.set(title=record["what"], xlabel="used on", ylabel="fitted on")
    figure.suptitle(f"{RATIO.capitalize()}, away from the fit ({records[0]['steps']} steps)")
    return figure


def _half() -> Figure | None:
    """Bars per network and steps: the best peer's error / ours in float32 and in each half precision."""
    if not (records := list(read_records("half").values())):
        return None
    groups, bars = list[str](), dict[str, list[float]]()
    for record in sorted(records, key=lambda record: list(BENCHMARKS).index(record["network"])):
        for point in record["points"]:
            groups.append(f"{BENCHMARKS[record['network']].title}\n{point['steps']} steps")
            bars.setdefault("float32", []).append(leads_in_half(point["float32"])["ours"])
            for dtype in DTYPES:
                for key, ratio in leads_in_half(point[dtype]).items():
                    where = "in float32" if key == "ours" else f"in {dtype}"
                    bars.setdefault(f"{dtype}, fitted {where}", []).append(ratio)
    figure, (axis,) = _panels(1, 3.4)
    colors = (OURS, *(color for dtype in DTYPES for color in DTYPE_COLORS[dtype]))
    for k, ((label, ratios), color) in enumerate(zip(bars.items(), colors, strict=True)):
        axis.bar(np.arange(len(groups)) + 0.17 * (k - 2), ratios, 0.15, color=color, label=label)
    _draw_peer(axis)
    axis.set_xticks(range(len(groups)), groups, fontsize=9)
    axis.set_ylabel(RATIO.replace(" / ", "\n/ "))
    _legend_below(axis, 3)
    figure.suptitle("Learned solvers on half-precision networks (guidance 3; above 1: closer than every stock sampler)")
    return figure


def _overhead() -> Figure | None:
    """Bars per latent: time per step outside the network, relative to ComfyUI's ipndm."""
    if not (records := read_records("overhead").get("overhead")):
        return None
    samplers = (
        ("dyweight, history 3", "learned, history 3", OURS),
        ("dyweight, history 6", "learned, history 6", OURS_OTHERWISE),
        ("ds_flow-sit, whole history", "learned, DS-Solver", DS), ("euler", "k-diffusion's euler", RECIPE_COLOR),
    )  # fmt: skip
    figure, (axis,) = _panels(1, 3.0)
    for k, (name, label, color) in enumerate(samplers):
        ratios = [times[name]["seconds"] / times["ipndm"]["seconds"] for times in records.values()]
        axis.bar(np.arange(len(records)) + 0.21 * (k - 1.5), ratios, 0.19, color=color, label=label)
    axis.axhline(1, color=PEER, lw=1.5)
    axis.text(len(records) - 0.55, 1.02, "ComfyUI's ipndm", ha="right", va="bottom", color=PEER)
    axis.set_xticks(range(len(records)), [label.replace(" ", "\n") for label in records], fontsize=9)
    axis.set_ylabel("time per step outside\nthe network (ipndm = 1)")
    _legend_below(axis, 4)
    figure.suptitle("What a step costs outside the network, by latent (lower is better)")
    return figure


FIGURES: dict[str, Callable[[], Figure | None]] = {
    "error": _error, "closer": _closer, "frechet": _frechet, "cost": _cost, "guidance": _guidance,
    "generalisation": _generalisation, "half": _half, "overhead": _overhead,
}  # fmt: skip
