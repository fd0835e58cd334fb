"""Contact sheets and plots: letters in the font, columns wide enough for captions, boxes that hold refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from learned_solvers.samplers.text import to_ascii
from learned_solvers.training.comparison.canvas import Canvas
from learned_solvers.training.comparison.measure import Result
from learned_solvers.training.comparison.plot import draw_errors
from learned_solvers.training.comparison.sheet import Cell, Head, draw_results, draw_sheet

RED, GREEN = torch.eye(3)[:2].view(2, 3, 1, 1)


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("dyweight_sd15: 6 steps (7.5)", "dyweight_sd15: 6 steps (7.5)"),
        ("Käfer, Cafe\u0301", "Kafer, Cafe"),  # the second accent as macOS writes it
        ("größer, 8 m² …", "gro?er, 8 m2 ..."),
        ("中文\u200b\U0001f600.safetensors", "????.safetensors"),
    ],
)
def test_a_text_is_drawn_in_letters_of_pillows_font(text, drawn):
    assert to_ascii(text) == drawn


def test_a_long_text_is_drawn_smaller_then_cut():
    widths = []
    for text in ("short", "dyweight_größer_" * 2, "dyweight_größer_" * 20):
        canvas = Canvas(260, 30)
        canvas.text(5, 15, text, 15, width=250)
        widths.append(np.flatnonzero((np.asarray(canvas.reduced()) < 200).all(-1).any(0))[-1])
    assert widths[0] < 60 and all(200 < width < 256 for width in widths[1:])


def sheet(height, width, caption="error 0.1234"):
    """Pixels of a sheet with a red picture and a green one, [H, W, 3]."""
    cells = [Cell(colour.expand(3, height, width), caption) for colour in (RED, GREEN)]
    heads = [Head("euler/simple"), Head("dyweight_sd15", "learned", learned=True)]
    return np.asarray(draw_sheet("Title", heads, [Head()], [cells]))


@pytest.mark.parametrize(
    ("size", "width", "column"),
    [((512, 64), 32, 75), ((512, 512), 256, 256), ((150, 75), 75, 75), ((8, 8), 256, 256)],
)
def test_a_column_is_wide_enough_for_captions(size, width, column):
    drawn = sheet(*size)
    columns = [np.flatnonzero((drawn == colour).all(-1).any(0)) for colour in ((255, 0, 0), (0, 255, 0))]
    assert [(x[0], len(x)) for x in columns] == [(16, width), (16 + column + 8, width)]
    assert drawn.shape[1] == 16 + 2 * column + 8 + 16
    below = drawn[90 + width * size[0] // size[1] :]
    assert (below < 200).any(), "no caption"
    assert not np.array_equal(drawn, sheet(*size, "error 0.1235")), "a cut caption: the last digit differs"


def test_a_long_refusal_stays_within_its_box():
    cells = [Cell(torch.ones(3, 128, 256)), Cell(None, 40 * "no such step count ")]
    drawn = np.asarray(draw_sheet("", [Head(), Head()], [Head()], [cells]))[:, 16 + 256 + 8 :]
    rows, columns = (np.flatnonzero((drawn < 170).all(-1).any(axis)) for axis in (1, 0))  # letters; the box is lighter
    assert 46 < rows[0] < rows[-1] < 46 + 128 and len(rows) > 50 and columns[-1] < 256


def test_results_are_rows_with_the_teacher_first():
    ends = [torch.full((2, 1, 4, 4), value) for value in (0.0, 1.0)]
    results = [Result(9, 9, "heun", "", ends=ends[0]), Result(4, 4, "euler", "karras", errors=(0.1,), ends=ends[1])]
    drawn = np.asarray(draw_results("Title", results, lambda states: states, side=16).convert("L"))
    pictures = drawn[:, -16 - 2 * 16 - 8 : -16]
    assert (pictures[46:62, :16] == 0).all() and (pictures[46:62, 24:] == 0).all()
    assert (pictures[70:86] == 255).all() and (drawn[46:62, : -16 - 2 * 16 - 8] < 100).any()


@pytest.mark.parametrize("errors", [{3: 0.2, 4: 0.1, 6: 0.002}, {5: 0.1}, {5: float("nan")}])
def test_errors_of_any_range_are_drawn(errors):
    results = [Result(n, n, name, "g", name == "a", (e,)) for n, e in errors.items() for name in ("a", "euler")]
    drawn = draw_errors("Error to a 59-call teacher", results)
    assert drawn.size == (800, 460) and len(drawn.convert("L").getcolors(256) or []) > 20
