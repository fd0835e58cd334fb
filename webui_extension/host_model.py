"""What the WebUI's models and jobs show: noise schedule, architecture and guidance.

Forge keeps the schedule in a predictor, AUTOMATIC1111 in k-diffusion's wrapper round the model. The hosts' classes are
known by their names, so that a kind that they add later is refused instead of sampled wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..samplers import Guidance
from ..samplers.architectures import DEFAULT_PATCH, Architecture, architecture_of
from ..samplers.schedules import EDMNoise, FlowNoise, Noise, VPNoise

__all__ = ["architecture", "guidance_of", "noise_of"]

_FLAGS = ("is_sd3", "is_sdxl", "is_sd2", "is_sd1")  # AUTOMATIC1111's; at most one is set


def architecture(sd_model: Any) -> str | None:
    """The architecture in ComfyUI's spelling ("Flux", "SD15"); None where the host has no word for it."""
    record = _record(sd_model)
    return record and record.name


def _record(sd_model: Any) -> Architecture | None:
    """The facts about a model's architecture; None where the host has no word for it."""
    guessed = type(getattr(sd_model, "model_config", None))  # Forge's guess; its classes are named much as ComfyUI's
    if "huggingface_guess" in guessed.__module__.split("."):
        return architecture_of(*(c.__name__ for c in guessed.__mro__))
    return next((architecture_of(flag) for flag in _FLAGS if getattr(sd_model, flag, False)), None)


def guidance_of(p: Any, sd_model: Any) -> Guidance | None:
    """The guidance of a job's pass; None for a number that is no guidance, such as a negative CFG.

    Forge hands some models a distilled CFG, an embedded guidance, and has values for the second pass of hires fix.
    """
    cfg = getattr(p, "hr_cfg", p.cfg_scale) if p.is_hr_pass else p.cfg_scale
    try:
        if getattr(sd_model, "use_distilled_cfg_scale", False):
            embedded: Any = getattr(p, "hr_distilled_cfg" if p.is_hr_pass else "distilled_cfg_scale", None)
            return Guidance("embedded", (float(embedded),), cfg=float(cfg))
        return Guidance("cfg", (float(cfg),))
    except (TypeError, ValueError):
        return None


def noise_of(model_wrap: Any, shape: Sequence[int] | None) -> Noise:
    """Returns the noise schedule of the model behind the host's wrapper.

    Args:
        model_wrap: `KDiffusionSampler.model_wrap`.
        shape: The latent's shape [B, C, H, W], where it is known.
    """
    schedule = getattr(model_wrap, "predictor", model_wrap)
    kinds = [c.__name__ for c in type(schedule).__mro__]
    prediction = getattr(schedule, "prediction_type", None)
    if prediction == "const" or "SD3Denoiser" in kinds:
        if shape is None:
            return FlowNoise()
        record = _record(getattr(model_wrap, "inner_model", None))
        patch = (record and record.patch) or DEFAULT_PATCH
        return FlowNoise(math.ceil(shape[-2] / patch) * math.ceil(shape[-1] / patch))
    if "PredictionContinuousEDM" in kinds:
        return EDMNoise(float(schedule.sigmas[0]), float(schedule.sigmas[-1]))
    if {"CompVisDenoiser", "CompVisVDenoiser"} & set(kinds) or (
        prediction in ("epsilon", "v_prediction") and type(schedule).timestep.__qualname__ == "Prediction.timestep"
    ):  # a table of levels, and timesteps that are looked up in it
        return VPNoise.from_sigmas(schedule.sigmas)
    raise ValueError(
        f"learned solvers run on flow, eps, v and EDM models, this model's prediction is {kinds[0]}"
        f"{f' ({prediction})' if prediction else ''}: use a stock sampler for it"
    )
