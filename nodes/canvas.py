"""What the drawings of the nodes share: colours, fonts, text that fits, and the way to an IMAGE."""

from __future__ import annotations

import textwrap
import unicodedata
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

__all__ = ["BLUE", "FAINT", "GREY", "INK", "ORANGE", "PAPER", "Canvas", "in_font"]

PAPER, INK, GREY, FAINT = "#ffffff", "#1b1f24", "#68707a", "#dfe3e8"
BLUE, ORANGE = "#2563b8", "#d9622b"
# Dashes and minus, times, micro, and letters that are no letter with an accent.
_INSTEAD = {
    "\u2011": "-",
    "\u00ad": "",
    "\u2013": "-",
    "\u2014": "-",
    "\u2212": "-",
    "\u00d7": "x",
    "\u00b5": "u",
    "\u03bc": "u",
    "ß": "ss",
    "→": "->",
    "ø": "o",
    "æ": "ae",
    "ł": "l",
    "Ł": "L",
    "đ": "d",
    "\u0131": "i",
}
_FINE = 2  # drawn at twice the size and reduced: smooth lines without another library


def in_font(text: str) -> str:
    """Returns a text in letters that Pillow's own font has: hardly more than ASCII, a crossed box for all others."""
    return "".join(map(_letter, unicodedata.normalize("NFC", text)))


@cache
def _letter(letter: str) -> str:
    if _is_drawn(letter):
        return letter
    plain = "".join(c for c in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(c))
    plain = _INSTEAD.get(letter, plain)
    return plain if all(map(_is_drawn, plain)) else "?"


@cache
def _is_drawn(letter: str) -> bool:
    return letter.isspace() or _pixels(letter) != _pixels("\uffff")


def _pixels(letter: str) -> bytes:
    picture = Image.new("L", (60, 60))
    ImageDraw.Draw(picture).text((10, 10), letter, 255, ImageFont.load_default(30))
    return picture.tobytes()


class Canvas:
    """A white picture that is drawn on in its own pixels.

    Args:
        width: In pixels.
        height: In pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width * _FINE, height * _FINE), PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def text(
        self, x: float, y: float, text: str, size: int = 15, colour: str = INK, anchor: str = "la", width: float = 0
    ) -> None:
        """Writes a line; with a width, as small as it must be to fit, then cut."""
        text = in_font(text)
        font = ImageFont.load_default(size * _FINE)
        while width and size > 10 and font.getlength(text) > width * _FINE:
            size -= 1
            font = ImageFont.load_default(size * _FINE)
        while width and len(text) > 2 and font.getlength(text) > width * _FINE:
            text = text.rstrip("…")[:-1] + "…"
        self.draw.text((x * _FINE, y * _FINE), text, colour, font, anchor=anchor)

    def paragraph(
        self, x: float, y: float, text: str, width: float, height: float, size: int = 13, colour: str = GREY
    ) -> None:
        """Writes text in lines of at most a width, as many as a height takes."""
        letters, lines = max(8, int(width / (0.55 * size))), max(1, int(height / (1.35 * size)))
        for i, line in enumerate(textwrap.wrap(text, letters, max_lines=lines, placeholder=" …")):
            self.text(x, y + i * 1.35 * size, line, size, colour, width=width)

    def line(self, points: list[tuple[float, float]], colour: str = INK, width: float = 1.0) -> None:
        """Draws a line through points."""
        self.draw.line([(x * _FINE, y * _FINE) for x, y in points], colour, round(width * _FINE), joint="curve")

    def box(
        self, x: float, y: float, width: float, height: float, fill: str | None, outline: str | None = None
    ) -> None:
        """Draws a filled rectangle, an outline, or both."""
        corners = [x * _FINE, y * _FINE, (x + width) * _FINE - 1, (y + height) * _FINE - 1]
        self.draw.rectangle(corners, fill, outline, _FINE)

    def dot(self, x: float, y: float, radius: float, fill: str, outline: str | None = None) -> None:
        """Draws a disc."""
        corners = [(x - radius) * _FINE, (y - radius) * _FINE, (x + radius) * _FINE, (y + radius) * _FINE]
        self.draw.ellipse(corners, fill, outline, _FINE)

    def picture(self, x: int, y: int, width: int, height: int, pixels: Tensor) -> None:
        """Pastes a picture [3, H, W] in [0, 1]; one that is smaller is enlarged without smoothing."""
        plain = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1).cpu().numpy()
        how = Image.Resampling.NEAREST if plain.shape[0] < height else Image.Resampling.LANCZOS
        self.image.paste(Image.fromarray(plain).resize((width * _FINE, height * _FINE), how), (x * _FINE, y * _FINE))

    def to_image(self) -> Tensor:
        """Returns a ComfyUI IMAGE, [1, H, W, 3] in [0, 1]."""
        size = (self.image.width // _FINE, self.image.height // _FINE)
        reduced = np.array(self.image.resize(size, Image.Resampling.BOX))
        return torch.from_numpy(reduced).float()[None] / 255
