"""What the WebUI's models tell about themselves: noise schedule and architecture.

Forge keeps the schedule in a predictor, AUTOMATIC1111 in k-diffusion's wrapper round the model. The hosts' classes are
known by their names, so that a kind that they add later is refused instead of sampled wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..samplers.schedules import EDMNoise, FlowNoise, Noise, VPNoise

__all__ = ["architecture", "noise_of"]

_FLAGS = {"is_sd3": "SD3", "is_sdxl": "SDXL", "is_sd2": "SD20", "is_sd1": "SD15"}
_PATCH = 2  # latent pixels per token and side, in SD3, FLUX and Chroma alike


def architecture(sd_model: Any) -> str | None:
    """Returns the architecture in ComfyUI's spelling ("Flux", "SD15"), or None where the host has no word for it."""
    guessed = type(getattr(sd_model, "model_config", None))  # Forge names the classes of its guesses as ComfyUI does
    if guessed.__module__.partition(".")[0] == "huggingface_guess":
        return guessed.__name__
    return next((name for flag, name in _FLAGS.items() if getattr(sd_model, flag, False)), None)


def noise_of(model_wrap: Any, shape: Sequence[int] | None) -> Noise:
    """Returns the noise schedule of the model behind the host's wrapper.

    Args:
        model_wrap: `KDiffusionSampler.model_wrap`.
        shape: The latent's shape [B, C, H, W], where it is known.

    Raises:
        ValueError: A prediction type that no solver is defined for.
    """
    schedule = getattr(model_wrap, "predictor", model_wrap)
    kinds = [c.__name__ for c in type(schedule).__mro__]
    prediction = getattr(schedule, "prediction_type", None)
    if prediction == "const" or "SD3Denoiser" in kinds:
        return FlowNoise(_tokens(shape))
    if "PredictionContinuousEDM" in kinds:
        return EDMNoise(float(schedule.sigmas[0]), float(schedule.sigmas[-1]))
    in_table = prediction in ("epsilon", "v_prediction") and _looks_up_its_table(schedule)
    if in_table or {"CompVisDenoiser", "CompVisVDenoiser"} & set(kinds):
        return VPNoise.from_sigmas(schedule.sigmas)
    raise ValueError(
        f"learned solvers run on flow, eps, v and EDM models, this model's prediction is {kinds[0]}"
        f"{f' ({prediction})' if prediction else ''}: use a stock sampler for it"
    )


def _looks_up_its_table(predictor: Any) -> bool:
    return type(predictor).timestep.__qualname__ == "Prediction.timestep"


def _tokens(shape: Sequence[int] | None) -> int | None:
    return None if shape is None else math.ceil(shape[-2] / _PATCH) * math.ceil(shape[-1] / _PATCH)
