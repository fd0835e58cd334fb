"""Which solver a node runs on a model, its table there, and what a user should know about both."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from comfy.samplers import KSAMPLER
from torch import Tensor

from ..samplers import Guidance, Solver, SolverTable, choose_solver, part_of_table
from ..samplers.comfy_models import architecture_name, noise_of, pixel_size
from ..samplers.remarks import mismatches, notes
from ..samplers.schedules import Noise
from .base import AUTO, check_number
from .folder import SOLVERS
from .sampling import sample_learned_solver

__all__ = ["Selection", "remarks", "select_solver", "solver_of_entry"]

_log = logging.getLogger("learned_solvers")


@dataclass(frozen=True, eq=False)
class Selection:
    """A solver that fits a model.

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
    def sampler(self) -> KSAMPLER:
        """The SAMPLER; it makes its own table from the model and the guidance that it is handed."""
        options = {"solver": self.solver, "steps": self.steps, "tokens": self.noise.tokens}
        return KSAMPLER(sample_learned_solver, options)

    @property
    def sigmas(self) -> Tensor:
        """The SIGMAS, shape [table.steps + 1]."""
        return self.table.levels.float()


def select_solver(
    model: Any,
    entry: str,
    steps: int,
    *,
    denoise: float = 1.0,
    shape: Sequence[int] | None = None,
    guidance: Guidance | None = None,
) -> Selection:
    """The solver that a drop-down entry stands for on a MODEL; the log says which.

    Args:
        model: ComfyUI's ModelPatcher.
        entry: Drop-down entry.
        steps: Model calls of the whole grid.
        denoise: Part of the noise to start from.
        shape: The latent's shape, where it is known.
        guidance: Of the run, where it is known.

    Raises:
        ValueError: No solver fits, where the message lists those that do; or denoise is no part of a grid.
    """
    check_number("denoise", denoise, 0.01, 1)
    base, sampling = model.model, model.get_model_object("model_sampling")
    noise = noise_of(base, sampling, shape)
    solver, hints = solver_of_entry(entry, noise, steps, architecture=architecture_name(base))
    table = solver.table(steps, noise.with_tokens(), solver.guidance_of(guidance))  # of a usual size without a latent
    if denoise < 1:
        table = part_of_table(table, float(sampling.percent_to_sigma(1 - denoise)), 0.0)
    lines = [_summary(solver, steps, table, denoise), *hints]
    lines += remarks(solver, steps, base, sampling, noise, shape=shape, guidance=guidance)
    _log.info("%s", "; ".join(lines))
    return Selection(solver, steps, noise, table, "\n".join(lines))


def solver_of_entry(
    entry: str, noise: Noise, steps: int, *, architecture: str, family: str | None = None
) -> tuple[Solver, list[str]]:
    """The solver of a drop-down entry, and the solvers fitted for the model where `auto` chose a transfer instead.

    Args:
        entry: Drop-down entry.
        noise: The model's noise schedule.
        steps: Model calls.
        architecture: The model's, in ComfyUI's spelling.
        family: Family of solvers that `auto` chooses from; None for any.

    Raises:
        ValueError: `auto` finds none, or the file breaks a rule.
        FileNotFoundError: No file has the name.
    """
    if entry != AUTO:
        return SOLVERS.load(entry), []
    solvers = SOLVERS.loadable()
    chosen = choose_solver(solvers, noise, steps, architecture=architecture, family=family)
    if chosen.card.architecture == architecture:
        return chosen, []
    exact = [s for s in solvers if s.card.architecture == architecture and s.prediction == noise.kind]
    return chosen, [f"fitted for this model: {s.name}, with {', '.join(map(str, s.steps))} steps" for s in exact]


def remarks(
    solver: Solver,
    steps: int,
    base: Any,
    sampling: Any,
    noise: Noise,
    *,
    shape: Sequence[int] | None,
    guidance: Guidance | None,
) -> list[str]:
    """What a user should know about a solver on a model: its checkpoint, what does not match, its card's notes."""
    card, architecture, facts = solver.card, architecture_name(base), []
    if card.architecture == architecture and card.checkpoint != "unknown":
        facts.append(f"fitted for {card.checkpoint}")
    size = None if shape is None else pixel_size(base, shape)
    facts += mismatches(solver, steps, noise, architecture=architecture, guidance=guidance, size=size)
    shift = getattr(sampling, "shift", None)
    if noise.kind == "flow" and shift is not None:
        facts.append(f"the solver has its own noise levels: the model's shift of {shift:g} is not used")
    grid = card.steps[steps].grid
    if grid is not None and grid.needs_tokens and noise.tokens is None:
        facts.append(
            "sigmas shown for 1024x1024, as no latent is connected; the sampler uses the real size. Connect the latent "
            "before you split these sigmas"
        )
    return [*facts, *notes(solver, steps)]


def _summary(solver: Solver, steps: int, table: SolverTable, denoise: float) -> str:
    file = f"{solver.name} ({SOLVERS.place_of(solver.name)})"
    if denoise == 1:
        return f"{file}: {steps} steps, {table.nfe} model calls"
    return f"{file}: {table.nfe} of its {steps} model calls, from sigma {table.sigma_start:.3f} (denoise {denoise})"
