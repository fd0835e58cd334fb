"""The automatic choice of a solver, and of a step count where the nearest will do."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from .files.solver import Solver
from .schedules import Noise
from .text import few, shown

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
    """Returns the solver that fits a model best.

    First one that was fitted for this architecture, else one whose authors show it on other models of the same
    prediction type; either must have the step count and make a table on the model's schedule. Among equals the first
    of `solvers` wins, so hosts list the user's own before the bundled ones.

    Args:
        solvers: Candidates.
        noise: The model's noise schedule. A solver that needs the size stays a candidate where a flow model's is not
            known: its table says what is missing.
        steps: Network calls.
        architecture: The model's in ComfyUI's spelling; None where the host cannot tell.
        family: Only solvers of this family; None for any.

    Raises:
        ValueError: None fits; the message lists what does.
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
    known, others = (
        [f"{shown(s.name, 100)} ({', '.join(map(str, s.steps))} steps)" for s in some]
        for some in (fitting, [s for s in same_type if s not in fitting and steps in s.steps])
    )
    ways = [f"choose the steps of {few(known, ', or of ')}"] if known else []
    ways += [f"name one that was fitted for another model: {few(others)}"] if others else []
    ways.append(f"fit one for {steps} steps on this model")
    raise ValueError(
        f"no {which} for {architecture or 'this'} ({noise.kind}) model has {steps} steps: {'; or '.join(ways)}"
    )


def nearest_steps(counts: Iterable[int], wanted: int) -> int:
    """Returns the step count nearest to the wanted one; of two that are equally near the larger."""
    return min(counts, key=lambda count: (abs(count - wanted), -count))


def _makes_table(solver: Solver, noise: Noise, steps: int) -> bool:
    """Whether a solver of the prediction type makes a table on a noise schedule, else the log says why not."""
    try:
        solver.table(steps, noise.with_tokens())
    except (ValueError, ArithmeticError) as error:
        _log.info("left out of the automatic choice: %s", error)
        return False
    return True
