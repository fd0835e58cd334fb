"""An image of a solver's numbers: coefficients, noise levels, and the length of each step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..samplers import SolverTable

if TYPE_CHECKING:
    from ..training.comparison.canvas import Canvas

__all__ = ["draw_solver"]

_WIDTH, _HEIGHT, _AXIS = 336, 300, 44  # of a panel's area, and of the numbers to its left
_PANEL, _ROW, _MARGIN, _TITLE = 444, 396, 30, 60  # from panel to panel, from row to row


def draw_solver(title: str, rows: Sequence[tuple[SolverTable, Tensor]], scheduler: str) -> Any:
    """A PIL image with three panels per table: weights of past calls, noise levels, sums of the weights.

    Args:
        title: Of the image.
        rows: Tables, each with a stock schedule's noise levels for as many calls, shape [N + 1].
        scheduler: Name of the stock schedule.
    """
    from ..training.comparison.canvas import Canvas

    canvas = Canvas(3 * _PANEL, _TITLE + len(rows) * _ROW, fine=2)
    canvas.text(_MARGIN, 34, title, 22, canvas.INK, width=3 * _PANEL - 2 * _MARGIN)
    for r, (table, stock) in enumerate(rows):
        heads = (
            f"{table.nfe} model calls: weights of past calls",
            f"noise levels, and {scheduler}",
            "how far each step goes",
        )
        panels = [canvas.at(_MARGIN + _AXIS + k * _PANEL, _TITLE + r * _ROW + 48) for k in range(3)]
        for panel, head in zip(panels, heads, strict=True):
            panel.text(-_AXIS, -24, head, 16, canvas.INK, width=_PANEL - _MARGIN)
        # In units of the step: a row that sums to 1 goes exactly to the next level.
        unit = table.levels.diff() if table.entry == "derivative" else 1 - table.scale
        weights = table.coeffs / unit[:, None]
        _draw_weights(panels[0], weights)
        _draw_levels(panels[1], table, stock, scheduler)
        _draw_sums(panels[2], weights.sum(1).tolist())
    return canvas.reduced()


def _draw_weights(panel: Canvas, weights: Tensor) -> None:
    """A cell per coefficient: row = step, column = weighted call; blue if positive, orange if negative."""
    size, strongest = _HEIGHT / len(weights), max(1.0, float(weights.abs().max()))
    for i, row in enumerate(weights.tolist()):
        panel.text(-6, (i + 0.5) * size, f"{i + 1}", anchor="rm")
        panel.text((i + 0.5) * size, _HEIGHT + 12, f"{i + 1}", anchor="mm")
        for j, value in enumerate(row[: i + 1]):
            tone = math.sqrt(abs(value) / strongest)
            panel.box(j * size, i * size, size - 1, size - 1, panel.BLUE if value > 0 else panel.ORANGE, tone)
            if size >= 22 and abs(value) >= 0.005:
                ink = "#ffffff" if tone > 0.62 else panel.INK
                panel.text((j + 0.5) * size, (i + 0.5) * size, f"{value:.2f}", min(16, size / 3), ink, "mm")
    panel.text(0, _HEIGHT + 34, "row: step, column: call")


def _draw_levels(panel: Canvas, table: SolverTable, stock: Tensor, scheduler: str) -> None:
    """The noise levels by step, with model calls as rings; logarithmic if they span decades."""
    positive = [level for level in [*table.levels.tolist(), *stock.tolist(), *table.sigmas.tolist()] if level > 0]
    low, high = min(positive), max(positive)
    logarithmic = high / low > 100 and high > 2
    height = panel.axis(_WIDTH, _HEIGHT, low * 0.6 if logarithmic else 0.0, high, logarithmic)
    for levels, colour, width in ((stock, panel.GREY, 1.5), (table.levels, panel.BLUE, 2.5)):
        columns = [8 + (_WIDTH - 16) * i / (len(levels) - 1) for i in range(len(levels))]
        points = [*zip(columns, map(height, levels.tolist()), strict=True)]
        panel.line(points, colour, width)
    for x, y in points:  # of the table
        panel.disc(x, y, 4, panel.BLUE)
    for i, level in enumerate(table.sigmas.tolist()):
        panel.text(columns[i], _HEIGHT + 12, f"{i + 1}", anchor="mm")
        if i > 0 or not table.analytic_first:
            panel.disc(columns[i], height(level), 8, outline=panel.ORANGE)
    legend = (panel.BLUE, "state", 0), (panel.ORANGE, "model called at", 62), (panel.GREY, scheduler, 190)
    for colour, text, x in legend:
        panel.box(x, _HEIGHT + 29, 10, 10, colour)
        panel.text(x + 15, _HEIGHT + 34, text, width=_WIDTH - 205)


def _draw_sums(panel: Canvas, sums: Sequence[float]) -> None:
    """The sum of each row as a bar: 1 reaches the next level, more overshoots, less falls short."""
    height, stride = panel.axis(_WIDTH, _HEIGHT, min(0.0, *sums), max(1.2, *sums)), _WIDTH / len(sums)
    for i, value in enumerate(sums):
        x, top, bottom = (i + 0.5) * stride, height(max(value, 0.0)), height(min(value, 0.0))
        colour = panel.BLUE if value >= 0 else panel.ORANGE
        panel.box(x - 0.32 * stride, top, 0.64 * stride, max(1.0, bottom - top), colour)
        panel.text(x, top + 14, f"{value:.2f}", min(13, stride / 3.6), "#ffffff", "mm")
        panel.text(x, _HEIGHT + 12, f"{i + 1}", anchor="mm")
    panel.line([(0, height(1)), (_WIDTH, height(1))], panel.INK, 1.5)
    panel.text(0, _HEIGHT + 34, "sum of the weights; 1 reaches the next level")
