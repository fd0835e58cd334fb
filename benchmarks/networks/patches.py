"""An eps model of photo patches: Stable Diffusion's noise levels, class-conditional, with guidance.

The data are 16x16 patches of scikit-learn's two sample photographs at three zooms; a class is a photograph at a zoom.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from learned_solvers.samplers import VPNoise
from PIL import Image
from torch import Tensor

from .unet import GuidedDenoiser

__all__ = ["CLASSES", "NOISE", "PatchesDenoiser", "conditioning", "load_pictures"]

NOISE = VPNoise.stable_diffusion()
CLASSES = 6
_ZOOMS = ((1.5, 2.5), (2.5, 4.5), (4.5, 8.0))  # photograph pixels per patch pixel
_BLUR = 0.1  # standard deviation of the noise added to patches, see `load_pictures`


def load_pictures(count: int = 60_000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Patches [S, 3, 16, 16], roughly in [-1, 1], and their tokens [S, 1], 1 to CLASSES.

    Random zooms, mirroring, lighting and a little noise keep the network from memorising two photographs. Otherwise its
    trajectories would turn sharply towards the memorised patches, unlike those of large models.
    """
    from sklearn.datasets import load_sample_images

    images: Any = load_sample_images()
    generator = np.random.default_rng(seed)
    pictures, tokens = [], []
    for i, image in enumerate(images.images):
        photograph = Image.fromarray(image)
        for j, zooms in enumerate(_ZOOMS):
            cuts = [_cut(photograph, generator.uniform(*zooms), generator) for _ in range(count // CLASSES)]
            pictures.append(torch.from_numpy(np.stack(cuts)).permute(0, 3, 1, 2))
            tokens.append(torch.full((len(cuts), 1), 1 + i * len(_ZOOMS) + j))
    return torch.cat(pictures).contiguous(), torch.cat(tokens)


def _cut(photograph: Image.Image, zoom: float, generator: np.random.Generator) -> np.ndarray:
    """A patch [16, 16, 3]: a random square of 16 * zoom pixels, randomly mirrored and lit."""
    side = 16 * zoom
    left, top = (generator.uniform(0, size - side) for size in photograph.size)
    patch = photograph.resize((16, 16), Image.Resampling.BOX, (left, top, left + side, top + side))
    pixels = np.asarray(patch, dtype=np.float32) / 127.5 - 1
    if generator.random() < 0.5:
        pixels = pixels[:, ::-1]
    light = generator.uniform(0.7, 1.1, 3) * pixels + generator.normal(0, 0.1)
    return (light + _BLUR * generator.standard_normal(pixels.shape)).astype(np.float32)


def conditioning(count: int, generator: torch.Generator) -> Tensor:
    """Random classes as tokens [S, 1]."""
    return torch.randint(1, CLASSES + 1, (count, 1), generator=generator)


class PatchesDenoiser(GuidedDenoiser):
    """Predicts the noise; tokens are classes [B, 1]."""

    def __init__(self) -> None:
        super().__init__(CLASSES + 1)

    def denoised(self, x: Tensor, sigma: Tensor, tokens: Tensor) -> Tensor:  # noqa: D102 - see GuidedDenoiser
        return x - sigma.view(-1, 1, 1, 1).to(x.dtype) * self._eps(x, sigma, tokens)

    def _eps(self, x: Tensor, sigma: Tensor, tokens: Tensor) -> Tensor:
        scaled = x / (sigma.square() + 1).sqrt().view(-1, 1, 1, 1)
        return self.network(scaled.to(x.dtype), sigma.log() / 2, tokens)

    def loss(self, x0: Tensor, tokens: Tensor) -> Tensor:
        """DDPM's simple loss (arXiv 2006.11239, equation 14) at uniformly drawn times."""
        index = torch.randint(0, len(NOISE.times), (len(x0),))
        sigma = torch.expm1(-2 * NOISE.log_alphas).sqrt().float()[index]
        noise = torch.randn_like(x0)
        return (self._eps(x0 + sigma.view(-1, 1, 1, 1) * noise, sigma, tokens) - noise).square().mean()
