"""The `KSampler (Learned Solver)` node: one node in place of five."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.utils
import latent_preview
from comfy.samplers import KSAMPLER

from .folder import fingerprint
from .host_text import show_text
from .inputs import (
    CATEGORY,
    cfg_input,
    denoise_input,
    latent_input,
    model_input,
    negative_input,
    positive_input,
    seed_input,
    solver_input,
    steps_input,
)
from .latents import fixed_latent
from .plan import guidance_of, plan
from .sampling import sample_learned_solver

__all__ = ["LearnedSolverKSampler"]


class LearnedSolverKSampler:
    """LATENT sampled by a learned solver."""

    TITLE = "KSampler (Learned Solver)"
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Samples with coefficients learned for the model: good pictures in 3 to 10 model calls. In the place of "
        "KSampler. Says below its widgets which file it took and how many calls it makes."
    )
    RETURN_TYPES = ("LATENT", "STRING")
    RETURN_NAMES = ("latent", "info")
    OUTPUT_TOOLTIPS = ("The sampled latent.", "Which file, how many model calls, and what does not match the model.")
    FUNCTION = "sample"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's
        return {
            "required": {
                "model": model_input(),
                "positive": positive_input(),
                "negative": negative_input(),
                "latent_image": latent_input("Where to begin: an empty latent, or a picture's with denoise below 1."),
                "seed": seed_input(),
                "solver": solver_input(),
                "steps": steps_input(),
                "cfg": cfg_input(),
                "denoise": denoise_input(),
            },
            "hidden": {"node_id": "UNIQUE_ID"},
        }

    @classmethod
    def IS_CHANGED(cls, solver: str | None = None, **_: Any) -> str:
        """Returns what changes when the solver's file does."""
        return fingerprint(solver)

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
        """Returns the sampled LATENT and what is to be known about the solver."""
        latent = fixed_latent(model, latent_image)
        guidance = guidance_of(model.model, [entry[1] for entry in positive], cfg)
        made = plan(model, solver, steps, denoise=denoise, shape=latent["samples"].shape, guidance=guidance)
        show_text(made.info, node_id)
        latent["samples"] = comfy.sample.sample_custom(
            model,
            comfy.sample.prepare_noise(latent["samples"], seed, latent.get("batch_index")),
            cfg,
            KSAMPLER(sample_learned_solver, made.options),
            made.table.levels.float(),
            positive,
            negative,
            latent["samples"],
            noise_mask=latent.get("noise_mask"),
            callback=latent_preview.prepare_callback(model, made.table.steps),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
        return latent, made.info
