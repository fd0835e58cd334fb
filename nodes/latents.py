"""LATENT inputs in the form that a model takes."""

from __future__ import annotations

import inspect
from typing import Any

import comfy.sample

__all__ = ["fixed_latent"]


def fixed_latent(model: Any, latent: dict[str, Any]) -> dict[str, Any]:
    """Returns a copy of a LATENT, an empty one in the channels and the size that the model takes."""
    fixed = latent.copy()
    ratios = [fixed.pop("downscale_ratio_spacial", None), fixed.pop("downscale_ratio_temporal", None)]
    wanted = len(inspect.signature(comfy.sample.fix_empty_latent_channels).parameters)  # the ratios came after 0.3.64
    fixed["samples"] = comfy.sample.fix_empty_latent_channels(model, fixed["samples"], *ratios[: max(0, wanted - 2)])
    return fixed
