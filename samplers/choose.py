"""The automatic choice of a solver: an exact model match, else a transferable solver of the same prediction type."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from .schedules import Noise
from .solver_file import Solver

__all__ = ["choose_solver", "runs_on"]

_log = logging.getLogger("learned_solvers")


def choose_solver(
    solvers: Iterable[Solver],
    prediction: str,
    steps: int,
    *,
    model_family: str | None = None,
    family: str | None = None,
) -> Solver:
    """Returns the solver that fits a model best.

    First one that was fitted for this architecture, else one whose authors show it on other models of the same
    prediction type; either must have the step count. Among equals the first of `solvers` wins, so hosts list the
    user's own before the bundled ones.

    Args:
        solvers: Candidates.
        prediction: "flow", "vp" or "edm".
        steps: Network calls.
        model_family: Architecture in ComfyUI's spelling; None where the host cannot tell.
        family: Only solvers of this family; None for any.

    Raises:
        ValueError: None fits; the message lists what does.
    """
    same_type = [s for s in solvers if s.prediction == prediction and family in (None, s.family)]
    exact = [s for s in same_type if model_family is not None and s.card.model_family == model_family]
    transferable = [s for s in same_type if s.card.transferable]
    for candidates in (exact, transferable):
        for solver in candidates:
            if steps in solver.steps:
                return solver
    which = f"{family} solver" if family else "solver"
    fitting = list(dict.fromkeys([*exact, *transferable]))  # a transferable solver's own model is an exact match too
    known, others = (
        [f"{s.name} ({', '.join(map(str, s.steps))} steps)" for s in some]
        for some in (fitting, [s for s in same_type if s not in fitting and steps in s.steps])
    )
    ways = [f"choose the steps of {', or of '.join(known)}"] if known else []
    ways += [f"name one that was fitted for another model: {', '.join(others)}"] if others else []
    ways.append(f"fit one for {steps} steps on this model")
    raise ValueError(
        f"no {which} for {model_family or 'this'} ({prediction}) model has {steps} steps: {'; or '.join(ways)}"
    )


def runs_on(solver: Solver, noise: Noise, steps: int) -> bool:
    """Whether a solver makes a table on a noise schedule, else the log says why not.

    One of another prediction type or without the step count is no candidate anyway, and stays to be named in a refusal.
    """
    if solver.prediction != noise.kind or steps not in solver.steps:
        return True
    try:
        solver.table(steps, noise)
    except ValueError as error:
        _log.info("left out of the automatic choice: %s", error)
        return False
    return True
