"""Contact sheets and plots: letters that the font has, columns that captions fit under, boxes that hold refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from learned_solvers.samplers.text import to_ascii
from learned_solvers.training.comparison.canvas import Canvas
from learned_solvers.training.comparison.measure import Result
from learned_solvers.training.comparison.plot import draw_errors
from learned_solvers.training.comparison.sheet import Cell, Head, draw_results, draw_sheet

RED, GREEN = torch.tensor([1.0, 0, 0]).view(3, 1, 1), torch.tensor([0, 1.0, 0]).view(3, 1, 1)


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("dyweight_sd15: 6 steps (7.5)", "dyweight_sd15: 6 steps (7.5)"),
        ("Käfer, Café", "Kafer, Cafe"),
        ("Cafe\u0301", "Cafe"),  # as macOS writes it
        ("größer, 8 m² …", "gro?er, 8 m2 ..."),
        ("中文.safetensors", "??.safetensors"),
        ("\u200b\U0001f600", "??"),
    ],
)
def test_a_text_is_drawn_in_letters_that_pillows_font_has(text, drawn):
    assert to_ascii(text) == drawn


def test_a_text_that_is_too_long_becomes_smaller_then_loses_its_end():
    widths = []
    for text in ("short", "dyweight_größer_" * 2, "dyweight_größer_" * 20):
        canvas = Canvas(260, 30)
        canvas.text(5, 15, text, 15, width=250)
        widths.append(np.flatnonzero((np.asarray(canvas.reduced()) < 200).all(-1).any(0))[-1])
    assert widths[0] < 60 and all(200 < width < 256 for width in widths[1:])


def sheet(height, width, caption="error 0.1234"):
    """Pixels of a sheet with a red picture and a green one, [H, W, 3]."""
    cells = [Cell(colour.expand(3, height, width), caption) for colour in (RED, GREEN)]
    heads = [Head("euler/simple"), Head("dyweight_sd15", "learned", ours=True)]
    return np.asarray(draw_sheet("Title", heads, [Head()], [cells]))


@pytest.mark.parametrize(
    ("size", "shown", "column"),
    [((512, 64), 32, 150), ((512, 256), 128, 150), ((512, 512), 256, 256), ((100, 50), 100, 150), ((8, 8), 256, 256)],
)
def test_a_narrow_picture_stands_in_a_column_that_captions_fit_under(size, shown, column):
    drawn = sheet(*size)
    places = [np.flatnonzero((drawn == colour).all(-1).any(0)) for colour in ((255, 0, 0), (0, 255, 0))]
    assert [(place[0], len(place)) for place in places] == [(16, shown), (16 + column + 8, shown)]
    assert drawn.shape[1] == 16 + 2 * column + 8 + 16
    below = drawn[90 + shown * size[0] // size[1] :]
    assert (below < 200).any(), "no caption"


def test_a_caption_under_a_narrow_picture_is_whole():
    """What is cut looks alike: these two differ in the last digit."""
    assert not np.array_equal(sheet(512, 64, "error 0.1234"), sheet(512, 64, "error 0.1235"))


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
def test_errors_are_drawn_whatever_their_range(errors):
    results = [Result(n, n, name, "g", name == "ours", (e,)) for n, e in errors.items() for name in ("ours", "euler")]
    drawn = draw_errors("Error to a 59-call teacher", results)
    assert drawn.size == (800, 460) and len(drawn.convert("L").getcolors(256) or []) > 20
