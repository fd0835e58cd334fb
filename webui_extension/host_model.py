"""Noise schedule, architecture and guidance, read from the WebUI's models and jobs.

Forge keeps the schedule in a predictor, AUTOMATIC1111 in k-diffusion's wrapper around the model. Their classes are
recognised by name, so that a prediction type added later is refused instead of sampled wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..samplers import Guidance
from ..samplers.architectures import DEFAULT_PATCH, Architecture, architecture_of
from ..samplers.choose import Checkpoint
from ..samplers.comfy_models import fingerprint, shift_of
from ..samplers.schedules import EDMNoise, FlowNoise, Noise, VPNoise

__all__ = ["architecture", "boundary_of", "checkpoint_of", "flow_shift", "guidance_of", "noise_of"]

_FLAGS = ("is_sd3", "is_sdxl", "is_sd2", "is_sd1")  # AUTOMATIC1111's; at most one is set


def architecture(sd_model: Any) -> str | None:
    """The architecture in ComfyUI's spelling ("Flux", "SD15"); None if the host does not name it."""
    record = _record(sd_model)
    return record and record.name


def checkpoint_of(sd_model: Any) -> Checkpoint:
    """What identifies a model's weights; its fingerprint is the same in ComfyUI."""
    unet = getattr(getattr(sd_model, "forge_objects", None), "unet", sd_model)  # Forge's patcher, or the model itself
    name = getattr(getattr(sd_model, "sd_checkpoint_info", None), "filename", "")
    return Checkpoint(str(name or ""), fingerprint(getattr(unet, "model", None)))


def boundary_of(p: Any, opts: Any) -> float | None:
    """The noise level at which a job's refiner takes over in Forge Neo; None without one, or if a step decides."""
    refines = getattr(p, "refiner_checkpoint_info", None) is not None and not getattr(p, "enable_hr", False)
    by_level = not getattr(opts, "refiner_use_steps", True)  # other hosts have no such option
    return p.refiner_switch_at if refines and by_level and p.refiner_switch_at else None


def _record(sd_model: Any) -> Architecture | None:
    """The facts about a model's architecture; None if the host does not name it."""
    guessed = type(getattr(sd_model, "model_config", None))  # Forge's guess; its class names are close to ComfyUI's
    if "huggingface_guess" in guessed.__module__.split("."):
        return architecture_of(*(c.__name__ for c in guessed.__mro__))
    return next((architecture_of(flag) for flag in _FLAGS if getattr(sd_model, flag, False)), None)


def guidance_of(p: Any, sd_model: Any) -> Guidance | None:
    """The guidance of a job's pass; None for an invalid value, such as a negative CFG.

    Forge passes some models a distilled CFG, which is an embedded guidance, and has separate values for the second pass
    of hires fix.
    """
    cfg = getattr(p, "hr_cfg", p.cfg_scale) if p.is_hr_pass else p.cfg_scale
    try:
        if getattr(sd_model, "use_distilled_cfg_scale", False):
            embedded: Any = getattr(p, "hr_distilled_cfg" if p.is_hr_pass else "distilled_cfg_scale", None)
            return Guidance("embedded", (float(embedded),), cfg=float(cfg))
        return Guidance("cfg", (float(cfg),))
    except (TypeError, ValueError):
        return None


def flow_shift(model_wrap: Any) -> float | None:
    """The shift of a flow model's schedule in the host; None for other models, and in AUTOMATIC1111's WebUI."""
    schedule = getattr(model_wrap, "predictor", None)
    return shift_of(schedule) if getattr(schedule, "prediction_type", None) == "const" else None


def noise_of(model_wrap: Any, shape: Sequence[int] | None) -> Noise:
    """The noise schedule of the model in the host's wrapper.

    Args:
        model_wrap: `KDiffusionSampler.model_wrap`.
        shape: The latent's shape [B, C, H, W], if it is known.
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
    ):  # a table of levels in which timesteps are looked up
        return VPNoise.from_sigmas(schedule.sigmas)
    raise ValueError(
        f"learned solvers run on flow, eps, v and EDM models, but this model's prediction is {kinds[0]}"
        f"{f' ({prediction})' if prediction else ''}: use a stock sampler"
    )
