"""Figures from the results files, readable at the width of a README: one message each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from .fidelity import of_best_peer

__all__ = ["draw"]

OURS, SEARCHED, PEER, PUBLISHED, BOUND = "#d1495b", "#edae49", "#30638e", "#8d96a3", "#222222"
TITLES = {
    "digits": "digits\nflow, transformer", "patches": "photo patches\nVP/eps, U-Net",
    "shapes": "drawn shapes\nEDM, U-Net",
}  # fmt: skip
STYLE = {
    "font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110,
    "legend.frameon": False, "axes.titlesize": 11,
}  # fmt: skip


def draw(results: Path, figures: Path) -> None:
    """Writes a picture per results file that is there."""
    figures.mkdir(exist_ok=True)
    plt.style.use(STYLE)
    error = ("error", "error to the teacher (RMSE)", "Closest to the teacher at equal calls (guidance 3)")
    frechet = ("frechet", "Fréchet distance to the teacher", "Closest to the teacher's distribution (guidance 3)")
    drawn: dict[str, tuple[str, Callable[[Any], Figure]]] = {
        "error": ("fidelity", lambda r: _per_call(r, *error)),
        "frechet": ("fidelity", lambda r: _per_call(r, *frechet)),
        "closer": ("fidelity", _closer),
        "savings": ("savings", _savings),
        "generalisation": ("generalisation", _generalisation),
        "precision": ("precision", _precision),
        "overhead": ("overhead", _overhead),
        "recipe": ("recipe", _recipe),
    }
    for name, (source, make) in drawn.items():
        path = results / f"{source}.json"
        if path.exists():
            figure = make(json.loads(path.read_text()))
            figure.savefig(figures / f"{name}.png", bbox_inches="tight")
            plt.close(figure)
            print(f"written: {figures / f'{name}.png'}", flush=True)


def _per_call(results: Any, key: str, label: str, title: str) -> Figure:
    """Draws a measure against calls at guidance 3, a panel per network."""
    networks = {r["network"]: r["records"] for r in results["records"] if r["guidance"] == 3}
    figure, axes = plt.subplots(1, len(networks), figsize=(3.1 * len(networks), 3.7), layout="constrained")
    for axis, (name, records) in zip(np.atleast_1d(axes), networks.items(), strict=True):
        steps = [r["steps"] for r in records]
        axis.plot(
            steps,
            [of_best_peer(r, key) for r in records],
            "o-",
            color=PEER,
            label="best peer at its best grid",
        )
        published = [(r["steps"], min(p[key] for p in r["published"].values())) for r in records if r["published"]]
        if published:
            axis.plot(
                *zip(*published, strict=True), "v:", color=PUBLISHED, label="published tables, made for other models"
            )
        for family, color, shown in (("ds", SEARCHED, "DS, fitted"), ("dyweight", OURS, "DyWeight, fitted")):
            if family in records[0]["ours"]:
                axis.plot(steps, [r["ours"][family][key] for r in records], "s-", color=color, label=shown)
        if key == "error":
            axis.plot(
                steps, [r["ours"]["dyweight"]["span"] for r in records], "--", color=BOUND, lw=1, label="span bound"
            )
        axis.set(title=TITLES[name], yscale="log", xlabel="network calls")
        axis.xaxis.set(major_locator=FixedLocator(steps), minor_locator=NullLocator())
        if key == "error":
            _label_errors(axis, [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4])
        axis.grid(axis="y", alpha=0.3)
    first = np.atleast_1d(axes)[0]
    first.set_ylabel(label)
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=10)
    figure.suptitle(title, fontsize=13)
    return figure


def _label_errors(axis: Axes, errors: list[float]) -> None:
    """Puts these ticks alone on a logarithmic axis: its own are powers of ten, too few to read errors by."""
    axis.yaxis.set(
        major_locator=FixedLocator(errors),
        major_formatter=FixedFormatter([f"{error:g}" for error in errors]),
        minor_locator=NullLocator(),
    )


def _closer(results: Any) -> Figure:
    """Draws a heat map per network: the best peer's error over DyWeight's, by guidance and calls."""
    names = list(dict.fromkeys(r["network"] for r in results["records"]))
    figure, axes = plt.subplots(1, len(names), figsize=(3.1 * len(names), 2.6), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        rows = sorted((r for r in results["records"] if r["network"] == name), key=lambda r: r["guidance"])
        steps = [r["steps"] for r in rows[0]["records"]]
        _heat_map(
            axis,
            [[of_best_peer(r, "error") / r["ours"]["dyweight"]["error"] for r in row["records"]] for row in rows],
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
        axis.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=10, color=color)
    axis.set_xticks(range(len(columns)), columns, fontsize=9)
    axis.set_yticks(range(len(rows)), rows, fontsize=9)
    axis.spines[:].set_visible(False)


def _savings(results: Any) -> Figure:
    """Draws the calls that the best peer needs for our error at five."""
    figure, axis = plt.subplots(figsize=(7, 2.3), layout="constrained")
    records = results["records"]
    for row, record in enumerate(records):
        most = record["calls"] or max(map(int, record["peers"]))
        axis.barh(row, most, color=PEER, height=0.55)
        axis.barh(row, 5, color=OURS, height=0.55)
        text = f"{record['calls']} calls" if record["calls"] else f"more than {most} calls"
        axis.text(most + 0.15, row, text, va="center")
    axis.set_yticks(range(len(records)), [TITLES[r["network"]].partition("\n")[0] for r in records])
    axis.set(
        xlabel="network calls for the same error", title="What a fitted solver reaches in 5 calls takes the best peer …"
    )
    axis.invert_yaxis()
    return figure


def _generalisation(results: Any) -> Figure:
    """Draws a heat map per question: best peer's error over ours, where fitted against where used."""
    records = [r for r in results["records"] if "starts" not in r["what"]]
    figure, axes = plt.subplots(2, 3, figsize=(10.5, 6), layout="constrained")
    for axis, record in zip(axes.flat, records, strict=False):
        rows, columns = list(record["ratios"]), list(next(iter(record["ratios"].values())))
        _heat_map(axis, [[record["ratios"][row][column] for column in columns] for row in rows], rows, columns)
        axis.set(title=record["what"], xlabel="used", ylabel="fitted")
    for axis in list(axes.flat)[len(records) :]:
        axis.set_axis_off()
    figure.suptitle("Used elsewhere: the best peer's error / ours at 5 calls (above 1, blue: still ahead)", fontsize=13)
    return figure


def _precision(results: Any) -> Figure:
    """Draws a heat map per network: best peer's error over ours, both run on the copy in half precision."""
    names = list(dict.fromkeys(r["network"] for r in results["records"]))
    figure, axes = plt.subplots(1, len(names), figsize=(3.6 * len(names), 2.2), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        rows = [r for r in results["records"] if r["network"] == name]
        ratios = [[r["on_copy"]["peer"] / r["on_copy"]["ours"] for r in row["records"]] for row in rows]
        _heat_map(axis, ratios, [row["dtype"] for row in rows], [f"{r['steps']}" for r in rows[0]["records"]])
        axis.set(title=TITLES[name], xlabel="network calls")
    figure.suptitle("Fitted and run in half precision: the best peer's error / ours", fontsize=13)
    return figure


def _overhead(results: Any) -> Figure:
    """Draws time per step outside the network as a part of ComfyUI's iPNDM's."""
    (records,) = results["records"]
    figure, axis = plt.subplots(figsize=(8, 3), layout="constrained")
    samplers = {"dyweight, history 3": OURS, "ds_flow-sit, whole history": SEARCHED, "euler": PEER}
    shown = {
        "dyweight, history 3": "DyWeight",
        "ds_flow-sit, whole history": "DS-Solver",
        "euler": "Euler of k-diffusion",
    }
    for i, (name, color) in enumerate(samplers.items()):
        ratios = [sizes[name]["seconds"] / sizes["ipndm"]["seconds"] for sizes in records.values()]
        axis.bar(np.arange(len(records)) + 0.27 * (i - 1), ratios, 0.25, color=color, label=shown[name])
    axis.axhline(1, color=BOUND, lw=1, ls="--")
    axis.text(len(records) - 0.55, 1.03, "iPNDM of ComfyUI", ha="right", fontsize=10)
    axis.set_xticks(range(len(records)), [label.replace(" ", "\n") for label in records], fontsize=9)
    axis.set(ylabel="time per step\nbeside the network", title="A learned step costs less than one of iPNDM")
    axis.legend(ncols=3, fontsize=10)
    return figure


def _recipe(results: Any) -> Figure:
    """Draws the calls of a fit against the error that it reaches."""
    figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for newton in results["gauss_newton"]:
        recipe = min((r for r in results["recipe"] if r["steps"] == newton["steps"]), key=lambda r: r["error"])
        axis.plot(
            [newton["network_calls"], recipe["network_calls"]],
            [newton["error"], recipe["error"]],
            color="#cccccc",
            zorder=0,
        )
        axis.scatter(
            newton["network_calls"], newton["error"], color=OURS, s=60, label="Gauss-Newton, no backpropagation"
        )
        axis.scatter(recipe["network_calls"], recipe["error"], color=PEER, s=60, label="the papers' recipe, Adam")
        axis.annotate(
            f"{newton['steps']} calls", (newton["network_calls"], newton["error"]), (8, 6), textcoords="offset points"
        )
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="network calls of the fit, teacher included",
        ylabel="error of the solver",
        xlim=(2e4, 2e6),
    )
    _label_errors(axis, [0.01, 0.02, 0.05, 0.1])
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(handles[:2], labels[:2], fontsize=10, loc="center", bbox_to_anchor=(0.45, 0.7))
    axis.set_title("The same error at a twentieth of the calls")
    return figure
