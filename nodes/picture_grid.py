"""A grid of pictures for the eye to compare solvers: a column per solver, a row per start, a caption under each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .canvas import BLUE, FAINT, GREY, INK, Canvas

__all__ = ["Cell", "Column", "draw_grid"]

_GAP, _MARGIN, _TITLE, _HEAD, _CAPTION = 10, 18, 46, 44, 26
_LONGEST, _SHORTEST, _NARROWEST = 256, 192, 150


@dataclass(frozen=True, eq=False)
class Cell:
    """A picture [3, H, W] in [0, 1], and the words under it; None: there is none, and the words say why."""

    picture: Tensor | None
    caption: str


@dataclass(frozen=True)
class Column:
    """Name, a remark below it, and whether it is one of ours."""

    name: str
    remark: str = ""
    ours: bool = False


def draw_grid(title: str, columns: Sequence[Column], rows: Sequence[tuple[str, Sequence[Cell]]]) -> Tensor:
    """Returns the grid as an IMAGE [1, H, W, 3].

    Args:
        title: Written above.
        columns: Heads of the columns.
        rows: A label, may be empty, and a cell per column.
    """
    first = next(cell.picture for _, cells in rows for cell in cells if cell.picture is not None)
    shown, height = _size_of(first)
    width = max(shown, _NARROWEST)  # a caption has room under a narrow picture too
    left = _MARGIN + (70 if any(label for label, _ in rows) else 0)
    canvas = Canvas(
        left + len(columns) * (width + _GAP) - _GAP + _MARGIN,
        _TITLE + _HEAD + len(rows) * (height + _CAPTION + _GAP) + _MARGIN // 2,
    )
    canvas.text(_MARGIN, 14, title, 18, width=left + len(columns) * (width + _GAP) - 2 * _MARGIN)
    for k, column in enumerate(columns):
        x = left + k * (width + _GAP)
        canvas.text(x, _TITLE, column.name, 15, BLUE if column.ours else INK, width=width)
        canvas.text(x, _TITLE + 20, column.remark, 13, GREY, width=width)
    for r, (label, cells) in enumerate(rows):
        y = _TITLE + _HEAD + r * (height + _CAPTION + _GAP)
        canvas.text(_MARGIN, y + height / 2, label, 15, GREY, "lm", width=62)
        for k, (cell, column) in enumerate(zip(cells, columns, strict=True)):
            x = left + k * (width + _GAP)
            if cell.picture is None:
                canvas.box(x, y, width, height, None, FAINT)
                canvas.paragraph(x + 6, y + 6, cell.caption, width - 12, height - 12)
                continue
            canvas.picture(x, y, shown, height, cell.picture)
            canvas.text(x, y + height + 5, cell.caption, 14, BLUE if column.ours else GREY, width=width)
    return canvas.to_image()


def _size_of(picture: Tensor) -> tuple[int, int]:
    """Returns the width and height that a picture is shown at."""
    height, width = picture.shape[-2:]
    factor = min(_LONGEST / max(height, width), max(1.0, _SHORTEST / min(height, width)))
    if factor > 1:
        factor = max(1, int(factor))  # small pictures keep square pixels
    return max(1, round(width * factor)), max(1, round(height * factor))
