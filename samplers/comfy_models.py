"""What ComfyUI's models tell about themselves: noise schedule, architecture, latent tokens.

For the nodes and the trainer alike. Nothing of the host is imported: its classes are known by their names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .architectures import Architecture, architecture_of
from .schedules import EDMNoise, FlowNoise, Noise, VPNoise

__all__ = [
    "architecture_name",
    "default_guidance",
    "has_guidance",
    "latent_tokens",
    "model_architecture",
    "noise_of",
    "pixel_size",
]

# Other states than x0 + sigma * noise or (1 - sigma) * x0 + sigma * noise, or no noise at all.
_UNLIKE = {"IMG_TO_IMG", "IMG_TO_IMG_FLOW", "V_PREDICTION_DDPM"}


def architecture_name(base: Any) -> str:
    """A BaseModel's architecture in ComfyUI's own spelling, such as "Flux" and "SD15"."""
    return type(base.model_config).__name__


def model_architecture(base: Any) -> Architecture:
    """The facts about a BaseModel's architecture."""
    return architecture_of(*(c.__name__ for c in type(base.model_config).__mro__))


def has_guidance(base: Any) -> bool:
    """Whether a BaseModel's network reads an embedded guidance, as FLUX.1-dev's does and Schnell's does not."""
    embeds = getattr(base.model_config, "unet_config", {}).get("guidance_embed")
    if embeds is None:  # Chroma: always read, so no option of the network
        return default_guidance(base) is not None
    return bool(embeds)


def default_guidance(base: Any) -> float | None:
    """The embedded guidance that ComfyUI hands over where the conditioning has none; None where it is unknown."""
    return model_architecture(base).host_guidance


def noise_of(base: Any, sampling: Any, shape: Sequence[int] | None) -> Noise:
    """Returns the noise schedule of a model, object patches included; of flow models the shift is none of it.

    Args:
        base: ComfyUI's BaseModel; None where the host shows no more than its schedule, and no shape.
        sampling: Its model_sampling object, patched or not.
        shape: The latent's shape [B, C, ..., H, W], where it is known.
    """
    # By class, so that a type that ComfyUI adds later is refused instead of sampled wrongly.
    kinds = {c.__name__ for c in type(sampling).__mro__}
    if not kinds & _UNLIKE:
        if "CONST" in kinds:
            return FlowNoise(latent_tokens(base, shape))
        if "EPS" in kinds and type(sampling).timestep.__qualname__ == "ModelSamplingDiscrete.timestep":
            return VPNoise.from_sigmas(sampling.sigmas)
        if kinds & {"EPS", "COSMOS_RFLOW"} and "ModelSamplingContinuousEDM" in kinds:
            return EDMNoise(float(sampling.sigma_min), float(sampling.sigma_max))
    model = "model" if base is None else f"{architecture_name(base)} model"
    # ComfyUI makes one class of two: the schedule, and what the network predicts.
    kind = "/".join(c.__name__ for c in type(sampling).__bases__)
    raise ValueError(
        f"learned solvers run on flow, eps, v and EDM models, this {model}'s prediction is {kind}: "
        "use a stock sampler for it"
    )


def latent_tokens(base: Any, shape: Sequence[int] | None) -> int | None:
    """Returns the number of tokens of one picture or video frame, or None where shape or patch size is unknown."""
    if shape is None or len(shape) < 4:
        return None
    # Not first what the network says: Lens and Ideogram 4 get latents that are packed already, wrappers say nothing.
    patch = model_architecture(base).patch or getattr(base.diffusion_model, "patch_size", None)
    if patch is None:
        return None
    patch_h, patch_w = (patch, patch) if isinstance(patch, int) else patch[-2:]
    return math.ceil(shape[-2] / patch_h) * math.ceil(shape[-1] / patch_w)


def pixel_size(base: Any, shape: Sequence[int]) -> str | None:
    """Returns "WIDTHxHEIGHT" in pixels of a latent shape, or None for latents without a picture's shape."""
    ratio = getattr(base.latent_format, "spacial_downscale_ratio", 8)
    return f"{shape[-1] * ratio}x{shape[-2] * ratio}" if len(shape) >= 4 else None
