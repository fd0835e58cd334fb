"""The `Learned Solver Info` node: a solver as a picture, and its card."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import comfy.model_sampling
import comfy.samplers
from torch import Tensor

from ..samplers import Solver
from ..samplers.comfy_models import noise_of
from ..samplers.schedules import USUAL_TOKENS, FlowNoise, Noise
from .folder import find_solver, fingerprint, place_of
from .inputs import CATEGORY, latent_input, model_input, solver_input, steps_input
from .plot import Sheet, draw_sheets

__all__ = ["LearnedSolverInfo"]


class LearnedSolverInfo:
    """A picture of a solver's numbers, and what its file says of itself."""

    TITLE = "Learned Solver Info"
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Shows what is in a solver file: its coefficients, its noise levels beside a stock schedule's, how far each "
        "step really goes, and its card."
    )
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("plot", "card")
    OUTPUT_TOOLTIPS = ("A row per step count.", "For which model it was fitted, by whom, and how well.")
    FUNCTION = "show"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's
        steps = "The step count to show; 0 shows all that the file has."
        names = solver_input()[0][1:]
        return {
            "required": {
                "solver": (names, {"tooltip": "A solver file: bundled, or from models/solver_weights."}),
                "steps": steps_input(steps, default=0, lowest=0),
                "scheduler": (
                    comfy.samplers.KSampler.SCHEDULERS,
                    {"tooltip": "The stock schedule that its noise levels are shown beside."},
                ),
            },
            "optional": {
                "model": model_input("Shows the solver on this model's noise schedule. Without it: a usual one."),
                "latent": latent_input("For grids that depend on resolution (FLUX). Without it: 1024x1024."),
            },
        }

    @classmethod
    def IS_CHANGED(cls, solver: str | None = None, **_: Any) -> str:
        """Returns what changes when the solver's file does."""
        return fingerprint(solver)

    def show(
        self, solver: str, steps: int, scheduler: str, model: Any = None, latent: dict[str, Any] | None = None
    ) -> tuple[Tensor, str]:
        """Returns the plot and the card."""
        found = find_solver(solver)
        sampling = _usual(found) if model is None else model.get_model_object("model_sampling")
        shape = None if latent is None else latent["samples"].shape
        noise = noise_of(None, sampling, None) if model is None else noise_of(model.model, sampling, shape)
        if isinstance(noise, FlowNoise) and noise.tokens is None:
            noise = FlowNoise(_usual_tokens(shape))
        sheets = [_sheet(found, n, noise, sampling, scheduler) for n in ([steps] if steps else found.steps)]
        return draw_sheets(f"{found.name}, for {found.card.checkpoint}", sheets), _card_text(found)


def _usual(solver: Solver) -> Any:
    """Returns a model_sampling of the solver's prediction type, as the host makes it without a model."""
    host = comfy.model_sampling
    kinds = {
        "flow": (host.ModelSamplingDiscreteFlow, host.CONST),
        "vp": (host.ModelSamplingDiscrete, host.EPS),
        "edm": (host.ModelSamplingContinuousEDM, host.EPS),
    }[solver.prediction]
    sampling = type("Usual", kinds, {})()
    if solver.prediction == "edm":
        sampling.set_parameters(0.002, 80.0, 1.0)
    return sampling


def _usual_tokens(shape: Sequence[int] | None) -> int:
    """Returns the tokens of a latent by FLUX's patches of 2 x 2; those of 1024x1024 pixels where there is none."""
    if shape is None or len(shape) < 4:
        return USUAL_TOKENS
    return math.ceil(shape[-2] / 2) * math.ceil(shape[-1] / 2)


def _sheet(solver: Solver, steps: int, noise: Noise, sampling: Any, scheduler: str) -> Sheet:
    table = solver.table(steps, noise)
    stock = comfy.samplers.calculate_sigmas(sampling, scheduler, steps)
    return Sheet(f"{steps} steps, {table.nfe} model calls", table, stock.cpu().double(), scheduler)


def _card_text(solver: Solver) -> str:
    """Returns a solver's card for people."""
    card = solver.card
    known = {
        "file": f"{solver.name} ({place_of(solver.name)})",
        "family": card.family,
        "prediction": card.prediction,
        "fitted for": f"{card.checkpoint} ({card.model_family})",
        "guidance": card.guidance,
        "resolution": card.resolution,
        "steps": ", ".join(map(str, solver.steps)),
        "transfers": "shown on other models of its prediction type too" if card.transferable else "",
        "source": card.source,
        "paper": card.citation,
        "licence": card.licence,
        "date": card.date,
        "note": card.note,
    }
    lines = [f"{name}: {value}" for name, value in known.items() if value]
    for n, step in card.steps.items():
        told = []
        if step.error_after is not None:
            told.append(f"held-out error {step.error_after:.4g}")
        if step.error_best_peer is not None:
            told.append(f"best classical solver {step.best_peer} {step.error_best_peer:.4g}")
        if step.teacher:
            told.append(f"teacher {step.teacher} with {step.teacher_steps} steps")
        if step.network_calls:
            told.append(f"{step.network_calls:,} model calls spent")
        if step.note:
            told.append(step.note)
        if told:
            lines.append(f"{n} steps: {'; '.join(told)}")
    return "\n".join(lines)
