"""Drawings of the nodes: letters that the font has, and columns that captions fit under."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import ImageFont


@pytest.fixture(scope="module")
def drawing():
    """Returns a function that imports a module of nodes/, without the package around it, which wants its host."""
    package = ModuleType("drawing")
    package.__path__ = [str(Path(__file__).resolve().parents[2] / "nodes")]
    sys.modules["drawing"] = package
    yield lambda name: import_module(f"drawing.{name}")
    for name in [name for name in sys.modules if name.partition(".")[0] == "drawing"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("dyweight_sd15: 6 steps (7.5)", "dyweight_sd15: 6 steps (7.5)"),
        ("Käfer, größer, Café", "Kafer, grosser, Cafe"),
        ("Cafe\u0301", "Cafe"),  # as macOS writes it
        ("1024\u00d7512 \u2013 3 µs … →", "1024x512 - 3 us … ->"),
        ("8 m²", "8 m2"),
        ("中文.safetensors", "??.safetensors"),
        ("\u200b\U0001f600", "??"),
        ("two\nlines\t", "two\nlines\t"),
    ],
)
def test_a_text_is_written_in_letters_that_the_font_has(drawing, text, drawn):
    font = ImageFont.load_default(30)
    box = bytes(font.getmask("\uffff"))
    assert drawing("canvas").in_font(text) == drawn
    assert all(bytes(font.getmask(letter)) != box for letter in drawn if not letter.isspace())


def test_a_letter_without_a_glyph_leaves_the_pixels_of_its_plain_one(drawing):
    pictures = []
    for text in ("größer \u2013 2\u00d7", "grosser - 2x"):
        canvas = drawing("canvas").Canvas(200, 30)
        canvas.text(5, 5, text, width=190)
        pictures.append(canvas.to_image())
    assert torch.equal(*pictures) and float(pictures[0].min()) < 0.5


def grid(drawing, height, width, caption="error 0.1234"):
    """Returns the pixels of a grid of one red picture beside a green one, [H, W, 3]."""
    grids = drawing("picture_grid")
    red, green = (torch.tensor(c).view(3, 1, 1).expand(3, height, width) for c in ((1.0, 0, 0), (0, 1.0, 0)))
    cells = [grids.Cell(red, caption), grids.Cell(green, caption)]
    drawn = grids.draw_grid("Title", [grids.Column("euler/simple"), grids.Column("ours", ours=True)], [("", cells)])
    return (drawn[0] * 255).round().numpy()


@pytest.mark.parametrize(
    ("size", "shown", "column"),
    [((512, 64), 32, 150), ((512, 256), 128, 150), ((512, 512), 256, 256), ((256, 512), 256, 256)],
)
def test_a_narrow_picture_stands_in_a_column_that_captions_fit_under(drawing, size, shown, column):
    drawn = grid(drawing, *size)
    places = [np.flatnonzero((drawn == colour).all(-1).any(0)) for colour in ((255, 0, 0), (0, 255, 0))]
    assert [(place[0], len(place)) for place in places] == [(18, shown), (18 + column + 10, shown)]
    assert drawn.shape[1] == 18 + 2 * column + 10 + 18
    below = drawn[90 + max(1, round(shown * size[0] / size[1])) :, :, :]
    assert (below < 200).any(), "no caption"


def test_a_long_refusal_stays_within_its_box(drawing):
    grids = drawing("picture_grid")
    refused = grids.Cell(None, 40 * "no such step count ")
    drawn = grids.draw_grid(
        "", [grids.Column(""), grids.Column("")], [("", [grids.Cell(torch.ones(3, 64, 256), ""), refused])]
    )
    dark = np.flatnonzero((drawn[0].numpy() < 0.7).all(-1).any(1))  # letters; the box is lighter
    assert 90 < dark[0] < dark[-1] < 90 + 64


def test_a_caption_under_a_narrow_picture_is_whole(drawing):
    """What is cut looks alike: these two differ in the last digit."""
    short, long = (grid(drawing, 512, 64, text) for text in ("error 0.1234", "error 0.1235"))
    assert not np.array_equal(short, long)
