"""The `Join Experts` node: two models for high and low noise levels as one MODEL."""

from __future__ import annotations

from typing import Any

from ..samplers.comfy_experts import join_experts
from .base import SolverNode, inputs

__all__ = ["JoinExperts"]


class JoinExperts(SolverNode):
    """MODEL that runs one model above a noise level and another below."""

    TITLE = "Join Experts (Wan 2.2)"
    SEARCH_ALIASES = ("high noise low noise", "two models", "wan experts")
    DESCRIPTION = (
        "Joins the models for high and low noise of Wan 2.2 14B to one model, which one sampler node or Fit Learned "
        "Solver can run. The host loads each model when it is called."
    )
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The joined model, for one sampler over the whole schedule.",)
    FUNCTION = "join"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's
        boundary = (
            "Noise level (sigma) below which the second model runs: 0.875 for Wan 2.2 text to video, 0.9 for image to "
            "video."
        )
        return {
            "required": {
                **inputs(model={"tooltip": "The model for high noise, with its LoRAs and shift."}),
                "second_model": ("MODEL", {"tooltip": "The model for low noise, with its LoRAs."}),
                "boundary": (
                    "FLOAT",
                    {"default": 0.875, "min": 0.0, "max": 1000.0, "step": 0.005, "round": 0.0001, "tooltip": boundary},
                ),
            }
        }

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> str:
        """Nothing: solver files do not matter."""
        return ""

    def join(self, model: Any, second_model: Any, boundary: float) -> tuple[Any]:
        """The joined model; see `join_experts`."""
        return (join_experts(model, second_model, boundary),)
