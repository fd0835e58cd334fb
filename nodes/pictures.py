"""Images: end states decoded by a VAE or by the host's latent preview, and drawings as an IMAGE."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import comfy.utils
import latent_preview
import numpy as np
import torch
from torch import Tensor

from ..samplers.comfy_models import channel_pictures, first_frame

__all__ = ["pictures_of", "to_image"]


def to_image(drawing: Any) -> Tensor:
    """A PIL image as ComfyUI's IMAGE, shape [1, H, W, 3], in [0, 1]."""
    return torch.from_numpy(np.array(drawing.convert("RGB"))).float()[None] / 255


def pictures_of(model: Any, states: Tensor, vae: Any = None, shapes: Sequence[Sequence[int]] = ()) -> Tensor:
    """Images of end states, shape [B, 3, H, W], in [0, 1], on the CPU; of a video the first frame.

    Args:
        model: ComfyUI's ModelPatcher.
        states: End states in the model's own latent space, shape [B, C, ..., H, W].
        vae: Decodes them; None: by the preview that the host shows while sampling.
        shapes: Of the streams of packed states, of which the first one is a video.
    """
    states = states.detach().float().cpu()
    states = states if vae is None else model.model.process_latent_out(states)
    if len(shapes) > 1:
        states = comfy.utils.unpack_latents(states, shapes)[0]
    if vae is None:
        return torch.stack([_preview(model.model.latent_format, state[None]) for state in states])
    decoded = vae.decode(first_frame(states)).float().cpu()
    return (decoded[:, 0] if decoded.ndim == 5 else decoded)[..., :3].movedim(-1, 1).clamp(0, 1)


def _preview(latent_format: Any, state: Tensor) -> Tensor:
    if getattr(latent_format, "latent_rgb_factors", None) is None:
        return channel_pictures(state)[0]
    names = ("latent_rgb_factors", "latent_rgb_factors_bias", "latent_rgb_factors_reshape")
    previewer = latent_preview.Latent2RGBPreviewer
    accepted = len(inspect.signature(previewer.__init__).parameters) - 1  # older hosts take fewer
    factors = [getattr(latent_format, name, None) for name in names][:accepted]
    picture = previewer(*factors).decode_latent_to_preview(state)
    return to_image(picture)[0].movedim(-1, 0)
