"""The `Learned Solver` node: a SAMPLER and its SIGMAS for the custom sampling nodes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from comfy.samplers import KSAMPLER
from torch import Tensor

from ..samplers import Solver, SolverTable, choose_solver, part_of_table
from ..samplers.host_models import model_family, noise_of, pixel_size
from ..samplers.schedules import FlowNoise, Noise, VPNoise
from .folder import find_solver, fingerprint, loadable_solvers, place_of, solver_names
from .sampling import sample_learned_solver

__all__ = ["AUTO", "LearnedSolver"]

AUTO = "auto"
_UNSEEN_TOKENS = 4096  # a 1024x1024 picture, for the sigmas shown where no latent is connected
_SD_SIGMA_MAX = VPNoise.stable_diffusion().sigma_max
_log = logging.getLogger("learned_solvers")


class LearnedSolver:
    """SAMPLER and SIGMAS of a learned solver, for SamplerCustom and SamplerCustomAdvanced."""

    TITLE = "Learned Solver"
    CATEGORY = "sampling/learned solvers"
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
                "model": ("MODEL", {"tooltip": "The model that will be sampled."}),
                "solver": (
                    [AUTO, *solver_names()],
                    {
                        "tooltip": "A solver file: bundled, or from models/solver_weights. auto takes one that was "
                        "fitted for this architecture, else one that transfers to this prediction type."
                    },
                ),
                "steps": (
                    "INT",
                    {
                        "default": 6,
                        "min": 1,
                        "max": 100,
                        "tooltip": "Model calls. A solver has the counts that it was fitted for; another count is an "
                        "error that lists them. CFG above 1 runs the model on both prompts in each call.",
                    },
                ),
                "denoise": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.01,
                        "max": 1.0,
                        "step": 0.01,
                        "tooltip": "Below 1, image-to-image: runs the last part of the solver's grid, from the noise "
                        "level where a stock sampler would start.",
                    },
                ),
            },
            "optional": {
                "latent": (
                    "LATENT",
                    {"tooltip": "The latent to be sampled, for grids that depend on resolution (FLUX)."},
                ),
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
        shape = None if latent is None else latent["samples"].shape
        sampling = model.get_model_object("model_sampling")
        noise = noise_of(model.model, sampling, shape)
        chosen = _choose(solver, noise, steps, model_family(model.model))
        table = chosen.table(steps, noise if _knows_size(noise) else FlowNoise(_UNSEEN_TOKENS))
        if denoise < 1:
            table = part_of_table(table, float(sampling.percent_to_sigma(1 - denoise)), 0.0)
        own = _own_solvers(chosen, noise, model.model) if solver == AUTO else []
        hints = [f"fitted for this model: {s.name}, with {', '.join(map(str, s.steps))} steps" for s in own]
        remarks = _remarks(chosen, steps, model.model, sampling, noise, shape)
        info = "\n".join([_summary(chosen, steps, table, denoise), *hints, *remarks])
        _log.info("%s", info.replace("\n", "; "))
        sampler = KSAMPLER(
            sample_learned_solver, extra_options={"solver": chosen, "steps": steps, "tokens": _tokens(noise)}
        )
        return sampler, table.levels.float(), info


def _choose(name: str, noise: Noise, steps: int, family: str) -> Solver:
    if name == AUTO:
        fitting = [s for s in loadable_solvers() if _makes_table(s, noise, steps)]
        return choose_solver(fitting, noise.kind, steps, model_family=family)
    return find_solver(name)


def _makes_table(solver: Solver, noise: Noise, steps: int) -> bool:
    """Whether a solver can run on a noise schedule; one without the step count stays, to be named in a refusal."""
    if solver.prediction != noise.kind or steps not in solver.steps:
        return True
    try:
        solver.table(steps, noise if _knows_size(noise) else FlowNoise(_UNSEEN_TOKENS))
    except ValueError as error:
        _log.info("left out of the automatic choice: %s", error)
        return False
    return True


def _own_solvers(chosen: Solver, noise: Noise, base: Any) -> list[Solver]:
    """Returns the solvers that were fitted for this architecture, where a transfer was chosen for the step count."""
    family = model_family(base)
    if chosen.card.model_family == family:
        return []
    return [s for s in loadable_solvers() if s.card.model_family == family and s.prediction == noise.kind]


def _tokens(noise: Noise) -> int | None:
    return noise.tokens if isinstance(noise, FlowNoise) else None


def _knows_size(noise: Noise) -> bool:
    return not (isinstance(noise, FlowNoise) and noise.tokens is None)


def _summary(solver: Solver, steps: int, table: SolverTable, denoise: float) -> str:
    file = f"{solver.name} ({place_of(solver.name)})"
    if denoise == 1:
        return f"{file}: {steps} steps, {table.nfe} model calls"
    return f"{file}: {table.nfe} of its {steps} model calls, from sigma {table.sigma_start:.3f} (denoise {denoise})"


def _remarks(
    solver: Solver, steps: int, base: Any, sampling: Any, noise: Noise, shape: Sequence[int] | None
) -> list[str]:
    """Returns what does not match, and what the card wants to be known."""
    card, step = solver.card, solver.card.steps[steps]
    remarks = []
    if card.model_family != model_family(base):
        remarks.append(f"fitted for {card.checkpoint}, this model is {model_family(base)}: a transfer, compare it")
    if card.guidance and card.guidance != "none":
        remarks.append(f"fitted at guidance {card.guidance} (your CFG is not visible here)")
    if isinstance(noise, VPNoise) and abs(noise.sigma_max / _SD_SIGMA_MAX - 1) > 0.01:
        remarks.append(
            f"this model's noise starts at sigma {noise.sigma_max:.4g}, Stable Diffusion's at 14.61: a transfer"
        )
    shift = getattr(sampling, "shift", None)
    if isinstance(noise, FlowNoise) and shift is not None:
        remarks.append(f"the solver has its own noise levels: the model's shift of {shift:g} is not used")
    size = None if shape is None else pixel_size(base, shape)
    if size and card.resolution and size != card.resolution:
        remarks.append(f"fitted at {card.resolution}, this latent is {size}")
    if step.grid is not None and step.grid.rule == "flux_shift" and not _knows_size(noise):
        remarks.append(
            "sigmas shown for 1024x1024, as no latent is connected; the sampler uses the real size. Connect "
            "the latent before you split these sigmas"
        )
    return [*remarks, *(note for note in (card.note, step.note) if note)]
