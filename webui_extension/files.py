"""Where solver files come from in the WebUI: the bundled ones, and the user's in models/solver_weights/."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from modules.paths import data_path, models_path

from ..samplers import Solver, list_solvers, load_solver
from ..samplers.families import FAMILIES
from ..samplers.files.names import has_suffix, in_utf8
from ..samplers.files.solver import SUFFIX
from ..samplers.text import few, shown

__all__ = ["FOLDER", "PLACE", "described", "named_solver", "readable_solvers", "solver_names"]

FOLDER = Path(models_path) / "solver_weights"
PLACE = FOLDER.relative_to(data_path) if FOLDER.is_relative_to(data_path) else FOLDER  # for people
_log = logging.getLogger("learned_solvers")


def solver_names() -> list[str]:
    """Returns the user's files (with sub-folder and ending), then the bundled solvers (without)."""
    own = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if has_suffix(path, SUFFIX))
    return [*in_utf8(own, str(PLACE)), *list_solvers()]


def named_solver(name: str) -> Solver:
    """Returns the solver of that name; a path that leads out of the folder is no name.

    Raises:
        ValueError: No file has the name, or the file breaks a rule.
    """
    if name not in solver_names():
        raise ValueError(
            f"no solver file is called {shown(repr(name), 200)}: choose one of {few(solver_names())}, or put the file "
            f"into {PLACE}"
        )
    return replace(load_solver(FOLDER / name if has_suffix(name, SUFFIX) else name), name=name)


def readable_solvers() -> list[Solver]:
    """Returns all solvers that can be read, the user's first; the log names a file that cannot."""
    solvers = []
    for name in solver_names():
        try:
            solvers.append(named_solver(name))
        except (ValueError, OSError) as error:
            _log.warning("left out of the automatic choice: %s", error)
    return solvers


def described(name: str) -> str:
    """Returns what a file is for, in one line of Markdown."""
    try:
        solver = named_solver(name)
    except (ValueError, OSError) as error:
        return f"**{error}**"
    card = solver.card
    guidance = f", at guidance {card.guidance}" if card.guidance not in ("", "none") else ""
    return (
        f"{FAMILIES[solver.family].title} for {card.model_family} ({card.checkpoint}, {solver.prediction} prediction"
        f"{guidance}): {', '.join(map(str, solver.steps))} steps"
    )
