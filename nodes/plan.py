"""What a node is going to run: the solver, its table on the model at hand, and what is to be known about both."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..samplers import Solver, SolverTable, choose_solver, part_of_table
from ..samplers.comfy_models import default_guidance, has_guidance, model_family, noise_of, pixel_size
from ..samplers.guidance import among, listed
from ..samplers.schedules import FlowNoise, Noise, VPNoise, sized
from .folder import find_solver, loadable_solvers, place_of
from .inputs import AUTO, check_number

__all__ = ["Plan", "find", "guidance_of", "plan", "remarks"]

_SD_SIGMA_MAX = VPNoise.stable_diffusion().sigma_max
_log = logging.getLogger("learned_solvers")


@dataclass(frozen=True, eq=False)
class Plan:
    """A solver that was found to fit a model.

    Args:
        solver: The file.
        steps: Model calls of the whole grid.
        noise: The model's noise schedule.
        table: The table, or the part of it that denoise leaves.
        info: For people: which file, how many calls, what does not match.
    """

    solver: Solver
    steps: int
    noise: Noise
    table: SolverTable
    info: str

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `sample_learned_solver`."""
        return {"solver": self.solver, "steps": self.steps, "tokens": getattr(self.noise, "tokens", None)}


def plan(
    model: Any,
    name: str,
    steps: int,
    *,
    denoise: float = 1.0,
    shape: Sequence[int] | None = None,
    guidance: str | None = None,
) -> Plan:
    """Returns what a drop-down entry means for a MODEL.

    Args:
        model: ComfyUI's ModelPatcher.
        name: Drop-down entry.
        steps: Model calls of the whole grid.
        denoise: Part of the noise to start from.
        shape: The latent's shape, where it is known.
        guidance: As a card would say it, where it is known.

    Raises:
        ValueError: Nothing fits, where the message lists what does; or denoise is no part of a grid.
    """
    check_number("denoise", denoise, 0.01, 1)
    base, sampling = model.model, model.get_model_object("model_sampling")
    noise = noise_of(base, sampling, shape)
    solver, hints = find(name, noise, steps, architecture=model_family(base))
    table = solver.table(steps, sized(noise))  # to show: without a latent the size is not known
    if denoise < 1:
        table = part_of_table(table, float(sampling.percent_to_sigma(1 - denoise)), 0.0)
    told = [_summary(solver, steps, table, denoise), *hints]
    told += remarks(solver, steps, base, sampling=sampling, noise=noise, shape=shape, guidance=guidance)
    _log.info("%s", "; ".join(told))
    return Plan(solver, steps, noise, table, "\n".join(told))


def find(
    name: str, noise: Noise, steps: int, *, architecture: str, family: str | None = None
) -> tuple[Solver, list[str]]:
    """Returns the solver of a drop-down entry, and what else was fitted for the model if `auto` chose a transfer.

    Args:
        name: Drop-down entry, or `auto`.
        noise: The model's noise schedule.
        steps: Model calls.
        architecture: The model's, in ComfyUI's spelling.
        family: Family of solvers to choose from; None for any.
    """
    if name != AUTO:
        return find_solver(name), []
    solvers = loadable_solvers()
    chosen = choose_solver(solvers, noise, steps, model_family=architecture, family=family)
    if chosen.card.model_family == architecture:
        return chosen, []
    own = [s for s in solvers if s.card.model_family == architecture and s.prediction == noise.kind]
    return chosen, [f"fitted for this model: {s.name}, with {', '.join(map(str, s.steps))} steps" for s in own]


def remarks(
    solver: Solver,
    steps: int,
    base: Any,
    *,
    sampling: Any,
    noise: Noise,
    shape: Sequence[int] | None,
    guidance: str | None = None,
) -> list[str]:
    """Returns what does not match, and what the card wants to be known."""
    card, step = solver.card, solver.card.steps[steps]
    told = []
    if card.model_family != model_family(base):
        told.append(f"fitted for {card.checkpoint}, this model is {model_family(base)}: a transfer, compare it")
    elif card.checkpoint != "unknown":
        told.append(f"fitted for {card.checkpoint}")
    if card.guidance not in ("", "none") and not (guidance is not None and among(guidance, card.guidance)):
        here = "yours is not visible here" if guidance is None else f"here it is {guidance}"
        told.append(f"fitted at guidance {card.guidance}, {here}")
    if isinstance(noise, VPNoise) and abs(noise.sigma_max / _SD_SIGMA_MAX - 1) > 0.01:
        told.append(
            f"this model's noise starts at sigma {noise.sigma_max:.4g}, Stable Diffusion's at {_SD_SIGMA_MAX:.4g}: "
            "a transfer"
        )
    shift = getattr(sampling, "shift", None)
    if isinstance(noise, FlowNoise) and shift is not None:
        told.append(f"the solver has its own noise levels: the model's shift of {shift:g} is not used")
    size = None if shape is None else pixel_size(base, shape)
    if size and card.resolution and size != card.resolution:
        told.append(f"fitted at {card.resolution}, this latent is {size}")
    if step.grid is not None and step.grid.rule == "flux_shift" and sized(noise) is not noise:
        told.append(
            "sigmas shown for 1024x1024, as no latent is connected; the sampler uses the real size. Connect "
            "the latent before you split these sigmas"
        )
    return [*told, *(note for note in (card.note, step.note) if note)]


def _summary(solver: Solver, steps: int, table: SolverTable, denoise: float) -> str:
    file = f"{solver.name} ({place_of(solver.name)})"
    if denoise == 1:
        return f"{file}: {steps} steps, {table.nfe} model calls"
    return f"{file}: {table.nfe} of its {steps} model calls, from sigma {table.sigma_start:.3f} (denoise {denoise})"


def guidance_of(base: Any, conds: Iterable[Mapping[str, Any]], *cfgs: float) -> str:
    """Returns what a card says about guidance: CFG, or the guidance that is part of the conditioning.

    Args:
        base: ComfyUI's BaseModel.
        conds: The entries of the positive conditioning, without their tensors.
        cfgs: Classifier-free guidance, or several.
    """
    cfg = listed(cfgs)
    if not has_guidance(base):
        return cfg
    default = default_guidance(base)
    found = [cond["guidance"] for cond in conds if "guidance" in cond]
    if not found and default is None:
        return f"the host's default (distilled, CFG {cfg})"
    own = found[0] if found else default
    if own == default == 0:  # Chroma: as good as none
        return cfg
    return f"{'no guidance' if own is None else format(own, 'g')} (distilled, CFG {cfg})"
