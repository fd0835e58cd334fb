"""Which solver runs on a model, and what a user should know about both."""

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

__all__ = ["Selection", "find_solver", "select_solver"]

_log = logging.getLogger("learned_solvers")


class Selection(NamedTuple):
    """The outputs of the Learned Solver node, and the solver's name."""

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
    """What a drop-down entry stands for on a MODEL; the log says which. See `find_solver`."""
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
    options = {"solver": solver, "steps": steps, "tokens": noise.tokens, "report": guidance is None}
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
    """The solver of a drop-down entry, the model's noise schedule, the whole table on it, and remarks for the user.

    Args:
        entry: Drop-down entry.
        steps: Model calls of the whole grid.
        base: ComfyUI's BaseModel.
        sampling: Its model_sampling, patched or not.
        shape: The latent's shape, where it is known.
        guidance: Of the run, where it is known.
        family: Name of the solvers' family; None for any.
    """
    noise, architecture, remarks = noise_of(base, sampling, shape), architecture_name(base), []
    if entry == AUTO:
        solvers = SOLVERS.loadable()
        solver = choose_solver(solvers, noise, steps, architecture=architecture, family=family)
        if solver.card.architecture != architecture:
            exact = [s for s in solvers if s.card.architecture == architecture and s.prediction == noise.kind]
            remarks = [f"fitted for this model: {s.name}, with {', '.join(map(str, s.steps))} steps" for s in exact]
    else:
        solver = SOLVERS.load(entry)
    if family not in (None, solver.family):
        own, other = FAMILIES[solver.family], FAMILIES[family]
        raise ValueError(
            f"{solver.name} is a {own.title} file: choose the sampler {own.sampler}, or another file for the sampler "
            f"{other.sampler}"
        )
    table = solver.table(steps, noise.with_tokens(), solver.guidance_of(guidance))  # of a usual size without a latent
    card, grid = solver.card, solver.card.steps[steps].grid
    if card.architecture == architecture and card.checkpoint != "unknown":
        remarks.append(f"fitted for {card.checkpoint}")
    size = None if shape is None else pixel_size(base, shape)
    remarks += mismatches(solver, steps, noise, architecture=architecture, guidance=guidance, size=size)
    if noise.kind == "flow" and hasattr(sampling, "shift"):
        remarks.append(f"the solver has its own noise levels: the model's shift of {sampling.shift:g} is not used")
    if grid is not None and grid.needs_tokens and noise.tokens is None:
        remarks.append(
            "sigmas shown for 1024x1024, as no latent is connected; the sampler uses the real size. Connect the latent "
            "before you split these sigmas"
        )
    if guidance is None and len(card.steps[steps].knots) > 1:
        remarks.append(
            "sigmas and calls are shown for the usual guidance; at another they differ. Use KSampler (Learned Solver) "
            "for denoise below 1, and do not split these sigmas"
        )
    return solver, noise, table, [*remarks, *notes(solver, steps)]
