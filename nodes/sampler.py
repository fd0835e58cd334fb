"""The `Learned Solver` node: a SAMPLER and its SIGMAS for the custom sampling nodes."""

from __future__ import annotations

from typing import Any

from comfy.samplers import KSAMPLER
from torch import Tensor

from .folder import fingerprint
from .inputs import CATEGORY, denoise_input, latent_input, model_input, solver_input, steps_input
from .plan import plan
from .sampling import sample_learned_solver

__all__ = ["LearnedSolver"]


class LearnedSolver:
    """SAMPLER and SIGMAS of a learned solver, for SamplerCustom and SamplerCustomAdvanced."""

    TITLE = "Learned Solver"
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "A sampler with coefficients learned for the model: good pictures in 3 to 10 model calls. Wire sampler and "
        "sigmas into SamplerCustomAdvanced."
    )
    RETURN_TYPES = ("SAMPLER", "SIGMAS", "STRING")
    RETURN_NAMES = ("sampler", "sigmas", "info")
    OUTPUT_TOOLTIPS = (
        "The solver, for SamplerCustom or SamplerCustomAdvanced.",
        "The solver's own noise levels. The sampler honours the first and the last of what it is handed.",
        "Which file, how many model calls, and what does not match the model.",
    )
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's
        return {
            "required": {
                "model": model_input(),
                "solver": solver_input(),
                "steps": steps_input(),
                "denoise": denoise_input(),
            },
            "optional": {
                "latent": latent_input("The latent to be sampled, for grids that depend on resolution (FLUX)."),
            },
        }

    @classmethod
    def IS_CHANGED(cls, solver: str | None = None, **_: Any) -> str:
        """Returns what changes when the solver's file does."""
        return fingerprint(solver)

    def make(
        self, model: Any, solver: str, steps: int, denoise: float, latent: dict[str, Any] | None = None
    ) -> tuple[KSAMPLER, Tensor, str]:
        """Returns SAMPLER, SIGMAS and what is to be known about them."""
        made = plan(model, solver, steps, denoise=denoise, shape=None if latent is None else latent["samples"].shape)
        return KSAMPLER(sample_learned_solver, made.options), made.table.levels.float(), made.info
