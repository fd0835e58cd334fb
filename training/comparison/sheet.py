"""Contact sheets: the same starts sampled by several solvers, next to each other."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from .canvas import Canvas, text_width
from .measure import Result

__all__ = ["Cell", "Head", "draw_note", "draw_results", "draw_sheet"]

_GAP, _MARGIN, _TITLE_HEIGHT, _HEAD_HEIGHT, _CAPTION_HEIGHT = 8, 16, 46, 44, 24
# Largest widths of a title and of captions that are wider than the pictures, and of the row heads.
_TITLE_WIDTH, _CAPTION_WIDTH, _HEAD_WIDTH = 700, 150, 240


@dataclass(frozen=True)
class Head:
    """The name of a row or a column, with a remark below it; a learned solver's is blue."""

    name: str = ""
    remark: str = ""
    learned: bool = False


@dataclass(frozen=True, eq=False)
class Cell:
    """A picture [C, H, W] in [0, 1], C 1 or 3, and its caption; without a picture the caption fills its place."""

    picture: Tensor | None
    caption: str = ""


def draw_results(
    title: str, results: Sequence[Result], pictures: Callable[[Tensor], Tensor], side: int = 256
) -> Image.Image:
    """Draws a row of end states per result, the teacher's first; `pictures` decodes them to [B, C, H, W] in [0, 1]."""
    ends = [result.ends for result in results if result.ends is not None]
    decoded = pictures(torch.cat(ends)).split(len(ends[0]))
    rows = [Head(results[0].method, f"the teacher: {results[0].used} calls")]
    for result in results[1:]:
        grid = "" if result.learned else f" on {result.grid}"
        rows.append(Head(result.method, f"{result.used} calls{grid}: error {result.error:.3g}", result.learned))
    return draw_sheet(title, [Head()] * len(ends[0]), rows, [[Cell(p) for p in part] for part in decoded], side)


def draw_sheet(
    title: str, columns: Sequence[Head], rows: Sequence[Head], cells: Sequence[Sequence[Cell]], side: int = 256
) -> Image.Image:
    """Draws rows of cells with pictures of one size; heads and captions take space only if one of them has text.

    `side` is the longest side of a picture in pixels; a smaller picture is enlarged by a whole factor.
    """
    all_cells = [cell for row in cells for cell in row]
    width, height = _size(next(cell.picture for cell in all_cells if cell.picture is not None), side)
    caption_width = round(max(text_width(cell.caption, 14) for cell in all_cells))
    column_width = max(width, min(_CAPTION_WIDTH, caption_width))
    row_height = height + (_CAPTION_HEIGHT if caption_width else 0)
    widths = [text_width(text, size) for row in rows for text, size in ((row.name, 15), (row.remark, 13))]
    head_width = min(_HEAD_WIDTH, round(max(widths)))
    left = _MARGIN + (head_width + 2 * _GAP if head_width else 0)
    top = _TITLE_HEIGHT + (_HEAD_HEIGHT if any(column.name for column in columns) else 0)
    right, bottom = left + len(columns) * (column_width + _GAP) - _GAP, top + len(rows) * (row_height + _GAP) - _GAP
    right = max(right, _MARGIN + min(_TITLE_WIDTH, round(text_width(title, 18))))
    canvas = Canvas(right + _MARGIN, bottom + _MARGIN)
    canvas.text(_MARGIN, 26, title, 18, Canvas.INK, width=right - _MARGIN)
    for k, column in enumerate(columns):
        _write_head(canvas.at(left + k * (column_width + _GAP), _TITLE_HEIGHT + 20), column, column_width)
    for r, row in enumerate(rows):
        y = top + r * (row_height + _GAP)
        _write_head(canvas.at(_MARGIN, y + height // 2), row, head_width)
        for k, cell in enumerate(cells[r]):
            x = left + k * (column_width + _GAP)
            if cell.picture is None:
                _write_box(canvas.at(x, y), cell.caption, column_width, height)
            else:
                canvas.picture(x, y, width, height, cell.picture)
                colour = Canvas.BLUE if columns[k].learned or row.learned else Canvas.GREY
                canvas.text(x, y + height + 13, cell.caption, 14, colour, width=column_width)
    return canvas.reduced()


def draw_note(text: str) -> Image.Image:
    """Draws a line of text, in place of a sheet that cannot be drawn."""
    width = round(text_width(text, 15)) + 2 * _MARGIN
    canvas = Canvas(width, 2 * _MARGIN + 20)
    canvas.text(_MARGIN, _MARGIN + 10, text, 15, Canvas.INK, width=width - _MARGIN)
    return canvas.reduced()


def _size(picture: Tensor, side: int) -> tuple[int, int]:
    height, width = picture.shape[-2:]
    factor = side / max(height, width)
    factor = int(factor) if factor > 1 else factor
    return max(1, round(width * factor)), max(1, round(height * factor))


def _write_head(canvas: Canvas, head: Head, width: int) -> None:
    canvas.text(0, -10 if head.remark else 0, head.name, 15, Canvas.BLUE if head.learned else Canvas.INK, width=width)
    canvas.text(0, 10, head.remark, 13, width=width)


def _write_box(canvas: Canvas, text: str, width: int, height: int) -> None:
    """Writes wrapped text into an outlined box, cut to the lines that fit."""
    right, bottom = width - 1, height - 1
    canvas.line([(0, 0), (right, 0), (right, bottom), (0, bottom), (0, 0)], Canvas.FAINT)
    for i, line in enumerate(textwrap.wrap(text, width // 7, max_lines=max(1, height // 17 - 1), placeholder=" ...")):
        canvas.text(6, 14 + 17 * i, line, width=width - 12)
