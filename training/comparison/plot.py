"""The plot of a comparison: error to the teacher against network calls."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from .measure import Row

__all__ = ["save_plot"]

_PEERS = 4  # peers that have a line of their own, more where another number of calls has another best one
_OURS = ("#d62728", "#e8820e", "#8e3bb0")
_PEER_COLOURS = ("#1f4e79", "#4a86b8", "#7a7a7a", "#ababab", "#2f8f83", "#7fb7ae")


def save_plot(path: Path, title: str, rows: Sequence[Row], peer: str) -> None:
    """Writes a PNG, 800 pixels wide: ours thick, the best peers thin, every name beside the end of its line.

    Args:
        path: PNG file.
        title: What was measured, on which model.
        rows: The comparison.
        peer: What to call the best peer where the title says how much closer ours come.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.6), dpi=100)
    labels = _draw_lines(axes, rows)
    _scale(axes, sorted({row.calls for row in rows}))
    _label_ends(axes, labels)
    message = _message(rows, peer)
    axes.set_title(f"{message}\n{title}" if message else title, loc="left", fontsize=11)
    figure.subplots_adjust(left=0.1, right=0.76, top=0.88, bottom=0.12)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)


def _draw_lines(axes: Any, rows: Sequence[Row]) -> list[tuple[float, str, str]]:
    """Returns the last error, the name and the colour of every line, after drawing them."""
    lines = _lines(rows)
    names = sorted(lines, key=lambda name: _mean_rank(name, rows))
    ours, peers = [name for name in names if lines[name][0].ours], _drawn_peers(names, lines)
    colours = dict(zip(peers, cycle(_PEER_COLOURS), strict=False)) | dict(zip(ours, cycle(_OURS), strict=False))
    labels: list[tuple[float, str, str]] = []
    for name, colour in colours.items():
        own = lines[name]
        marker, width, order = (7, 3.5, 3) if name in ours else (4, 1.4, 2)
        x, y = [row.used for row in own], [row.error for row in own]
        axes.plot(x, y, "o-", color=colour, markersize=marker, linewidth=width, zorder=order)
        label = name.replace("_", " ") if name in ours else name
        labels.append((own[-1].error, label, colour))
    return labels


def _drawn_peers(names: Sequence[str], lines: dict[str, list[Row]]) -> list[str]:
    """Returns the best peer of every number of calls, with which the title compares ours, and those best on average."""
    peers = [name for name in names if not lines[name][0].ours]
    best: dict[int, Row] = {}
    for row in (row for name in peers for row in lines[name]):
        best[row.calls] = min(row, best.get(row.calls, row), key=lambda row: row.error)
    needed = {row.method for row in best.values()}
    others = [name for name in peers if name not in needed][: max(0, _PEERS - len(needed))]
    return [name for name in peers if name in needed or name in others]


def _scale(axes: Any, calls: Sequence[int]) -> None:
    """Gives the axes plain numbers, a grid and names."""
    from matplotlib import ticker

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    low, high = axes.get_ylim()
    marks = (factor * 10.0**power for power in range(-6, 3) for factor in (1, 2, 3, 5, 7))
    axes.set_yticks([mark for mark in marks if low <= mark <= high])
    axes.set_xticks(calls)
    axes.set_xlim(calls[0] - 0.15, calls[-1] + 0.15)
    axes.set_xlabel("network calls")
    axes.set_ylabel("error to the teacher (RMSE)")
    axes.grid(True, color="#e6e6e6")
    axes.spines[["top", "right"]].set_visible(False)


def _message(rows: Sequence[Row], peer: str) -> str:
    """Returns what the plot shows where ours come closer than every peer at each number of calls, else nothing."""
    ratios = []
    for calls in {row.calls for row in rows if row.ours}:
        errors = [[row.error for row in rows if row.calls == calls and row.ours == ours] for ours in (True, False)]
        if errors[1]:
            ratios.append(min(errors[1]) / min(errors[0]))
    if not ratios or min(ratios) < 1:
        return ""
    return f"{min(ratios):.1f} to {max(ratios):.1f} times closer to the teacher than {peer}"


def _lines(rows: Sequence[Row]) -> dict[str, list[Row]]:
    lines: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.calls):
        if row.error < float("inf") and row.used == row.calls:  # an unused call would be drawn twice
            lines.setdefault(row.method, []).append(row)
    return lines


def _mean_rank(name: str, rows: Sequence[Row]) -> float:
    """Returns the mean place of a method among all, over the numbers of calls."""
    places = []
    for calls in {row.calls for row in rows}:
        order = [row.method for row in sorted((r for r in rows if r.calls == calls), key=lambda row: row.error)]
        places.append(order.index(name) if name in order else len(order))
    return sum(places) / len(places)


def _label_ends(axes: Any, labels: list[tuple[float, str, str]]) -> None:
    """Writes names to the right of the plot at the height of their lines' ends, moved apart where they would touch."""
    heights = sorted(((float(axes.transAxes.inverted().transform(axes.transData.transform((0, y)))[1]), name, colour)
                      for y, name, colour in labels), reverse=True)  # fmt: skip
    last = 2.0
    for height, name, colour in heights:
        last = min(height, last - 0.06)
        bold = "bold" if colour in _OURS else "normal"
        axes.text(1.02, last, name, color=colour, transform=axes.transAxes, va="center", fontsize=10.5, fontweight=bold)
