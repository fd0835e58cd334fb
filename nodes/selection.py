"""Which solver runs on a model, with remarks for the user."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from comfy.samplers import KSAMPLER
from torch import Tensor

from ..samplers import Guidance, Solver, SolverTable, choose_solver, part_of_table
from ..samplers.comfy_experts import boundary_of
from ..samplers.comfy_models import architecture_name, checkpoint_of, noise_of, pixel_size, shift_of
from ..samplers.comfy_obstacles import obstacles_of
from ..samplers.families import FAMILIES
from ..samplers.remarks import alternatives, is_far_transfer, mismatches, notes
from ..samplers.schedules import Noise
from ..samplers.text import count_noun
from .base import AUTO, check_number
from .folder import SOLVERS
from .sampling import sample_learned_solver

__all__ = ["Found", "find_solver", "select_solver"]

_log = logging.getLogger("learned_solvers")


class Selection(NamedTuple):
    """Outputs of the Learned Solver node, the solver's name, and the note on a node."""

    sampler: KSAMPLER
    sigmas: Tensor
    info: str
    name: str
    note: str


class Found(NamedTuple):
    """A solver for a model, its whole table on the model's noise schedule, and texts for the user.

    Attributes:
        mismatches: Differences between the solver's fit and the run.
        remarks: All that the user may want to know, the mismatches first.
        is_far_transfer: See `samplers.remarks`.
    """

    solver: Solver
    noise: Noise
    table: SolverTable
    mismatches: list[str]
    remarks: list[str]
    is_far_transfer: bool

    def options(self, steps: int, calls: int) -> dict[str, Any]:
        """Options of `sample_learned_solver`; after a far transfer it completes the note with the cost of a fit."""
        note = self.note(calls) if self.is_far_transfer else ""
        return {"solver": self.solver, "steps": steps, "noise": self.noise, "note": note}

    def note(self, calls: int) -> str:
        """A short text for a node, which shows two lines of it next to a preview."""
        facts = [f"{fact[0].upper()}{fact[1:].partition(': ')[0]}" for fact in self.mismatches]
        return ". ".join([f"{self.solver.name}, {count_noun(calls, 'call')}", *facts, ""]).rstrip()


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
    found = find_solver(entry, steps, model.model, sampling, shape=shape, guidance=guidance, patcher=model)
    solver, table, remarks = found.solver, found.table, found.remarks
    info = f"{solver.name} ({SOLVERS.place_of(solver.name)}): "
    if denoise < 1:
        table = part_of_table(table, float(sampling.percent_to_sigma(1 - denoise)), 0.0)
        info += f"{table.nfe} of its {steps} model calls, from sigma {table.sigma_start:.3f} (denoise {denoise})"
    else:
        info += f"{steps} steps, {table.nfe} model calls"
    _log.info("%s", "; ".join([info, *remarks]))
    sampler = KSAMPLER(sample_learned_solver, {**found.options(steps, table.nfe), "report": guidance is None})
    return Selection(sampler, table.levels.float(), "\n".join([info, *remarks]), solver.name, found.note(table.nfe))


def find_solver(
    entry: str,
    steps: int,
    base: Any,
    sampling: Any,
    *,
    shape: Sequence[int] | None,
    guidance: Guidance | None,
    patcher: Any = None,
    family: str | None = None,
) -> Found:
    """The solver for a drop-down entry, with its whole table and remarks on a model.

    Args:
        entry: Drop-down entry.
        steps: Steps of the whole grid.
        base: ComfyUI's BaseModel.
        sampling: Its model_sampling, patched or not.
        shape: The latent's shape; None if unknown.
        guidance: Of the run; None if unknown.
        patcher: ComfyUI's ModelPatcher, for the name of its file and its caches; None if unknown.
        family: Name of the solver family; None for any.
    """
    noise, architecture, remarks = noise_of(base, sampling, shape), architecture_name(base), []
    checkpoint = replace(checkpoint_of(base, patcher), boundary=boundary_of(patcher))
    run: Any = {"architecture": architecture, "checkpoint": checkpoint, "guidance": guidance}
    if entry == AUTO:
        solvers = SOLVERS.loadable()
        solver = choose_solver(solvers, noise, steps, family=family, **run)
        remarks = alternatives(solvers, solver, steps, architecture)
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
    shift = shift_of(sampling) if noise.kind == "flow" else None
    size = None if shape is None else pixel_size(base, shape)
    facts = mismatches(solver, steps, noise, size=size, shift=shift, **run)
    if patcher is not None:
        obstacles = obstacles_of(patcher)
        facts = [*(f"{each.fact}: {each.at_sampling}" for each in obstacles if each.at_sampling), *facts]
    if card.architecture == architecture and checkpoint.likeness(solver) >= 0 and card.checkpoint != "unknown":
        remarks.insert(0, f"fitted for {card.checkpoint}")
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
    remarks = [*facts, *remarks, *notes(solver, steps)]
    return Found(solver, noise, table, facts, remarks, is_far_transfer(solver, architecture, shift))
