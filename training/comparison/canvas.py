"""Text, lines and shapes drawn with Pillow, for contact sheets and plots."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor

from ...samplers.text import to_ascii

__all__ = ["Canvas", "text_width"]

_font = cache(ImageFont.load_default)


def text_width(text: str, size: float) -> float:
    """Width in pixels of a line of text."""
    return _font(size).getlength(to_ascii(text))


class Canvas:
    """A white picture with an origin; drawn at `fine` times its size and then reduced, for smooth lines."""

    INK, GREY, FAINT, BLUE, ORANGE = "#1b1f24", "#68707a", "#dfe3e8", "#2563b8", "#d9622b"

    def __init__(self, width: int, height: int, fine: int = 1) -> None:
        self.image = Image.new("RGB", (width * fine, height * fine), "white")
        self.draw, self.fine, self.left, self.top = ImageDraw.Draw(self.image), fine, 0, 0

    def at(self, left: int, top: int) -> Canvas:
        """The same picture with its origin moved by `left` and `top` pixels."""
        part = copy.copy(self)
        part.left, part.top = self.left + left, self.top + top
        return part

    def reduced(self) -> Image.Image:
        """The picture, reduced to its final size."""
        return self.image.reduce(self.fine)

    def _place(self, x: float, y: float) -> tuple[float, float]:
        return (self.left + x) * self.fine, (self.top + y) * self.fine

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 13,
        colour: str = GREY,
        anchor: str = "lm",
        width: float = math.inf,
    ) -> None:
        """Writes a line of text; if it is wider than `width`, in smaller letters, then without its end."""
        while size > 10 and text_width(text, size) > width:
            size -= 1
        while len(text) > 4 and text_width(text, size) > width:
            text = f"{text[:-4]}..."
        self.draw.text(self._place(x, y), to_ascii(text), colour, _font(size * self.fine), anchor=anchor)

    def line(self, points: Sequence[tuple[float, float]], colour: str = INK, width: float = 1.0) -> None:
        """Draws a line through points."""
        self.draw.line([self._place(x, y) for x, y in points], colour, round(width * self.fine), joint="curve")

    def box(self, x: float, y: float, width: float, height: float, colour: str, tone: float = 1.0) -> None:
        """Fills a rectangle with a colour, or with a tint of it: tone 0 is white."""
        fill = tuple(round(255 + (channel - 255) * min(1.0, tone)) for channel in ImageColor.getrgb(colour))
        right, bottom = self._place(x + width, y + height)
        self.draw.rectangle((*self._place(x, y), right - 1, bottom - 1), fill)

    def disc(self, x: float, y: float, radius: float, fill: str | None = None, outline: str | None = None) -> None:
        """Draws a filled disc or a ring."""
        corners = (*self._place(x - radius, y - radius), *self._place(x + radius, y + radius))
        self.draw.ellipse(corners, fill, outline, 2 * self.fine)

    def picture(self, x: int, y: int, width: int, height: int, picture: Tensor) -> None:
        """Pastes a picture [C, H, W] in [0, 1], C 1 or 3, resized; a smaller one is enlarged without smoothing."""
        pixels = (picture.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8).expand(3, -1, -1)
        how = Image.Resampling.NEAREST if pixels.shape[1] < height else Image.Resampling.LANCZOS
        self.image.paste(Image.fromarray(pixels.movedim(0, -1).numpy()).resize((width, height), how), (x, y))

    def axis(
        self, width: float, height: float, low: float, high: float, logarithmic: bool = False
    ) -> Callable[[float], float]:
        """Draws labelled grid lines at round values; returns the function from a value to its y coordinate."""
        scale: Callable[[float], float] = (lambda value: math.log(max(value, low))) if logarithmic else float

        def place(value: float) -> float:
            return (scale(high) - scale(value)) / (scale(high) - scale(low)) * height

        for value in _powers(low, high) if logarithmic else _multiples(low, high):
            self.line([(0, place(value)), (width, place(value))], self.FAINT)
            self.text(-6, place(value), f"{value:g}", anchor="rm")
        return place


def _powers(low: float, high: float) -> list[float]:
    factors = (1, 2, 3, 5, 7) if high / low < 100 else (1,)
    values = (factor * 10.0**power for power in range(math.floor(math.log10(low)), 4) for factor in factors)
    return [value for value in values if low <= value <= high]


def _multiples(low: float, high: float) -> list[float]:
    step = 10 ** math.floor(math.log10(high - low))
    step = next(s for s in (step / 5, step / 2, step, 2 * step) if (high - low) / s <= 6)
    return [round(k * step, 10) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
