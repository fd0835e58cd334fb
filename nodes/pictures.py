"""Pictures of end states: decoded by a VAE, or the host's rough preview of a latent."""

from __future__ import annotations

import inspect
from typing import Any

import latent_preview
import numpy as np
import torch
from torch import Tensor

__all__ = ["pictures_of"]


def pictures_of(model: Any, states: Tensor, vae: Any = None) -> Tensor:
    """Returns pictures [B, 3, H, W] in [0, 1], on the CPU; of a video its first frame.

    Args:
        model: ComfyUI's ModelPatcher.
        states: End states in the model's own latent space, [B, C, ..., H, W].
        vae: Decodes them; None: the preview that the host shows while it samples.
    """
    states = states.detach().float().cpu()
    if vae is None:
        return torch.stack([_preview(model.model.latent_format, state[None]) for state in states])
    decoded = vae.decode(model.model.process_latent_out(states)).float().cpu()
    if decoded.ndim == 5:
        decoded = decoded[:, 0]
    return decoded[..., :3].movedim(-1, 1).clamp(0, 1)


def _preview(latent_format: Any, state: Tensor) -> Tensor:
    factors = getattr(latent_format, "latent_rgb_factors", None)
    if factors is None:  # three channels, stretched: better than no picture
        flat = state[0, :3] if state.ndim == 4 else state[0, :3, 0]
        flat = flat.expand(3, -1, -1) if len(flat) < 3 else flat
        low, high = flat.amin(), flat.amax()
        return (flat - low) / (high - low).clamp(min=1e-6)
    names = ("latent_rgb_factors", "latent_rgb_factors_bias", "latent_rgb_factors_reshape")
    own = [getattr(latent_format, name, None) for name in names]
    previewer = latent_preview.Latent2RGBPreviewer
    wanted = len(inspect.signature(previewer.__init__).parameters) - 1  # an older host has fewer
    picture = np.asarray(previewer(*own[:wanted]).decode_latent_to_preview(state).convert("RGB"))
    return torch.from_numpy(picture.copy()).movedim(-1, 0).float() / 255
