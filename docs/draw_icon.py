"""Draws docs/icon.png, the pack's icon in ComfyUI's registry: a path from noise to a picture in four calls.

    python docs/draw_icon.py

Needs pillow. The registry takes at most 400x400 pixels, and shows it at 64.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

SIZE, SMOOTH = 400, 4  # pixels; drawn so many times larger, then reduced
BACK, LINE = "#171c2b", "#5b6b95"
CALLS = ("#8aa0ff", "#7fc4ff", "#6fe3c4", "#ffd166")  # from noise to picture
CORNERS = ((74, 74), (90, 318), (320, 316))  # of the curve: start, pull, end


def curve(t: float) -> tuple[float, float]:
    """Returns the point at t in [0, 1] of the quadratic Bezier curve through CORNERS, in pixels of the icon."""
    (x0, y0), (x1, y1), (x2, y2) = CORNERS
    a, b, c = (1 - t) ** 2, 2 * t * (1 - t), t**2
    return a * x0 + b * x1 + c * x2, a * y0 + b * y1 + c * y2


def draw() -> Image.Image:
    """Returns the icon."""
    image = Image.new("RGBA", (SIZE * SMOOTH,) * 2)
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle((0, 0, SIZE * SMOOTH - 1, SIZE * SMOOTH - 1), 80 * SMOOTH, fill=BACK)

    def disc(x: float, y: float, radius: float, colour: str) -> None:
        pen.ellipse([SMOOTH * v for v in (x - radius, y - radius, x + radius, y + radius)], fill=colour)

    for i in range(801):
        disc(*curve(i / 800), 13, LINE)
    for i, (t, colour) in enumerate(zip((0.0, 0.36, 0.67, 1.0), CALLS, strict=True)):
        disc(*curve(t), 34 + 6 * i, BACK)
        disc(*curve(t), 26 + 6 * i, colour)
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    draw().save(Path(__file__).with_name("icon.png"), optimize=True)
