"""The automatic choice of a solver and of the nearest step count."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from .files.solver import Solver
from .schedules import Noise
from .text import format_list, printable

__all__ = ["choose_solver", "nearest_steps"]

_log = logging.getLogger("learned_solvers")


def choose_solver(
    solvers: Iterable[Solver],
    noise: Noise,
    steps: int,
    *,
    architecture: str | None = None,
    family: str | None = None,
) -> Solver:
    """The solver that fits a model best.

    A solver fitted for this architecture comes first, then one that its authors show on other models of the same
    prediction type. Either must have the step count and give a valid table on the model's noise schedule. Among equals
    the first of `solvers` wins, so hosts list the user's files before the bundled ones.

    Args:
        solvers: Candidates.
        noise: The model's noise schedule. A solver that depends on the image size stays a candidate if the size is
            unknown; its table raises the error.
        steps: Network calls.
        architecture: The model's architecture in ComfyUI's spelling; None if unknown.
        family: Name of the solver family; None for any.

    Raises:
        ValueError: No solver fits; the message lists the alternatives.
    """
    same_type = [s for s in solvers if s.prediction == noise.kind and family in (None, s.family)]
    same_type = [s for s in same_type if steps not in s.steps or _makes_table(s, noise, steps)]
    exact = [s for s in same_type if architecture is not None and s.card.architecture == architecture]
    transferable = [s for s in same_type if s.card.transferable]
    for candidates in (exact, transferable):
        for solver in candidates:
            if steps in solver.steps:
                return solver
    which = f"{family} solver" if family else "solver"
    fitting = list(dict.fromkeys([*exact, *transferable]))  # a transferable solver's own model is an exact match too
    other_counts, other_models = (
        [f"{printable(s.name, 100)} ({', '.join(map(str, s.steps))} steps)" for s in group]
        for group in (fitting, [s for s in same_type if s not in fitting and steps in s.steps])
    )
    options = [f"use a step count that another solver supports: {format_list(other_counts)}"] if other_counts else []
    options += [f"choose a solver fitted for another model: {format_list(other_models)}"] if other_models else []
    options.append(f"fit one for {steps} steps on this model")
    raise ValueError(
        f"no {which} for {architecture or 'this model'} ({noise.kind}) has {steps} steps; {'; or '.join(options)}"
    )


def nearest_steps(counts: Iterable[int], steps: int) -> int:
    """The count nearest to `steps`; of two equally near ones the larger."""
    return min(counts, key=lambda count: (abs(count - steps), -count))


def _makes_table(solver: Solver, noise: Noise, steps: int) -> bool:
    """Whether a solver gives a valid table on a noise schedule of its kind; logs the reason if it does not."""
    try:
        solver.table(steps, noise.with_tokens())
    except (ValueError, ArithmeticError) as error:
        _log.info("skipped in automatic selection: %s", error)
        return False
    return True
