"""Facts read from ComfyUI's models: noise schedule, architecture, latent tokens.

The nodes and the trainer use them. Nothing is imported from ComfyUI: its classes are recognised by name.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .architectures import Architecture, architecture_of
from .choose import Checkpoint
from .schedules import EDMNoise, FlowNoise, Noise, VPNoise

__all__ = [
    "architecture_name",
    "channel_pictures",
    "checkpoint_of",
    "default_guidance",
    "embeds_guidance",
    "fingerprint",
    "first_frame",
    "has_guidance",
    "latent_ratios",
    "latent_tokens",
    "model_architecture",
    "noise_of",
    "pixel_size",
    "shift_of",
]

# Their state is neither x0 + sigma * noise nor (1 - sigma) * x0 + sigma * noise, or has no noise at all.
_UNSUPPORTED = {"IMG_TO_IMG", "IMG_TO_IMG_FLOW", "V_PREDICTION_DDPM"}
# By latent format, for a ComfyUI older than the attributes: pixels per latent pixel, frames per latent frame.
_OLD_RATIOS = {
    "Cosmos1CV8x8x8": (8, 8), "HunyuanImage21": (32, 1), "HunyuanVideo": (8, 4), "LTXV": (32, 8), "Mochi": (8, 6),
    "Wan21": (8, 4), "Wan22": (16, 4),
}  # fmt: skip


def architecture_name(base: Any) -> str:
    """A BaseModel's architecture in ComfyUI's spelling, such as "Flux" or "SD15"."""
    return type(base.model_config).__name__


def model_architecture(base: Any) -> Architecture:
    """The facts about a BaseModel's architecture."""
    return architecture_of(*(c.__name__ for c in type(base.model_config).__mro__))


def checkpoint_of(base: Any, patcher: Any = None) -> Checkpoint:
    """What identifies a BaseModel's weights; the file's name only where the patcher has it (ComfyUI 0.33)."""
    init = getattr(patcher, "cached_patcher_init", None)
    path = init[1][0] if init and init[1] else ""
    return Checkpoint(path if isinstance(path, str) else "", fingerprint(base))


def fingerprint(base: Any) -> str:
    """16 hexadecimal digits of a BaseModel's weights; empty if they cannot be read.

    It reads the beginnings of a few vectors (biases, norms), which quantised files leave unquantised and most LoRAs
    unchanged, rounded to float16 and then to bfloat16: so it is the same for the float32, float16 and quantised files
    of a checkpoint; a bfloat16 file made from float32 weights may differ. A model whose vectors are quantised, too, has
    none (weight_dtype fp8 of ComfyUI's loader).
    """
    try:
        vectors = sorted((name, p) for name, p in base.diffusion_model.named_parameters() if p.ndim == 1)
        if any(p.element_size() < 2 for _, p in vectors):
            return ""
        chosen = vectors[:: max(1, len(vectors) // 16)]
        values = [p.detach()[:64].cpu().to(torch.float16).to(torch.bfloat16).float() for _, p in chosen]
        content = torch.cat(values).numpy().tobytes() if values else b""
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):  # meta tensors, wrapped networks
        return ""
    return hashlib.sha256(content).hexdigest()[:16] if content else ""


def has_guidance(base: Any) -> bool:
    """Whether a BaseModel's network reads an embedded guidance, as FLUX.1-dev's does and Schnell's does not."""
    embeds = getattr(base.model_config, "unet_config", {}).get("guidance_embed")
    if embeds is None:  # Chroma always reads it and has no such option
        return default_guidance(base) is not None
    return bool(embeds)


def embeds_guidance(base: Any) -> bool:
    """Whether a BaseModel is guided by an embedded guidance; not Chroma, whose embedded guidance is always 0."""
    return has_guidance(base) and default_guidance(base) != 0


def default_guidance(base: Any) -> float | None:
    """The embedded guidance that ComfyUI uses if the conditioning has none; None if unknown."""
    return model_architecture(base).host_guidance


def noise_of(base: Any, sampling: Any, shape: Sequence[int] | None) -> Noise:
    """The noise schedule of a model, including object patches, without a flow model's shift.

    Args:
        base: ComfyUI's BaseModel; None if the host passes only the schedule.
        sampling: Its model_sampling object, patched or not.
        shape: The latent's shape [B, C, ..., H, W]; None if unknown.
    """
    # By class: a type that a later ComfyUI adds is refused instead of sampled wrongly.
    kinds = {c.__name__ for c in type(sampling).__mro__}
    if not kinds & _UNSUPPORTED:
        if "CONST" in kinds:
            return FlowNoise(latent_tokens(base, shape))
        if "EPS" in kinds and type(sampling).timestep.__qualname__ == "ModelSamplingDiscrete.timestep":
            return VPNoise.from_sigmas(sampling.sigmas)
        if kinds & {"EPS", "COSMOS_RFLOW"} and "ModelSamplingContinuousEDM" in kinds:
            return EDMNoise(float(sampling.sigma_min), float(sampling.sigma_max))
    model = "model" if base is None else f"{architecture_name(base)} model"
    # ComfyUI combines two classes: the schedule, and the network's prediction.
    kind = "/".join(c.__name__ for c in type(sampling).__bases__)
    raise ValueError(
        f"learned solvers run on flow, eps, v and EDM models, but the prediction of this {model} is {kind}: use a "
        "stock sampler"
    )


def shift_of(sampling: Any) -> float | None:
    """The shift s of a flow schedule, sigma(t) = s * t / (1 + (s - 1) * t); None without percent_to_sigma."""
    if not hasattr(sampling, "percent_to_sigma"):
        return None
    middle = float(sampling.percent_to_sigma(0.5))
    return middle / (1 - middle)


def latent_tokens(base: Any, shape: Sequence[int] | None) -> int | None:
    """The number of tokens of an image or video frame; None if the shape or the patch size is unknown."""
    if shape is None or len(shape) < 4:
        return None
    # The table comes first: Lens and Ideogram 4 get packed latents, and wrapped networks have no patch_size.
    patch = model_architecture(base).patch or getattr(base.diffusion_model, "patch_size", None)
    if patch is None:
        return None
    patch_h, patch_w = (patch, patch) if isinstance(patch, int) else patch[-2:]
    return math.ceil(shape[-2] / patch_h) * math.ceil(shape[-1] / patch_w)


def latent_ratios(latent_format: Any) -> tuple[int, int]:
    """Pixels per latent pixel and side, and frames per latent frame after the first, of a model's latents."""
    pixels, frames = _OLD_RATIOS.get(type(latent_format).__name__, (8, 1))
    return (
        getattr(latent_format, "spacial_downscale_ratio", pixels),
        getattr(latent_format, "temporal_downscale_ratio", frames),
    )


def pixel_size(base: Any, shape: Sequence[int]) -> str | None:
    """A latent's size in pixels, "WIDTHxHEIGHT", of a video "WIDTHxHEIGHTxFRAMES"; None for one that is no image."""
    if len(shape) < 4:
        return None
    ratio, per_frame = latent_ratios(base.latent_format)
    frames = 1 + (shape[2] - 1) * per_frame if len(shape) == 5 else 1
    return f"{shape[-1] * ratio}x{shape[-2] * ratio}" + (f"x{frames}" if frames > 1 else "")


def first_frame(latents: Tensor) -> Tensor:
    """The first frame of latent videos [B, C, T, H, W], which a video VAE decodes alone; other latents as they are."""
    return latents[:, :, :1] if latents.ndim == 5 else latents


def channel_pictures(latents: Tensor) -> Tensor:
    """Three channels of each latent's first frame, stretched to [0, 1], shape [B, 3, H, W]: where nothing decodes."""
    channels = (latents[:, :, 0] if latents.ndim == 5 else latents)[:, :3]
    low, high = (reduce(channels, (1, 2, 3), keepdim=True) for reduce in (torch.amin, torch.amax))
    return ((channels - low) / (high - low).clamp(min=1e-6)).expand(-1, 3, -1, -1)
