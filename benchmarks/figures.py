"""Figures from the results files, readable at the width of a README: one message each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from .half import lead_of
from .peers import compared, lead_at, of_best_peer
from .record import named, records

__all__ = ["draw", "pairs"]

OURS, SEARCHED, PEER, PUBLISHED, BOUND = "#d1495b", "#edae49", "#30638e", "#8d96a3", "#222222"
NETWORKS = ("#4a7c59", "#7a5195", "#8a6240")
TITLES = {
    "digits": "digits\nflow, transformer", "patches": "photo patches\nVP/eps, U-Net",
    "shapes": "drawn shapes\nEDM, U-Net",
}  # fmt: skip
SEVERAL = {"3 to 7": "3, 5, 7", "1 to 10": "1, 3, 6, 10"}  # guidances of a fit to several of them in turn
STYLE = {
    "font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110,
    "legend.frameon": False, "axes.titlesize": 11,
}  # fmt: skip


def draw(figures: Path) -> None:
    """Writes a picture per record that is there."""
    figures.mkdir(exist_ok=True)
    plt.style.use(STYLE)
    error = ("error", "error to the teacher (RMSE)", "Closest to the teacher at equal calls (guidance 3)")
    frechet = (
        "frechet",
        "Fréchet distance to the teacher",
        "Nearness to the teacher's distribution at equal calls (guidance 3)",
    )
    fidelity, cost = compared(), named("cost")
    at_3 = [r for r in fidelity if r["guidance"] == 3]
    drawn: dict[str, tuple[Any, Callable[[Any], Figure]]] = {
        "error": (at_3, lambda r: _per_call(r, *error)),
        "frechet": (at_3, lambda r: _per_call(r, *frechet)),
        "closer": (fidelity, _closer),
        "savings": (records("savings"), _savings),
        "generalisation": (records("generalisation"), _generalisation),
        "half": (records("half"), _half),
        "calls": ({n: cost[f"growth_with_steps-{n}"] for n in TITLES if f"growth_with_steps-{n}" in cost}, _calls),
        "samples": (cost.get("growth_with_samples"), _samples),
        "size": (cost.get("growth_with_size"), _size),
        "memory": (cost.get("memory"), _memory),
        "overhead": (named("overhead").get("overhead"), _overhead),
        "recipe": (pairs(records("recipe")), _recipe),
    }
    for name, (found, make) in drawn.items():
        if not found:
            print(f"not measured: {name}", flush=True)
            continue
        figure = make(found)
        figure.savefig(figures / f"{name}.png", bbox_inches="tight")
        plt.close(figure)
        print(f"written: {figures / f'{name}.png'}", flush=True)


def _per_call(found: Any, key: str, label: str, title: str) -> Figure:
    """Draws a measure against calls at guidance 3, a panel per network."""
    by_name = {r["network"]: r["records"] for r in found}
    figure, axes = plt.subplots(1, len(by_name), figsize=(3.1 * len(by_name), 3.7), layout="constrained")
    for axis, (name, points) in zip(np.atleast_1d(axes), by_name.items(), strict=True):
        steps = [r["steps"] for r in points]
        axis.plot(
            steps,
            [of_best_peer(r, key) for r in points],
            "o-",
            color=PEER,
            label="best peer at its best grid",
        )
        published = [(r["steps"], min(p[key] for p in r["published"].values())) for r in points if r["published"]]
        if published:  # markers alone: they have not every count, and no line would be measured between
            axis.plot(
                *zip(*published, strict=True),
                "v",
                color=PUBLISHED,
                zorder=3,  # before the lines: one lies under DS's
                label="best of the published tables (of other models)",
            )
        for family, color, shown in (("ds", SEARCHED, "DS, fitted"), ("dyweight", OURS, "DyWeight, fitted")):
            if family in points[0]["ours"]:
                axis.plot(steps, [r["ours"][family][key] for r in points], "s-", color=color, label=shown)
        if key == "error":
            axis.plot(
                steps,
                [r["ours"]["dyweight"]["span"] for r in points],
                "--",
                color=BOUND,
                lw=1,
                label="span bound of DyWeight's path",
            )
        axis.set(title=TITLES[name], yscale="log", xlabel="network calls")
        axis.xaxis.set(major_locator=FixedLocator(steps), minor_locator=NullLocator())
        if key == "error":
            _label(axis.yaxis, [0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.4])
        axis.grid(axis="y", alpha=0.3)
    first = np.atleast_1d(axes)[0]
    first.set_ylabel(label)
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=10)
    figure.suptitle(title, fontsize=13)
    return figure


def _label(side: Axis, ticks: Sequence[float]) -> None:
    """Puts these ticks alone on a logarithmic axis: its own are powers of ten, too few to read by."""
    side.set(
        major_locator=FixedLocator(ticks),
        major_formatter=FixedFormatter([f"{tick:g}" for tick in ticks]),
        minor_locator=NullLocator(),
    )


def _short(name: str) -> str:
    """Returns a network's title without its convention."""
    return TITLES[name].partition("\n")[0]


def _closer(found: Any) -> Figure:
    """Draws a heat map per network: the best peer's error over DyWeight's, by guidance and calls."""
    names = list(dict.fromkeys(r["network"] for r in found))
    figure, axes = plt.subplots(1, len(names), figsize=(3.1 * len(names), 2.6), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        rows = sorted((r for r in found if r["network"] == name), key=lambda r: r["guidance"])
        steps = [r["steps"] for r in rows[0]["records"]]
        _heat_map(
            axis,
            [[lead_at(r) for r in row["records"]] for row in rows],
            [f"{row['guidance']:g}" for row in rows],
            list(map(str, steps)),
        )
        axis.set(title=TITLES[name], xlabel="network calls")
    axes[0][0].set_ylabel("guidance")
    figure.suptitle("How many times closer to the teacher than the best peer (RMSE)", fontsize=13)
    return figure


def _heat_map(axis: Axes, ratios: list[list[float]], rows: list[str], columns: list[str]) -> None:
    """Draws ratios with their numbers: blue above 1, red below."""
    values = np.array(ratios)
    axis.imshow(np.log2(values), cmap="RdBu", vmin=-1.5, vmax=1.5, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        color = "white" if abs(np.log2(value)) > 1 else "black"
        axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=9, color=color)
    axis.set_xticks(range(len(columns)), columns, fontsize=9)
    axis.set_yticks(range(len(rows)), rows, fontsize=9)
    axis.spines[:].set_visible(False)


def _savings(found: Any) -> Figure:
    """Draws the calls that the best peer needs for our error at five, a bar per network and guidance."""
    names = list(dict.fromkeys(record["network"] for record in found))
    figure, axes = plt.subplots(1, len(names), figsize=(3.1 * len(names), 2.3), layout="constrained", sharex=True)
    for axis, name in zip(np.atleast_1d(axes), names, strict=True):
        rows = sorted((r for r in found if r["network"] == name), key=lambda r: r["guidance"])
        for row, record in enumerate(rows):
            most = record["calls"] or max(map(int, record["peers"]))
            axis.barh(row, most, color=PEER, height=0.6)
            axis.barh(row, 5, color=OURS, height=0.6)
            axis.text(most + 0.15, row, str(record["calls"] or f"more than {most}"), va="center")
        axis.set_yticks(range(len(rows)), [f"{r['guidance']:g}" for r in rows])
        axis.set(title=_short(name), xlabel="network calls", xlim=(0, 11), xticks=range(0, 11, 2))
        axis.invert_yaxis()
    np.atleast_1d(axes)[0].set_ylabel("guidance")
    figure.suptitle("Calls of the best peer (blue) for the error of a fitted solver in 5 (red)", fontsize=13)
    return figure


def _generalisation(found: Any) -> Figure:
    """Draws a heat map per question: best peer's error over ours, where fitted against where used."""
    shown = [r for r in found if "starts" not in r["what"]]
    shown.sort(key=lambda r: "guidance" not in r["what"])  # the question of most users first
    figure, axes = plt.subplots(2, 3, figsize=(10.5, 6), layout="constrained")
    for axis, record in zip(axes.flat, shown, strict=False):
        rows, columns = list(record["ratios"]), list(next(iter(record["ratios"].values())))
        ratios = [[record["ratios"][row][column] for column in columns] for row in rows]
        _heat_map(axis, ratios, [str(SEVERAL.get(row, row)) for row in rows], columns)
        axis.set(title=record["what"], xlabel="used", ylabel="fitted")
    for axis in list(axes.flat)[len(shown) :]:
        axis.set_axis_off()
    figure.suptitle("Used elsewhere: the best peer's error / ours at 5 calls (above 1, blue: still ahead)", fontsize=13)
    return figure


def _half(found: Any) -> Figure:
    """Draws, for every point, the best peer's error over DyWeight's in half precision against that in float32."""
    figure, axis = plt.subplots(figsize=(6, 4.4), layout="constrained")
    for dtype, color in (("float16", PEER), ("bfloat16", OURS)):
        for name, marker in (("digits", "o"), ("patches", "s"), ("shapes", "^")):
            points = [r for own in found if (own["dtype"], own["network"]) == (dtype, name) for r in own["records"]]
            leads = {where: [lead_of(r, where) for r in points] for where in ("network", "copy")}
            shown = f"{dtype}, {_short(name)}"
            axis.plot(leads["network"], leads["copy"], marker, color=color, ms=5, alpha=0.75, label=shown)
    ticks = [0.5, 1, 1.5, 2, 3, 4]
    axis.plot([0.5, 4.5], [0.5, 4.5], "--", color=BOUND, lw=1, label="equal")
    axis.set(xscale="log", yscale="log", xlabel="best peer's error / ours in float32", ylabel="in half precision")
    for side in (axis.xaxis, axis.yaxis):
        _label(side, ticks)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)
    axis.set_title("Leads in float16 are those in float32; in bfloat16 the largest shrink")
    return figure


def _small() -> tuple[Figure, Axes]:
    """Returns an empty picture of half the usual width: two stand beside each other."""
    return plt.subplots(figsize=(4.5, 3.1), layout="constrained")


def _calls(by_network: Any) -> Figure:
    """Draws a fit's calls by the steps of its solver."""
    figure, axis = _small()
    for (name, runs), color in zip(by_network.items(), NETWORKS, strict=False):
        calls = [(r["network_calls"] + r["teacher_calls"]) / 1000 for r in runs]
        axis.plot([r["steps"] for r in runs], calls, "o-", color=color, label=_short(name))
    axis.set(title="Calls grow with the steps", xlabel="steps of the solver", ylabel="thousand calls of a fit", ylim=0)
    axis.legend(fontsize=9)
    return figure


def _samples(runs: Any) -> Figure:
    """Draws a solver's error on unseen starts by the samples that it was fitted to."""
    figure, axis = _small()
    for steps, color in ((5, PEER), (10, OURS)):
        own = [r for r in runs if r["steps"] == steps]
        axis.plot([r["samples"] for r in own], [r["error"] for r in own], "o-", color=color, label=f"{steps} steps")
    axis.set(title="More samples help a solver of many steps most", ylabel="error on unseen starts")
    axis.set(xlabel="samples (256: with a history of six)")
    axis.set(xscale="log", yscale="log")
    axis.legend(fontsize=9)
    _label(axis.xaxis, sorted({r["samples"] for r in runs}))
    _label(axis.yaxis, [0.002, 0.005, 0.01, 0.02, 0.05, 0.1])
    return figure


def _size(runs: Any) -> Figure:
    """Draws a call's time in a fit beside that in sampling, by the size of the network."""
    figure, axis = _small()
    places = np.arange(len(runs))
    axis.bar(places - 0.2, [r["microseconds_per_call"] / 1e3 for r in runs], 0.38, color=PEER, label="sampling")
    fitting = [r["seconds"] / r["network_calls"] * 1e3 for r in runs]
    axis.bar(places + 0.2, fitting, 0.38, color=OURS, label="fitting")
    axis.set_xticks(places, [f"{r['parameters'] / 1e6:.1f} M" for r in runs])
    axis.set(
        title="A fit's calls take about twice sampling's at most",
        xlabel="parameters of the network",
        ylabel="ms per call and sample",
    )
    axis.legend(fontsize=9)
    return figure


def _memory(peaks: Any) -> Figure:
    """Draws the peak memory of sampling and of both ways of fitting."""
    figure, axis = _small()
    ways = {"sample": "sampling", "gauss-newton": "fit, Gauss-\nNewton", "adam": "fit, Adam"}
    megabytes = [(peaks[way] - peaks["nothing"]) / 2**20 for way in ways]
    axis.bar(list(ways.values()), megabytes, 0.55, color=[PEER, OURS, PUBLISHED])
    for place, value in enumerate(megabytes):
        axis.text(place, value, f"{value:.0f}", ha="center", va="bottom", fontsize=10)
    axis.margins(y=0.12)
    axis.set(title="Memory without and with backpropagation", ylabel="MiB beside the program")
    return figure


def _overhead(found: Any) -> Figure:
    """Draws time per step outside the network as a part of ComfyUI's iPNDM's."""
    figure, axis = plt.subplots(figsize=(8, 3), layout="constrained")
    samplers = {
        "dyweight, history 3": ("DyWeight, history 3", OURS, 1.0),
        "dyweight, history 6": ("history 6", OURS, 0.55),
        "ds_flow-sit, whole history": ("DS-Solver", SEARCHED, 1.0),
        "euler": ("Euler of k-diffusion", PEER, 1.0),
    }
    for i, (name, (label, color, alpha)) in enumerate(samplers.items()):
        ratios = [times[name]["seconds"] / times["ipndm"]["seconds"] for times in found.values()]
        axis.bar(np.arange(len(found)) + 0.21 * (i - 1.5), ratios, 0.19, color=color, alpha=alpha, label=label)
    axis.axhline(1, color=BOUND, lw=1, ls="--")
    axis.text(len(found) - 0.55, 1.03, "iPNDM of ComfyUI", ha="right", fontsize=10)
    axis.set_xticks(range(len(found)), [label.replace(" ", "\n") for label in found], fontsize=9)
    axis.set(
        ylabel="time per step beside\nthe network (iPNDM = 1)", title="A learned step costs less than one of iPNDM"
    )
    figure.legend(loc="outside lower center", ncols=4, fontsize=10)
    return figure


def _recipe(found: Any) -> Figure:
    """Draws the calls of both ways to a solver of the same error, the teacher's apart."""
    figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
    labels = []
    for row, (newton, recipe) in enumerate(found):
        for place, run, color in ((row - 0.2, newton, OURS), (row + 0.2, recipe, PEER)):
            own = run["network_calls"] - run["teacher_calls"]
            axis.barh(place, own / 1000, 0.36, color=color)
            axis.barh(place, run["teacher_calls"] / 1000, 0.36, left=own / 1000, color=color, alpha=0.4)
            text = f"{own / 1000:.0f} + {run['teacher_calls'] / 1000:.0f} for the teacher: error {run['error']:.4f}"
            beginning = own if run is recipe else run["network_calls"]  # of a long bar on its pale part
            axis.text(beginning / 1000 + 8, place, text, va="center", fontsize=9.5, color=BOUND)
        labels.append(f"solver of\n{newton['steps']} calls")
    axis.set_yticks(range(len(labels)), labels)
    axis.set(xlabel="thousand network calls of the fit (a backward pass as two)")
    axis.set_title("As near as the papers' recipe, or within 2.5 %, for a fraction of the calls")
    axis.barh([0], [0], color=OURS, label="Gauss-Newton, no backpropagation")
    axis.barh([0], [0], color=PEER, label="the papers' recipe, Adam")
    figure.legend(loc="outside lower center", ncols=2, fontsize=10)
    axis.invert_yaxis()
    return figure


def pairs(found: Any) -> list[tuple[Any, Any]]:
    """Returns each Gauss-Newton fit with the best of the recipe's runs for as many steps, where there is one."""
    recipes = [run for run in found if run["way"] == "recipe"]
    newtons = [run for run in found if run["way"] == "gauss-newton"]
    beside = [(newton, [run for run in recipes if run["steps"] == newton["steps"]]) for newton in newtons]
    return [(newton, min(runs, key=itemgetter("error"))) for newton, runs in beside if runs]
