"""Refuses models that a fit cannot evaluate out of order, where ComfyUI's objects say what they do."""

from __future__ import annotations

from typing import Any

__all__ = ["refuse_stateful"]


def refuse_stateful(patcher: Any) -> None:
    """Refuses a ModelPatcher with a cache, context windows, or a network that also needs the next noise level.

    What is not recognised here is found by calling the model, see data/probe.py.
    """
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
    if getattr(patcher.model.diffusion_model, "time_r_in", None) is not None:
        raise ValueError(
            "this model (MeanFlow) needs the next noise level too, so no learned solver can follow it: use its own "
            "sampler"
        )
