"""Refuses models that cannot be fitted, where ComfyUI's objects say what they do."""

from __future__ import annotations

from typing import Any

from ...samplers.comfy_experts import second_of
from ...samplers.comfy_models import architecture_name

__all__ = ["refuse_stateful"]


def refuse_stateful(patcher: Any) -> None:
    """Refuses a ModelPatcher with a cache, context windows, frames as a batch, or a network that needs the next level.

    What is not recognised here is found by calling the model, see data/probe.py.
    """
    if (second := second_of(patcher)) is not None:
        refuse_stateful(second)
    options = patcher.model_options
    caches = [key for key in options.get("transformer_options", {}) if "cache" in str(key).lower()]
    if caches:
        names = {"easycache": "EasyCache or LazyCache"}
        raise ValueError(
            f"{' and '.join(names.get(key, str(key)) for key in caches)} is on this model: it reuses earlier calls, so "
            "nothing can be fitted. Remove it for the fit"
        )
    if options.get("context_handler") is not None:
        raise ValueError(
            "context windows are on this model: they move from step to step, so nothing can be fitted. Fit without "
            "them, on a latent that the model takes whole"
        )
    if video := _video_of_batch(patcher):
        raise ValueError(
            f"{video} takes a batch as the frames of one video, not as samples, so nothing can be fitted: use a solver "
            "that transfers, or a stock sampler"
        )
    if getattr(patcher.model.diffusion_model, "time_r_in", None) is not None:
        raise ValueError(
            "this model (MeanFlow) needs the next noise level too, so no learned solver can follow it: use its own "
            "sampler"
        )


def _video_of_batch(patcher: Any) -> str | None:
    """The model for which a batch is the frames of a video; None for other models."""
    if patcher.model.model_config.unet_config.get("use_temporal_attention"):
        return architecture_name(patcher.model)  # SVD and SV3D
    return "AnimateDiff" if getattr(patcher, "additional_models", {}).get("ADE") else None
