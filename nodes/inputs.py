"""Inputs that several nodes share, so that they are called and explained alike."""

from __future__ import annotations

import re
from typing import Any

from .folder import solver_names

__all__ = [
    "AUTO",
    "CATEGORY",
    "SolverName",
    "cfg_input",
    "check_number",
    "counts_of",
    "denoise_input",
    "latent_input",
    "model_input",
    "negative_input",
    "positive_input",
    "seed_input",
    "solver_input",
    "steps_input",
]

AUTO = "auto"
CATEGORY = "sampling/learned solvers"


class SolverName(str):
    """An output type that may be wired into STRING inputs and into drop-downs, whose type is their list of entries."""

    def __ne__(self, other: object) -> bool:  # ComfyUI asks `received != wanted`
        return isinstance(other, str) and not {"STRING", "COMBO", "*"} & set(other.split(","))

    __hash__ = str.__hash__


def check_number(name: str, value: float, lowest: float, highest: float) -> None:
    """Refuses a number outside a widget's range, and NaN: the host checks what is typed, not what is wired.

    Raises:
        ValueError: It is outside.
    """
    if not lowest <= value <= highest:
        raise ValueError(f"{name} must be from {lowest:g} to {highest:g}, got {value:g}")


def counts_of(text: str) -> tuple[int, ...]:
    """Returns the step counts of a widget's text, ascending.

    Raises:
        ValueError: There is something else in it than counts from 1 to 100.
    """
    words = re.split(r"[\s,;]+", text.strip())
    if not all(re.fullmatch(r"[1-9]\d?|100", word) for word in words):
        raise ValueError(f"steps must be numbers of model calls from 1 to 100, such as 4 6 8, got {text!r}")
    return tuple(sorted({int(word) for word in words}))


def model_input(tooltip: str = "The model that will be sampled.") -> tuple[str, dict[str, Any]]:
    """Returns the input of a model."""
    return ("MODEL", {"tooltip": tooltip})


def positive_input() -> tuple[str, dict[str, Any]]:
    """Returns the input of the conditioning to follow."""
    return ("CONDITIONING", {"tooltip": "What the picture shall show."})


def negative_input() -> tuple[str, dict[str, Any]]:
    """Returns the input of the conditioning to avoid."""
    return ("CONDITIONING", {"tooltip": "What it shall not show. Without effect at CFG 1."})


def latent_input(tooltip: str) -> tuple[str, dict[str, Any]]:
    """Returns the input of a latent."""
    return ("LATENT", {"tooltip": tooltip})


def solver_input(tooltip: str = "", *first: str) -> tuple[list[str], dict[str, Any]]:
    """Returns the drop-down of solver files, `auto` first, or the entries given instead."""
    explained = (
        "A solver file: bundled, or from models/solver_weights. auto takes one that was fitted for this architecture, "
        "else one that transfers to this prediction type."
    )
    return ([*(first or (AUTO,)), *solver_names()], {"tooltip": tooltip or explained})


def steps_input(tooltip: str = "", default: int = 6, lowest: int = 1) -> tuple[str, dict[str, Any]]:
    """Returns the number of model calls."""
    explained = (
        "Model calls. A solver has the counts that it was fitted for; another count is an error that lists them. CFG "
        "above 1 runs the model on both prompts in each call."
    )
    return ("INT", {"default": default, "min": lowest, "max": 100, "tooltip": tooltip or explained})


def denoise_input() -> tuple[str, dict[str, Any]]:
    """Returns the strength of image-to-image."""
    tooltip = (
        "Below 1, image-to-image: runs the last part of the solver's grid, from the noise level where a stock sampler "
        "would start. That takes part of the calls."
    )
    return ("FLOAT", {"default": 1.0, "min": 0.01, "max": 1.0, "step": 0.01, "tooltip": tooltip})


def cfg_input(tooltip: str = "") -> tuple[str, dict[str, Any]]:
    """Returns classifier-free guidance."""
    explained = (
        "Classifier-free guidance. Best near the value that the solver was fitted at; 1 for FLUX and its like, whose "
        "guidance is part of the conditioning."
    )
    return (
        "FLOAT",
        {"default": 7.5, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01, "tooltip": tooltip or explained},
    )


def seed_input(tooltip: str = "The noise that the picture is made of.", again: bool = True) -> tuple[str, dict]:
    """Returns a seed; `again`: the widget draws a new one after each run."""
    return ("INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": again, "tooltip": tooltip})
