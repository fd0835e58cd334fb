"""The sampling nodes: `Learned Solver`, `KSampler (Learned Solver)` and `Set Learned Solver`."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.utils
import latent_preview
from comfy.samplers import KSAMPLER
from torch import Tensor

from ..samplers.families import FAMILIES
from .base import SolverNode, fixed_latent, inputs, show_text
from .sampling import guidance_of
from .selection import select_solver
from .stock import CHANNEL

__all__ = ["LearnedSolver", "LearnedSolverKSampler", "SetLearnedSolver"]

_INFO = "Which file, how many model calls, and what does not match the model."
_SAMPLERS = " and ".join(family.sampler for family in FAMILIES.values())


class LearnedSolver(SolverNode):
    """SAMPLER and SIGMAS of a learned solver, for SamplerCustom and SamplerCustomAdvanced."""

    TITLE = "Learned Solver"
    DESCRIPTION = (
        "A sampler with coefficients learned for the model: good pictures in 3 to 10 model calls. Wire sampler and "
        "sigmas into SamplerCustomAdvanced."
    )
    RETURN_TYPES = ("SAMPLER", "SIGMAS", "STRING")
    RETURN_NAMES = ("sampler", "sigmas", "info")
    OUTPUT_TOOLTIPS = (
        "The solver, for SamplerCustom or SamplerCustomAdvanced.",
        "The solver's own noise levels. Of the sigmas it is handed the sampler uses the first and the last.",
        _INFO,
    )
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's
        latent = "The latent to sample, for grids that depend on resolution (FLUX)."
        return {
            "required": inputs("model", "solver", "steps", "denoise"),
            "optional": inputs(latent={"tooltip": latent}),
        }

    def make(
        self, model: Any, solver: str, steps: int, denoise: float, latent: dict[str, Any] | None = None
    ) -> tuple[KSAMPLER, Tensor, str]:
        """Returns SAMPLER, SIGMAS and what a user should know about them."""
        shape = None if latent is None else latent["samples"].shape
        return select_solver(model, solver, steps, denoise=denoise, shape=shape)[:3]


class LearnedSolverKSampler(SolverNode):
    """LATENT sampled by a learned solver: one node in place of five."""

    TITLE = "KSampler (Learned Solver)"
    DESCRIPTION = (
        "Samples with coefficients learned for the model: good pictures in 3 to 10 model calls. Takes the place of "
        "KSampler. Shows below its widgets which file it uses and how many calls it makes."
    )
    RETURN_TYPES = ("LATENT", "STRING")
    RETURN_NAMES = ("latent", "info")
    OUTPUT_TOOLTIPS = ("The sampled latent.", _INFO)
    FUNCTION = "sample"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's
        latent = "The latent to start from: an empty one, or a picture's with denoise below 1."
        return {
            "required": {
                **inputs("model", "positive", "negative", latent_image={"tooltip": latent}),
                **inputs("seed", "solver", "steps", "cfg", "denoise"),
            },
            "hidden": {"node_id": "UNIQUE_ID"},
        }

    def sample(
        self,
        model: Any,
        positive: Any,
        negative: Any,
        latent_image: dict[str, Any],
        seed: int,
        solver: str,
        steps: int,
        cfg: float,
        denoise: float,
        node_id: str | None = None,
    ) -> tuple[dict[str, Any], str]:
        """Returns the sampled LATENT and what a user should know about the solver."""
        latent = fixed_latent(model, latent_image)
        samples = latent["samples"]
        guidance = guidance_of(model.model, [entry[1] for entry in positive], cfg)
        sampler, sigmas, info, _ = select_solver(
            model, solver, steps, denoise=denoise, shape=samples.shape, guidance=guidance
        )
        show_text(info, node_id)
        latent["samples"] = comfy.sample.sample_custom(
            model,
            comfy.sample.prepare_noise(samples, seed, latent.get("batch_index")),
            cfg,
            sampler,
            sigmas,
            positive,
            negative,
            samples,
            noise_mask=latent.get("noise_mask"),
            callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
        return latent, info


class SetLearnedSolver(SolverNode):
    """MODEL for which the stock samplers of this pack take the solver file that is named here."""

    TITLE = "Set Learned Solver"
    DESCRIPTION = (
        f"Chooses the solver file for the samplers {_SAMPLERS} in stock nodes (KSampler, KSamplerAdvanced, "
        "KSamplerSelect). Without it they choose by themselves. Other samplers are not affected."
    )
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The same model, with this solver.",)
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's
        steps = (
            "Model calls of the solver's whole grid. 0: as many as the sampler node has steps. Set them where a node "
            "runs only some steps of a grid: KSamplerAdvanced with a start or an end step, SplitSigmas."
        )
        return {"required": inputs("model", "solver", steps={"default": 0, "min": 0, "tooltip": steps})}

    def patch(self, model: Any, solver: str, steps: int) -> tuple[Any]:
        """Returns a clone of the model with the choice in its options."""
        patched = model.clone()
        patched.model_options["transformer_options"][CHANNEL] = {"solver": solver, "steps": steps}
        return (patched,)
