"""Which solver runs on a model, with remarks for the user."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from comfy.samplers import KSAMPLER
from torch import Tensor

from ..samplers import Guidance, Solver, SolverTable, choose_solver, part_of_table
from ..samplers.comfy_models import architecture_name, noise_of, pixel_size
from ..samplers.families import FAMILIES
from ..samplers.remarks import mismatches, notes
from ..samplers.schedules import Noise
from .base import AUTO, check_number
from .folder import SOLVERS
from .sampling import sample_learned_solver

__all__ = ["find_solver", "select_solver"]

_log = logging.getLogger("learned_solvers")


class Selection(NamedTuple):
    """Outputs of the Learned Solver node, and the solver's name."""

    sampler: KSAMPLER
    sigmas: Tensor
    info: str
    name: str


def select_solver(
    model: Any,
    entry: str,
    steps: int,
    *,
    denoise: float = 1.0,
    shape: Sequence[int] | None = None,
    guidance: Guidance | None = None,
) -> Selection:
    """Resolves a drop-down entry for a MODEL and logs the choice. See `find_solver`."""
    check_number("denoise", denoise, 0.01, 1)
    sampling = model.get_model_object("model_sampling")
    solver, noise, table, remarks = find_solver(entry, steps, model.model, sampling, shape=shape, guidance=guidance)
    info = f"{solver.name} ({SOLVERS.place_of(solver.name)}): "
    if denoise < 1:
        table = part_of_table(table, float(sampling.percent_to_sigma(1 - denoise)), 0.0)
        info += f"{table.nfe} of its {steps} model calls, from sigma {table.sigma_start:.3f} (denoise {denoise})"
    else:
        info += f"{steps} steps, {table.nfe} model calls"
    _log.info("%s", "; ".join([info, *remarks]))
    options = {"solver": solver, "steps": steps, "noise": noise, "report": guidance is None}
    sampler = KSAMPLER(sample_learned_solver, options)
    return Selection(sampler, table.levels.float(), "\n".join([info, *remarks]), solver.name)


def find_solver(
    entry: str,
    steps: int,
    base: Any,
    sampling: Any,
    *,
    shape: Sequence[int] | None,
    guidance: Guidance | None,
    family: str | None = None,
) -> tuple[Solver, Noise, SolverTable, list[str]]:
    """The solver for a drop-down entry, the model's noise schedule, the whole table on it, and remarks for the user.

    Args:
        entry: Drop-down entry.
        steps: Steps of the whole grid.
        base: ComfyUI's BaseModel.
        sampling: Its model_sampling, patched or not.
        shape: The latent's shape; None if unknown.
        guidance: Of the run; None if unknown.
        family: Name of the solver family; None for any.
    """
    noise, architecture, remarks = noise_of(base, sampling, shape), architecture_name(base), []
    if entry == AUTO:
        solvers = SOLVERS.loadable()
        solver = choose_solver(solvers, noise, steps, architecture=architecture, family=family)
        if solver.card.architecture != architecture:
            exact = [s for s in solvers if s.card.architecture == architecture and s.prediction == noise.kind]
            remarks = [f"fitted for this model: {s.name} ({', '.join(map(str, s.steps))} steps)" for s in exact]
    else:
        solver = SOLVERS.load(entry)
    if family not in (None, solver.family):
        file_family, requested_family = FAMILIES[solver.family], FAMILIES[family]
        raise ValueError(
            f"{solver.name} is a {file_family.title} file: choose the sampler {file_family.sampler}, or another file "
            f"for the sampler {requested_family.sampler}"
        )
    table = solver.table(steps, noise.with_tokens(), solver.guidance_of(guidance))  # 1024x1024 without a latent
    card, grid = solver.card, solver.card.steps[steps].grid
    if card.architecture == architecture and card.checkpoint != "unknown":
        remarks.append(f"fitted for {card.checkpoint}")
    size = None if shape is None else pixel_size(base, shape)
    remarks += mismatches(solver, steps, noise, architecture=architecture, guidance=guidance, size=size)
    if noise.kind == "flow" and hasattr(sampling, "shift"):
        remarks.append(f"the solver has its own noise levels: the model's shift of {sampling.shift:g} is not used")
    if grid is not None and grid.needs_tokens and noise.tokens is None:
        remarks.append(
            "sigmas shown for 1024x1024, as no latent is connected; the sampler uses the actual size. Connect the "
            "latent before you split these sigmas"
        )
    if guidance is None and len(card.steps[steps].knots) > 1:
        remarks.append(
            "sigmas and model calls are shown for the usual guidance; at another guidance they differ. For denoise "
            "below 1 use KSampler (Learned Solver), and do not split these sigmas"
        )
    return solver, noise, table, [*remarks, *notes(solver, steps)]
