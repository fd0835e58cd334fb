"""Labelled grids of pictures, for the eye to compare solvers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["Strip", "save_strips"]

Strip = tuple[str, str, Tensor]


def save_strips(path: Path, title: str, strips: Sequence[Strip], size: int = 64) -> None:
    """Writes rows of pictures, each with a name and a remark to its left.

    Args:
        path: PNG file.
        title: Shown above.
        strips: (name, remark, pictures [B, C, H, W] in [0, 1], C 1 or 3) per row, all with the same B.
        size: Height of a picture in the file; small pictures are enlarged without smoothing.
    """
    from PIL import Image, ImageDraw, ImageFont

    font, small = ImageFont.load_default(17), ImageFont.load_default(14)
    left, top, gap = 250, 44, 6
    aspect = strips[0][2].shape[-1] / strips[0][2].shape[-2]
    width, count = round(size * aspect), len(strips[0][2])
    canvas = Image.new("RGB", (left + count * (width + gap) + gap, top + len(strips) * (size + gap) + gap), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((gap + 4, 12), title, "black", font)
    for r, (name, remark, pictures) in enumerate(strips):
        y = top + r * (size + gap)
        draw.text((gap + 4, y + size // 2 - 20), name, "black", font)
        draw.text((gap + 4, y + size // 2 + 3), remark, "#555555", small)
        for k, picture in enumerate(pictures):
            tile = _tile(picture).resize((width, size), Image.Resampling.NEAREST)
            canvas.paste(tile, (left + k * (width + gap), y))
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path)


def _tile(picture: Tensor):  # noqa: ANN202 - PIL is imported where it is used
    from PIL import Image

    pixels = (picture.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8).expand(3, -1, -1)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
