"""A solver's numbers as a picture: coefficients, noise levels, how far each step goes. Drawn with PIL alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..samplers import SolverTable
from .canvas import BLUE, FAINT, GREY, INK, ORANGE, Canvas

__all__ = ["Sheet", "draw_sheets", "shares"]

_PANEL, _HEIGHT, _GAP, _MARGIN, _TITLE = 380, 300, 64, 30, 60


@dataclass(frozen=True, eq=False)
class Sheet:
    """What one row shows.

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
    """Returns the coefficients in units of the step, shape [N, N]: a row that sums to 1 goes as far as its levels say.

    For derivatives coeffs_ij / (levels_{i+1} - levels_i); for denoised entries coeffs_ij / (1 - scale_i).
    """
    whole = table.levels.diff() if table.history == "derivative" else 1 - table.scale
    return table.coeffs / whole[:, None]


def draw_sheets(title: str, sheets: Sequence[Sheet]) -> Tensor:
    """Returns an IMAGE [1, H, W, 3] with a row of three panels per sheet."""
    row = _HEIGHT + 96
    canvas = Canvas(2 * _MARGIN + 3 * _PANEL + 2 * _GAP, _TITLE + len(sheets) * row)
    canvas.text(_MARGIN, 20, title, 22, width=3 * _PANEL + 2 * _GAP)
    for r, sheet in enumerate(sheets):
        y = _TITLE + r * row
        canvas.line([(_MARGIN, y), (2 * _MARGIN + 3 * _PANEL + 2 * _GAP - _MARGIN, y)], FAINT)
        lefts = [_MARGIN + k * (_PANEL + _GAP) for k in range(3)]
        heads = (
            f"{sheet.title}: weights of past calls",
            f"noise levels, beside {sheet.scheduler}",
            "how far each step goes",
        )
        for x, head in zip(lefts, heads, strict=True):
            canvas.text(x, y + 14, head, 16, width=_PANEL)
        top = y + 48
        _heat_map(canvas, lefts[0], top, shares(sheet.table))
        _levels(canvas, lefts[1], top, sheet)
        _steps(canvas, lefts[2], top, sheet.table)
    return canvas.to_image()


def _heat_map(canvas: Canvas, x: float, y: float, weights: Tensor) -> None:
    """Draws a cell per coefficient: row = step, column = the call that it weighs, blue above 0, orange below."""
    n = len(weights)
    left, size = x + 26, min((_PANEL - 26) / n, _HEIGHT / n)
    strongest = max(1.0, float(weights.abs().max()))
    for i in range(n):
        canvas.text(left - 6, y + (i + 0.5) * size, f"{i + 1}", 13, GREY, "rm")
        for j in range(i + 1):
            value = float(weights[i, j])
            tone = math.sqrt(abs(value) / strongest)
            canvas.box(left + j * size, y + i * size, size - 1, size - 1, _blend(BLUE if value > 0 else ORANGE, tone))
            text = f"{value:.2f}" if abs(value) < 9.995 else f"{value:.1f}"
            if size >= 22 and abs(value) >= 0.005:
                ink = "#ffffff" if tone > 0.62 else INK
                middle = (left + (j + 0.5) * size, y + (i + 0.5) * size)
                canvas.text(*middle, text, min(16, int(size / 2.4)), ink, "mm", width=size - 3)
    for j in range(n):
        canvas.text(left + (j + 0.5) * size, y + n * size + 4, f"{j + 1}", 13, GREY, "ma")
    canvas.text(left, y + n * size + 22, "row: step, column: call", 13, GREY)


def _levels(canvas: Canvas, x: float, y: float, sheet: Sheet) -> None:
    """Draws the levels over the steps, ours with the calls as rings; a log axis where they span decades."""
    table, n = sheet.table, sheet.table.steps
    own, stock, called = (t.tolist() for t in (table.levels, sheet.stock, table.sigmas))
    positive = [v for v in [*own, *stock, *called] if v > 0]
    logarithmic = max(positive) / min(positive) > 100 and max(positive) > 2
    low, high = (min(positive) * 0.6, max(positive)) if logarithmic else (0.0, max(positive))

    def height(value: float) -> float:
        if logarithmic:
            return y + (1 - math.log(max(value, low) / low) / math.log(high / low)) * _HEIGHT
        return y + (1 - (value - low) / (high - low)) * _HEIGHT

    left, width = x + 44, _PANEL - 44
    for tick in _ticks(low, high, logarithmic):
        canvas.line([(left, height(tick)), (left + width, height(tick))], FAINT)
        canvas.text(left - 6, height(tick), f"{tick:g}", 13, GREY, "rm")

    def at(i: float) -> float:
        return left + 8 + (width - 16) * i / n

    canvas.line([(at(i * n / (len(stock) - 1)), height(v)) for i, v in enumerate(stock)], GREY, 1.5)
    canvas.line([(at(i), height(v)) for i, v in enumerate(own)], BLUE, 2.5)
    for i, value in enumerate(own):
        canvas.dot(at(i), height(value), 4, BLUE)
    for i, value in enumerate(called):
        if i > 0 or not table.analytic_first:
            _ring(canvas, at(i), height(value))
        canvas.text(at(i), y + _HEIGHT + 6, f"{i + 1}", 13, GREY, "ma")
    foot = y + _HEIGHT + 26
    for colour, text, offset in ((BLUE, "state", 0), (ORANGE, "model called at", 62), (GREY, sheet.scheduler, 190)):
        canvas.box(left + offset, foot + 4, 10, 10, colour)
        canvas.text(left + offset + 15, foot, text, 13, GREY, width=width - offset - 15)


def _ring(canvas: Canvas, x: float, y: float) -> None:
    points = [(x + 7 * math.cos(a / 16 * math.pi), y + 7 * math.sin(a / 16 * math.pi)) for a in range(33)]
    canvas.line(points, ORANGE, 2)


def _steps(canvas: Canvas, x: float, y: float, table: SolverTable) -> None:
    """Draws the sum of each row: 1 goes exactly to the next level, more overshoots, less falls short."""
    sums = _effective(table).tolist()
    low, high = min(0.0, *sums), max(1.2, *sums)
    left, width = x + 44, _PANEL - 44

    def height(value: float) -> float:
        return y + (high - value) / (high - low) * _HEIGHT

    for tick in _ticks(low, high, False):
        canvas.line([(left, height(tick)), (left + width, height(tick))], FAINT)
        canvas.text(left - 6, height(tick), f"{tick:g}", 13, GREY, "rm")
    slot = width / len(sums)
    for i, value in enumerate(sums):
        top, bottom = sorted((height(value), height(0)))
        bar = (left + i * slot + slot * 0.18, slot * 0.64)
        canvas.box(bar[0], top, bar[1], max(1.0, bottom - top), _blend(BLUE if value >= 0 else ORANGE, 0.85))
        canvas.text(bar[0] + bar[1] / 2, top + 8, f"{value:.2f}", 13, "#ffffff", "ma", width=bar[1])
        canvas.text(bar[0] + bar[1] / 2, y + _HEIGHT + 6, f"{i + 1}", 13, GREY, "ma")
    canvas.line([(left, height(1)), (left + width, height(1))], INK, 1.5)
    canvas.text(left, y + _HEIGHT + 26, "sum of the weights; 1: exactly to the next level", 13, GREY, width=width)


def _effective(table: SolverTable) -> Tensor:
    return shares(table).sum(1)


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    if logarithmic:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        return [10.0**p for p in powers if low <= 10.0**p <= high]
    step = 10 ** math.floor(math.log10(high - low))
    step = next(s for s in (step / 5, step / 2, step, 2 * step) if (high - low) / s <= 6)
    return [round(k * step, 10) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _blend(colour: str, part: float) -> str:
    """Returns a colour between white (0) and the given one (1)."""
    channels = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
    mixed = torch.tensor(channels).sub(255).mul(min(1.0, part)).add(255).round().int().tolist()
    return "#{:02x}{:02x}{:02x}".format(*mixed)
