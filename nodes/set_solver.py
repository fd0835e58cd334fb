"""The `Set Learned Solver` node: which file the stock samplers' `dyweight` and `ds_solver` take for a model."""

from __future__ import annotations

from typing import Any

from .folder import fingerprint
from .inputs import CATEGORY, model_input, solver_input, steps_input

__all__ = ["CHANNEL", "SetLearnedSolver"]

CHANNEL = "learned_solver"
"""Key in a model's transformer_options: {"solver": drop-down entry, "steps": model calls or 0}, plain values only."""


class SetLearnedSolver:
    """MODEL whose samplers `dyweight` and `ds_solver` take the solver file that is named here."""

    TITLE = "Set Learned Solver"
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Chooses the solver file for the samplers dyweight and ds_solver in stock nodes (KSampler, KSamplerAdvanced, "
        "KSamplerSelect). Without it they choose by themselves. Other samplers are not affected."
    )
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The same model, with the solver named for it.",)
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's
        steps = (
            "Model calls of the solver's whole grid. 0: as many as the sampler node has steps. Name them where a node "
            "runs only some steps of a grid: KSamplerAdvanced with a start or an end step, SplitSigmas."
        )
        return {
            "required": {
                "model": model_input(),
                "solver": solver_input(),
                "steps": steps_input(steps, default=0, lowest=0),
            }
        }

    @classmethod
    def IS_CHANGED(cls, solver: str | None = None, **_: Any) -> str:
        """Returns what changes when the solver's file does."""
        return fingerprint(solver)

    def patch(self, model: Any, solver: str, steps: int) -> tuple[Any]:
        """Returns a clone of the model with the choice in its options."""
        patched = model.clone()
        options = patched.model_options
        options["transformer_options"] = {
            **options.get("transformer_options", {}),
            CHANNEL: {"solver": solver, "steps": steps},
        }
        return (patched,)
