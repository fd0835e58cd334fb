"""Which solver a job gets: that of the X/Y/Z axis, else of the tab's accordion, else of the settings."""

from __future__ import annotations

from typing import Any

from modules import shared

from ..samplers import Solver, choose_solver
from ..samplers.families import FAMILIES
from ..samplers.schedules import Noise
from .files import named_solver, readable_solvers

__all__ = ["AS_SET", "AUTO", "fitting_solvers", "solver_for", "wants_nearest", "wished_file"]

AUTO = "auto"
AS_SET = "as in Settings"


def wished_file(p: Any) -> str:
    """Returns the solver file's name that a job asks for, or "auto"."""
    for own in (getattr(p, "learned_solvers_axis", None), getattr(p, "learned_solvers_file", None)):
        if own and own != AS_SET:
            return own
    return getattr(shared.opts, "learned_solvers_file", None) or AUTO


def wants_nearest(p: Any) -> bool:
    """Whether a job takes the nearest step count instead of an error."""
    return bool(getattr(p, "learned_solvers_nearest", False) or getattr(shared.opts, "learned_solvers_nearest", False))


def solver_for(p: Any, family: str, noise: Noise, architecture: str | None, steps: int) -> Solver:
    """Returns the solver of a job; a named file may lack the steps, which `Solver.table` then says.

    Raises:
        ValueError: None fits, or the named one is missing, broken or of the other family.
    """
    name = wished_file(p)
    if name != AUTO:
        return _of_family(named_solver(name), family)
    return choose_solver(readable_solvers(), noise, steps, model_family=architecture, family=family)


def fitting_solvers(p: Any, family: str, noise: Noise, architecture: str | None) -> list[Solver]:
    """Returns the solvers that a job may get, whatever its steps.

    Raises:
        ValueError: The named file is missing, broken or of the other family.
    """
    name = wished_file(p)
    if name != AUTO:
        return [_of_family(named_solver(name), family)]
    return [
        s
        for s in readable_solvers()
        if s.family == family
        and s.prediction == noise.kind
        and (s.card.transferable or s.card.model_family == architecture)
    ]


def _of_family(solver: Solver, family: str) -> Solver:
    if solver.family != family:
        raise ValueError(
            f"{solver.name} is a {FAMILIES[solver.family].title} file: take the sampler {FAMILIES[solver.family].title}"
            f" for it, or choose another file for {FAMILIES[family].title}"
        )
    return solver
