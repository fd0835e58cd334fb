"""The automatic choice of a solver and of the nearest step count."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

from .families import FAMILIES
from .files.solver import MissingSteps, Solver, nearest_steps
from .guidance import Guidance
from .schedules import Noise
from .text import format_list, format_numbers, printable

__all__ = ["Checkpoint", "choose_solver", "nearest_steps"]

_log = logging.getLogger("learned_solvers")


def choose_solver(
    solvers: Iterable[Solver],
    noise: Noise,
    steps: int,
    *,
    architecture: str | None = None,
    family: str | None = None,
    checkpoint: Checkpoint | None = None,
    guidance: Guidance | None = None,
) -> Solver:
    """The solver that fits a model best.

    Only where none is fitted for this architecture, one is chosen that its authors show on other models of the same
    prediction type. Either must have the step count and give a valid table on the model's noise schedule. Of several
    for the architecture, one fitted for the same number of models comes first, then one for this checkpoint, then one
    whose guidance covers the run's, then the newest; among equals the first of `solvers`, so hosts list the user's
    files before the bundled ones.

    Args:
        solvers: Candidates.
        noise: The model's noise schedule. A solver that depends on the image size stays a candidate if the size is
            unknown; its table raises the error.
        steps: Network calls.
        architecture: The model's architecture in ComfyUI's spelling; None if unknown.
        family: Name of the solver family; None for any.
        checkpoint: The model's weights; None if unknown.
        guidance: Of the run; None if unknown.

    Raises:
        MissingSteps: The solvers that fit have other step counts; the message lists them.
        ValueError: No solver fits; the message lists the alternatives.
    """
    same_type = [s for s in solvers if s.prediction == noise.kind and family in (None, s.family)]
    same_type = [s for s in same_type if steps not in s.steps or _makes_table(s, noise, steps)]
    exact = [s for s in same_type if architecture is not None and s.card.architecture == architecture]
    transferable = [s for s in same_type if s.card.transferable]
    fitting = exact or transferable
    candidates = [s for s in fitting if steps in s.steps]
    if exact:
        known = checkpoint or Checkpoint()
        candidates.sort(key=lambda s: s.card.date, reverse=True)
        candidates.sort(
            key=lambda s: (s.card.boundary != known.boundary, -known.likeness(s), not _covers(s, steps, guidance))
        )
    if candidates:
        return candidates[0]
    if fitting:
        counts = format_list([f"{printable(s.name, 100)} has {format_numbers(s.steps)} steps" for s in fitting])
        nearest = nearest_steps([count for s in fitting for count in s.steps], steps)
        message = f"{counts}, not {steps}: set steps to {nearest}, or fit a solver for {steps} on this model"
        raise MissingSteps(message, nearest)
    others = [f"{printable(s.name, 100)} ({format_numbers(s.steps)} steps)" for s in same_type if steps in s.steps]
    option = f"choose one fitted for another model: {format_list(others)}; or " if others else ""
    which = f"{FAMILIES[family].title} solver" if family else "solver"
    raise ValueError(
        f"no {which} is fitted for {architecture or 'this model'} or transfers to {noise.kind} models: {option}fit one "
        "on this model"
    )


@dataclass(frozen=True)
class Checkpoint:
    """What identifies a model's weights; empty texts if unknown.

    Args:
        name: Name of the file.
        fingerprint: Of the weights, equal under any file name.
        boundary: Noise level at which a second model takes over; None for one model.
    """

    name: str = ""
    fingerprint: str = ""
    boundary: float | None = None

    def likeness(self, solver: Solver) -> int:
        """2 for a solver of these weights, 1 for one of a checkpoint with this name, -1 for other weights, else 0."""
        card = solver.card
        if self.fingerprint and card.fingerprint:
            return 2 if self.fingerprint == card.fingerprint else -1
        return int(bool(self.name) and PurePath(self.name).stem.lower() == _stem(card.checkpoint))


def _stem(name: str) -> str:
    return PurePath(name).name.lower().removesuffix(".safetensors")


def _covers(solver: Solver, steps: int, guidance: Guidance | None) -> bool:
    fitted = solver.card.guidance_of(steps)
    return fitted is not None and guidance is not None and fitted.covers(guidance)


def _makes_table(solver: Solver, noise: Noise, steps: int) -> bool:
    """Whether a solver gives a valid table on a noise schedule of its kind; logs the reason if it does not."""
    try:
        solver.table(steps, noise.with_tokens())
    except (ValueError, ArithmeticError) as error:
        _log.info("skipped in automatic selection: %s", error)
        return False
    return True
