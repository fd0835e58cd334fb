"""What ComfyUI's models tell about themselves: noise schedule, architecture, latent tokens.

For the nodes and the trainer alike. Nothing of the host is imported: its classes are known by their names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .schedules import EDMNoise, FlowNoise, Noise, VPNoise

__all__ = ["default_guidance", "has_guidance", "latent_tokens", "model_family", "noise_of", "pixel_size"]

# Other states than x0 + sigma * noise or (1 - sigma) * x0 + sigma * noise, or no noise at all.
_UNLIKE = {"IMG_TO_IMG", "IMG_TO_IMG_FLOW", "V_PREDICTION_DDPM", "COSMOS_RFLOW"}

# comfy/model_base.py: the guidance that the network is handed where a conditioning has none.
_GUIDANCE = {"Chroma": 0.0, "Flux": 3.5, "HunyuanVideo": 6.0, "HunyuanImage21": 6.0, "Hunyuan3Dv2": 5.0}


def model_family(base: Any) -> str:
    """Returns the architecture in ComfyUI's own spelling ("Flux", "SD15"), for a BaseModel."""
    return type(base.model_config).__name__


def has_guidance(base: Any) -> bool:
    """Whether a BaseModel's network is handed a guidance and uses it, as FLUX.1-dev's does and Schnell's does not."""
    if any(c.__name__ == "Chroma" for c in type(base).__mro__):
        return True
    return bool(getattr(base.model_config, "unet_config", {}).get("guidance_embed"))


def default_guidance(base: Any) -> float | None:
    """Returns the guidance that the host hands to such a network unasked; None where it is not known."""
    return next((_GUIDANCE[c.__name__] for c in type(base).__mro__ if c.__name__ in _GUIDANCE), None)


def noise_of(base: Any, sampling: Any, shape: Sequence[int] | None) -> Noise:
    """Returns the noise schedule of a model, object patches included; of flow models the shift is none of it.

    Args:
        base: ComfyUI's BaseModel; None where the host shows no more than its schedule, and no shape.
        sampling: Its model_sampling object, patched or not.
        shape: The latent's shape [B, C, ..., H, W], where it is known.

    Raises:
        ValueError: A prediction type that no solver is defined for.
    """
    # By class, so that a type that ComfyUI adds later is refused instead of sampled wrongly.
    kinds = {c.__name__ for c in type(sampling).__mro__}
    if not kinds & _UNLIKE:
        if "CONST" in kinds:
            return FlowNoise(latent_tokens(base, shape))
        if "EPS" in kinds and type(sampling).timestep.__qualname__ == "ModelSamplingDiscrete.timestep":
            return VPNoise.from_sigmas(sampling.sigmas)
        if "EPS" in kinds and "ModelSamplingContinuousEDM" in kinds:
            return EDMNoise(float(sampling.sigma_min), float(sampling.sigma_max))
    model = "model" if base is None else f"{model_family(base)} model"
    # ComfyUI makes one class of two: the schedule, and what the network predicts.
    kind = "/".join(c.__name__ for c in type(sampling).__bases__)
    raise ValueError(
        f"learned solvers run on flow, eps, v and EDM models, this {model}'s prediction is {kind}: "
        "use a stock sampler for it"
    )


def latent_tokens(base: Any, shape: Sequence[int] | None) -> int | None:
    """Returns the number of tokens of one picture or video frame, or None where shape or patch size is unknown."""
    if shape is None or len(shape) < 4 or (patch := getattr(base.diffusion_model, "patch_size", None)) is None:
        return None
    patch_h, patch_w = (patch, patch) if isinstance(patch, int) else patch[-2:]
    return math.ceil(shape[-2] / patch_h) * math.ceil(shape[-1] / patch_w)


def pixel_size(base: Any, shape: Sequence[int]) -> str | None:
    """Returns "WIDTHxHEIGHT" in pixels of a latent shape, or None for latents without a picture's shape."""
    ratio = getattr(base.latent_format, "spacial_downscale_ratio", 8)
    return f"{shape[-1] * ratio}x{shape[-2] * ratio}" if len(shape) >= 4 else None
