"""An EDM model of drawn shapes, conditioned on captions of four words, with guidance.

The data are drawn here: a caption such as "small red disc, left", and an image of it on a background of random colour.
"""

from __future__ import annotations

import colorsys

import numpy as np
import torch
from learned_solvers.samplers import EDMNoise
from PIL import Image, ImageDraw
from torch import Tensor

from .unet import GuidedDenoiser

__all__ = ["NOISE", "VOCABULARY", "ShapesDenoiser", "conditioning", "draw", "load_pictures"]

NOISE = EDMNoise(0.002, 80.0)
SIGMA_DATA = 0.5
_WORDS = (
    ("small", "large"),
    ("red", "yellow", "green", "blue", "violet"),
    ("disc", "square", "triangle", "ring"),
    ("left", "middle", "right"),
)
VOCABULARY = ("", *(word for words in _WORDS for word in words))
_FIRST = np.cumsum([1, *(len(words) for words in _WORDS[:-1])])  # token of each slot's first word


def draw(tokens: Tensor, generator: np.random.Generator) -> Tensor:
    """An image [3, 16, 16] in [-1, 1] for a caption [4], drawn at four times the size and reduced."""
    size, colour, form, place = (int(token) - first for token, first in zip(tokens, _FIRST, strict=True))
    ground = np.array(colorsys.hsv_to_rgb(generator.random(), 0.3 * generator.random(), 0.2 + 0.7 * generator.random()))
    hue = (colour / 5 + generator.normal(0, 0.015)) % 1
    ink = colorsys.hsv_to_rgb(hue, 0.75 + 0.25 * generator.random(), 0.7 + 0.3 * generator.random())
    canvas = Image.new("RGB", (64, 64), tuple(int(255 * c) for c in ground))
    radius = (10, 16)[size] + generator.normal(0, 1.2)
    x, y = (18, 32, 46)[place] + generator.normal(0, 2.5), 32 + generator.normal(0, 6)
    box = (x - radius, y - radius, x + radius, y + radius)
    fill = tuple(int(255 * c) for c in ink)
    pen = ImageDraw.Draw(canvas)
    if form == 0:
        pen.ellipse(box, fill=fill)
    elif form == 1:
        pen.rectangle(box, fill=fill)
    elif form == 2:
        pen.polygon([(x, box[1]), (box[0], box[3]), (box[2], box[3])], fill=fill)
    else:
        pen.ellipse(box, outline=fill, width=int(0.45 * radius))
    pixels = np.asarray(canvas.reduce(4), dtype=np.float32) / 127.5 - 1
    shade = generator.normal(0, 0.15, 2)
    slope = np.linspace(-1, 1, 16)
    light = shade[0] * slope[:, None, None] + shade[1] * slope[None, :, None]
    return torch.from_numpy(np.clip(pixels + light, -1, 1).astype(np.float32)).permute(2, 0, 1)


def load_pictures(count: int = 40_000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images [S, 3, 16, 16] in [-1, 1] and their captions [S, 4]."""
    tokens = conditioning(count, torch.Generator().manual_seed(seed))
    generator = np.random.default_rng(seed)
    return torch.stack([draw(caption, generator) for caption in tokens]), tokens


def conditioning(count: int, generator: torch.Generator) -> Tensor:
    """Random captions as tokens [S, 4]."""
    slots = [
        int(first) + torch.randint(0, len(words), (count,), generator=generator)
        for first, words in zip(_FIRST, _WORDS, strict=True)
    ]
    return torch.stack(slots, dim=1)


class ShapesDenoiser(GuidedDenoiser):
    """EDM's preconditioning (arXiv 2206.00364, table 1); tokens are captions [B, 4]."""

    def __init__(self) -> None:
        super().__init__(len(VOCABULARY))

    def denoised(self, x: Tensor, sigma: Tensor, tokens: Tensor) -> Tensor:  # noqa: D102 - see GuidedDenoiser
        s = sigma.view(-1, 1, 1, 1)
        total = (s.square() + SIGMA_DATA**2).sqrt()
        out = self.network((x / total).to(x.dtype), sigma.log() / 4, tokens)
        return (x * (SIGMA_DATA / total).square() + out * (s * SIGMA_DATA / total)).to(x.dtype)

    def loss(self, x0: Tensor, tokens: Tensor) -> Tensor:
        """EDM's loss, in which the network's output has unit weight at every level."""
        sigma = (1.2 * torch.randn(len(x0)) - 1.2).exp()
        s = sigma.view(-1, 1, 1, 1)
        weight = (s.square() + SIGMA_DATA**2) / (s * SIGMA_DATA).square()
        return (weight * (self.denoised(x0 + s * torch.randn_like(x0), sigma, tokens) - x0).square()).mean()
