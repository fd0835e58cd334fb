"""A solver's numbers as a picture: coefficients, noise levels, how far each step goes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..samplers import SolverTable

if TYPE_CHECKING:
    from ..training.comparison.canvas import Canvas

__all__ = ["PlotRow", "draw_solver", "shares"]

_INK, _GREY, _FAINT, _BLUE, _ORANGE = "#1b1f24", "#68707a", "#dfe3e8", "#2563b8", "#d9622b"
_WIDTH, _HEIGHT, _LEFT, _AREA = 380, 300, 44, 336  # of a panel; of the numbers of its axis, and what is left
_GAP, _MARGIN, _TITLE, _ROW = 64, 30, 60, 396


@dataclass(frozen=True, eq=False)
class PlotRow:
    """One row of panels.

    Args:
        title: Of the row.
        table: The solver on a noise schedule.
        stock: Noise levels of a stock schedule with as many steps, shape [N + 1].
        scheduler: Its name.
    """

    title: str
    table: SolverTable
    stock: Tensor
    scheduler: str


def shares(table: SolverTable) -> Tensor:
    """The coefficients in units of the step, shape [N, N]: a row that sums to 1 goes as far as its levels say.

    For derivatives coeffs_ij / (levels_{i+1} - levels_i); for denoised entries coeffs_ij / (1 - scale_i).
    """
    steps = table.levels.diff() if table.entry == "derivative" else 1 - table.scale
    return table.coeffs / steps[:, None]


def draw_solver(title: str, rows: Sequence[PlotRow]) -> Any:
    """Draws three panels per row, a PIL picture: weights of past calls, noise levels, sums of the weights."""
    from ..training.comparison.canvas import Canvas

    width = 2 * _MARGIN + 3 * _WIDTH + 2 * _GAP
    canvas = Canvas(width, _TITLE + len(rows) * _ROW, fine=2)
    canvas.text(_MARGIN, 34, title, 22, _INK, width=width - 2 * _MARGIN)
    for r, row in enumerate(rows):
        top = _TITLE + r * _ROW
        canvas.line([(_MARGIN, top), (width - _MARGIN, top)], _FAINT)
        panels = [canvas.at(_MARGIN + k * (_WIDTH + _GAP), top + 48) for k in range(3)]
        heads = (f"{row.title}: weights of past calls", f"noise levels, and {row.scheduler}", "how far each step goes")
        for panel, head in zip(panels, heads, strict=True):
            panel.text(0, -24, head, 16, _INK, width=_WIDTH)
        _draw_weights(panels[0], shares(row.table))
        _draw_levels(panels[1].at(_LEFT, 0), row)
        _draw_sums(panels[2].at(_LEFT, 0), shares(row.table).sum(1).tolist())
    return canvas.reduced()


def _draw_weights(panel: Canvas, weights: Tensor) -> None:
    """Draws a cell per coefficient: row = step, column = the call that it weighs, blue above 0, orange below."""
    size, left = _HEIGHT / len(weights), 26
    strongest = max(1.0, float(weights.abs().max()))
    for i, row in enumerate(weights.tolist()):
        panel.text(left - 6, (i + 0.5) * size, f"{i + 1}", anchor="rm")
        panel.text(left + (i + 0.5) * size, _HEIGHT + 12, f"{i + 1}", anchor="mm")
        for j, value in enumerate(row[: i + 1]):
            tone = math.sqrt(abs(value) / strongest)
            panel.box(left + j * size, i * size, size - 1, size - 1, _BLUE if value > 0 else _ORANGE, tone)
            if size >= 22 and abs(value) >= 0.005:
                ink = "#ffffff" if tone > 0.62 else _INK
                panel.text(left + (j + 0.5) * size, (i + 0.5) * size, f"{value:.2f}", min(16, size / 3), ink, "mm")
    panel.text(left, _HEIGHT + 34, "row: step, column: call")


def _draw_levels(panel: Canvas, row: PlotRow) -> None:
    """Draws the levels over the steps, ours with the calls as rings; a log axis where they span decades."""
    levels, stock, called = (tensor.tolist() for tensor in (row.table.levels, row.stock, row.table.sigmas))
    positive = [level for level in [*levels, *stock, *called] if level > 0]
    low, high = min(positive), max(positive)
    logarithmic = high / low > 100 and high > 2
    height = panel.axis(_AREA, _HEIGHT, low * 0.6 if logarithmic else 0.0, high, logarithmic)

    def points(values: Sequence[float]) -> list[tuple[float, float]]:
        return [(8 + (_AREA - 16) * i / (len(values) - 1), height(value)) for i, value in enumerate(values)]

    panel.line(points(stock), _GREY, 1.5)
    panel.line(points(levels), _BLUE, 2.5)
    for x, y in points(levels):
        panel.disc(x, y, 4, _BLUE)
    for i, ((x, _), level) in enumerate(zip(points(levels), called, strict=False)):
        if i > 0 or not row.table.analytic_first:
            panel.disc(x, height(level), 8, outline=_ORANGE)
        panel.text(x, _HEIGHT + 12, f"{i + 1}", anchor="mm")
    for colour, text, x in ((_BLUE, "state", 0), (_ORANGE, "model called at", 62), (_GREY, row.scheduler, 190)):
        panel.box(x, _HEIGHT + 29, 10, 10, colour)
        panel.text(x + 15, _HEIGHT + 34, text, width=_AREA - 205)


def _draw_sums(panel: Canvas, sums: Sequence[float]) -> None:
    """Draws the sum of each row: 1 goes exactly to the next level, more overshoots, less falls short."""
    height = panel.axis(_AREA, _HEIGHT, min(0.0, *sums), max(1.2, *sums))
    stride = _AREA / len(sums)
    for i, value in enumerate(sums):
        x, top, bottom = (i + 0.5) * stride, height(max(value, 0.0)), height(min(value, 0.0))
        colour = _BLUE if value >= 0 else _ORANGE
        panel.box(x - 0.32 * stride, top, 0.64 * stride, max(1.0, bottom - top), colour, 0.85)
        if stride >= 24:
            panel.text(x, top + 14, f"{value:.2f}", min(13, stride / 3.6), "#ffffff", "mm")
        panel.text(x, _HEIGHT + 12, f"{i + 1}", anchor="mm")
    panel.line([(0, height(1)), (_AREA, height(1))], _INK, 1.5)
    panel.text(0, _HEIGHT + 34, "sum of the weights; 1: exactly to the next level")
