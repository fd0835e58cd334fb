"""The `Learned Solver Info` node: a plot of a solver, and its card."""

from __future__ import annotations

import math
from typing import Any

import comfy.model_sampling
import comfy.samplers
from torch import Tensor

from ..samplers import Solver
from ..samplers.architectures import DEFAULT_PATCH
from ..samplers.comfy_models import noise_of
from ..samplers.files.card import StepCard
from ..samplers.guidance import format_values
from .base import SolverNode, inputs
from .folder import SOLVERS
from .pictures import to_image
from .plot import draw_solver

__all__ = ["LearnedSolverInfo"]


class LearnedSolverInfo(SolverNode):
    """IMAGE with a plot of a solver's numbers, and its card as text."""

    TITLE = "Learned Solver Info"
    CHOICES = ()
    DESCRIPTION = (
        "Shows the contents of a solver file: its coefficients, its noise levels next to a stock schedule's, the "
        "actual length of each step, and its card."
    )
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("plot", "card")
    OUTPUT_TOOLTIPS = ("One row per step count.", "Which model the solver was fitted for, by whom, and how well.")
    FUNCTION = "show"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's
        host = comfy.samplers.KSampler
        return {
            "required": {
                "solver": (SOLVERS.names(), {"tooltip": "Solver file, bundled or from models/solver_weights."}),
                **inputs(steps={"default": 0, "min": 0, "tooltip": "Step count to show; 0 shows all of them."}),
                "scheduler": (
                    host.SCHEDULERS,
                    {"tooltip": "Stock schedule to compare the solver's noise levels with."},
                ),
            },
            "optional": inputs(
                model={
                    "tooltip": "Provides the noise schedule. Without a model: the prediction type's default schedule."
                },
                latent={"tooltip": "Image size for grids that depend on it (FLUX). Without a latent: 1024x1024."},
            ),
        }

    def show(
        self, solver: str, steps: int, scheduler: str, model: Any = None, latent: dict[str, Any] | None = None
    ) -> tuple[Tensor, str]:
        """Returns the plot and the card as text."""
        loaded_solver = SOLVERS.load(solver)
        shape = None if latent is None else latent["samples"].shape
        sampling = (
            _usual_sampling(loaded_solver.prediction) if model is None else model.get_model_object("model_sampling")
        )
        noise = noise_of(None, sampling, None) if model is None else noise_of(model.model, sampling, shape)
        if shape is not None and len(shape) >= 4:
            noise = noise.with_tokens(math.ceil(shape[-2] / DEFAULT_PATCH) * math.ceil(shape[-1] / DEFAULT_PATCH))
        rows = []
        for count in [steps] if steps else loaded_solver.steps:
            stock = comfy.samplers.calculate_sigmas(sampling, scheduler, count)
            rows.append((loaded_solver.table(count, noise.with_tokens()), stock.cpu().double()))
        plot = draw_solver(f"{loaded_solver.name}, for {loaded_solver.card.checkpoint}", rows, scheduler)
        return to_image(plot), _card_text(loaded_solver)


def _usual_sampling(prediction: str) -> Any:
    """The host's default model_sampling for a prediction type."""
    host = comfy.model_sampling
    kinds = {
        "flow": (host.ModelSamplingDiscreteFlow, host.CONST),
        "vp": (host.ModelSamplingDiscrete, host.EPS),
        "edm": (host.ModelSamplingContinuousEDM, host.EPS),
    }[prediction]
    sampling = type("Usual", kinds, {})()
    if prediction == "edm":
        sampling.set_parameters(0.002, 80.0, 1.0)
    return sampling


def _card_text(solver: Solver) -> str:
    """A solver's card as text, one fact per line."""
    card = solver.card
    lines = {
        "file": f"{solver.name} ({SOLVERS.place_of(solver.name)})",
        "family": card.family,
        "prediction": card.prediction,
        "fitted for": f"{card.checkpoint} ({card.architecture})",
        "guidance": card.guidance,
        "two models": card.boundary and f"change at sigma {card.boundary:g}",
        "resolution": card.resolution,
        "steps": ", ".join(map(str, solver.steps)),
        "transfers": "also evaluated on other models of its prediction type" if card.transferable else "",
        "source": card.source,
        "paper": card.citation,
        "licence": card.licence,
        "date": card.date,
        "note": card.note,
        **{f"{count} steps": _step_text(step) for count, step in card.steps.items()},
    }
    return "\n".join(f"{name}: {value}" for name, value in lines.items() if value)


def _step_text(step: StepCard) -> str:
    facts = [
        step.knots and f"parameters at guidance {format_values(step.knots)}",
        *(f"{name} {value}" for name, value in step.options.items()),
        step.error_after is not None and f"held-out error {step.error_after:.4g}",
        step.error_best_peer is not None and f"best classical solver {step.best_peer} {step.error_best_peer:.4g}",
        step.teacher and f"teacher {step.teacher} with {step.teacher_steps} steps",
        step.network_calls and f"fitted with {step.network_calls:,} model calls",
        step.note,
    ]
    return "; ".join(fact for fact in facts if fact)
