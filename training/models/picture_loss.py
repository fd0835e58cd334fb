"""The loss "features": the distance of pictures instead of latents, at several scales and of their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

__all__ = ["picture_features", "picture_loss"]

_SCALES = (1, 2, 4, 8)


def picture_loss(base: Any, vae: Any) -> Callable[[Tensor], Tensor]:
    """Features of a model's end states, decoded by a VAE; the approximate ones (TAESD) cost least.

    Args:
        base: ComfyUI's BaseModel.
        vae: ComfyUI's VAE of the same latent space.
    """

    def features(states: Tensor) -> Tensor:
        network = vae.first_stage_model
        # Not through the host's memory manager, which may unload the model that is sampling.
        network.to(states.device)
        latents = base.process_latent_out(states.float()).to(vae.vae_dtype)
        return picture_features(vae.process_output(network.decode(latents).float()))

    return features


def picture_features(pictures: Tensor) -> Tensor:
    """Pixels of pictures [B, C, ..., H, W] and their differences along both axes, at scales 1 to 1/8; shape [B, F].

    Every part has the same share of the mean square.
    """
    flat = pictures.flatten(1, -3) if pictures.ndim > 4 else pictures
    parts = []
    for scale in _SCALES:
        if min(flat.shape[-2:]) < 2 * scale:
            break
        pixels = avg_pool2d(flat, scale)
        parts += [part.flatten(1) for part in (pixels, pixels.diff(dim=-1), pixels.diff(dim=-2))]
    total = sum(part.shape[1] for part in parts)
    return torch.cat([part * (total / (len(parts) * part.shape[1])) ** 0.5 for part in parts], dim=1)
