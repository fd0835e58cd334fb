"""Where solver files come from in ComfyUI: the bundled ones, and the user's in models/solver_weights/."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import folder_paths

from ..samplers import Solver, list_solvers, load_solver
from ..samplers.files.names import in_utf8
from ..samplers.files.solver import BUNDLED, SUFFIX
from ..samplers.text import shown

__all__ = ["FOLDER", "find_solver", "fingerprint", "loadable_solvers", "place_of", "solver_names"]

FOLDER = "solver_weights"
_log = logging.getLogger("learned_solvers")

folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
folder_paths.folder_names_and_paths[FOLDER][1].add(SUFFIX)  # a folder registered this way lists any file


def solver_names() -> list[str]:
    """Returns the user's files (with their ending, and sub-folder) and the bundled solvers (without)."""
    return [*in_utf8(folder_paths.get_filename_list(FOLDER), f"models/{FOLDER}"), *list_solvers()]


def find_solver(name: str) -> Solver:
    """Returns the solver of a drop-down entry.

    Raises:
        ValueError: The file breaks a rule.
        FileNotFoundError: It is gone.
    """
    return replace(load_solver(_path(name)), name=name)


def loadable_solvers() -> list[Solver]:
    """Returns all solvers that can be read, the user's first; the log names a broken one once."""
    solvers = []
    for name in solver_names():
        try:
            solvers.append(find_solver(name))
        except Exception as error:  # whatever a broken file raises, the others can still be chosen
            _warn_once(f"left out of the automatic choice: {error}", _mark(name))
    return solvers


def place_of(name: str) -> str:
    """Returns where a drop-down entry's file lies, for people."""
    return "bundled" if name in list_solvers() else f"models/{FOLDER}"


def fingerprint(name: str | None) -> str:
    """Returns what changes when a file behind a drop-down entry does; "auto" and wired names watch all of them."""
    names = solver_names() if name is None or name == "auto" else [name]
    return "|".join(map(_mark, names))


def _mark(name: str) -> str:
    """Returns what changes when a file does."""
    try:
        status = _path(name).stat()
        return f"{name}:{status.st_mtime_ns}:{status.st_size}"
    except OSError:
        return f"{name}:gone"


@cache
def _warn_once(text: str, mark: str) -> None:
    """Writes a warning about a file, again only when the file is another one."""
    _log.warning("%s", text)


def _path(name: str) -> Path:
    """Returns the file of an entry of the drop-down; of nothing else, whatever a prompt may hold in its place."""
    if name in list_solvers():
        return BUNDLED / f"{name}{SUFFIX}"
    path = folder_paths.get_full_path(FOLDER, name) if name in solver_names() else None
    if path is None:
        raise FileNotFoundError(
            f"no solver file is called {shown(repr(name), 200)}: choose one from the drop-down, or put it into "
            f"models/{FOLDER}"
        )
    return Path(path)
