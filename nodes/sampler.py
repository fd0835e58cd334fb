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

_INFO = "The solver file that ran, its number of model calls, and anything that does not match the model."
_SAMPLERS = " and ".join(family.sampler for family in FAMILIES.values())
_ALIASES = ("few steps", "fast sampler", "solver file", *(family.sampler for family in FAMILIES.values()))


class LearnedSolver(SolverNode):
    """SAMPLER and SIGMAS of a learned solver, for SamplerCustom and SamplerCustomAdvanced."""

    TITLE = "Learned Solver"
    SEARCH_ALIASES = _ALIASES
    DESCRIPTION = (
        "A sampler with coefficients learned for the model: good images in 3 to 10 model calls. Connect sampler and "
        "sigmas to SamplerCustomAdvanced."
    )
    RETURN_TYPES = ("SAMPLER", "SIGMAS", "STRING")
    RETURN_NAMES = ("sampler", "sigmas", "info")
    OUTPUT_TOOLTIPS = (
        "The solver, for SamplerCustom or SamplerCustomAdvanced.",
        "The solver's own noise levels. The sampler uses only the first and last sigma that it receives.",
        _INFO,
    )
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's
        latent = "The latent to be sampled, for grids that depend on its size (FLUX)."
        return {
            "required": inputs("model", "solver", "steps", "denoise"),
            "optional": inputs(latent={"tooltip": latent}),
        }

    def make(
        self, model: Any, solver: str, steps: int, denoise: float, latent: dict[str, Any] | None = None
    ) -> tuple[KSAMPLER, Tensor, str]:
        """Returns SAMPLER, SIGMAS and a text about the choice."""
        shape = None if latent is None else latent["samples"].shape
        return select_solver(model, solver, steps, denoise=denoise, shape=shape)[:3]


class LearnedSolverKSampler(SolverNode):
    """LATENT sampled by a learned solver: one node instead of five."""

    TITLE = "KSampler (Learned Solver)"
    SEARCH_ALIASES = _ALIASES
    DESCRIPTION = (
        "A KSampler with coefficients learned for the model: good images in 3 to 10 model calls. The solver file and "
        "the number of calls are shown below the widgets."
    )
    RETURN_TYPES = ("LATENT", "STRING")
    RETURN_NAMES = ("latent", "info")
    OUTPUT_TOOLTIPS = ("The sampled latent.", _INFO)
    FUNCTION = "sample"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's
        latent = "The latent to start from: an empty one, or an encoded image with denoise below 1."
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
        """Returns the sampled LATENT and a text about the choice."""
        latent = fixed_latent(model, latent_image)
        samples = latent["samples"]
        guidance = guidance_of(model.model, [entry[1] for entry in positive], cfg)
        sampler, sigmas, info, _, note = select_solver(
            model, solver, steps, denoise=denoise, shape=samples.shape, guidance=guidance
        )
        show_text(note, node_id)
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
    """MODEL with the solver file that this pack's samplers use for it in stock nodes."""

    TITLE = "Set Learned Solver"
    SEARCH_ALIASES = _ALIASES
    DESCRIPTION = (
        f"Chooses the solver file for the samplers {_SAMPLERS} in stock nodes (KSampler, KSamplerAdvanced, "
        "KSamplerSelect). Without this node they choose a file automatically. Other samplers are not affected."
    )
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The same model, with the solver chosen.",)
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's
        steps = (
            "Steps of the solver's whole grid; 0 uses the sampler node's steps. Set this when only part of a grid "
            "runs: KSamplerAdvanced with a start or end step, or SplitSigmas."
        )
        missing = "Where the file lacks the steps: an error, or the nearest count, which the sampler's node then shows."
        return {
            "required": inputs("model", "solver", steps={"default": 0, "min": 0, "tooltip": steps}),
            "optional": {"missing_steps": (["error", "nearest"], {"tooltip": missing})},
        }

    def patch(self, model: Any, solver: str, steps: int, missing_steps: str = "error") -> tuple[Any]:
        """Returns a clone of the model with the choice in its options."""
        patched = model.clone()
        patched.model_options["transformer_options"][CHANNEL] = {
            "solver": solver,
            "steps": steps,
            "nearest": missing_steps == "nearest",
        }
        return (patched,)
