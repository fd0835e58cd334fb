"""The solver files that a host offers: the user's own, then the bundled ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from ..text import few, shown
from .solver import BUNDLED, SUFFIX, Solver, list_solvers, load_solver

__all__ = ["SolverFolder"]

_log = logging.getLogger("learned_solvers")


@dataclass(frozen=True)
class SolverFolder:
    """A host's folder of solver files, and the bundled ones.

    Args:
        place: The folder, for people: "models/solver_weights".
        list_files: Returns the names of the user's files, with sub-folder and ending.
        path_of: Returns the path of one of these names; None where it is gone.
    """

    place: str
    list_files: Callable[[], Iterable[str]]
    path_of: Callable[[str], Path | str | None]

    def names(self) -> list[str]:
        """The user's files (with their ending), then the bundled solvers (without). Names outside UTF-8 are left out.

        Linux takes any bytes; Python reads those as halves of surrogate pairs, which end a log or a page.
        """
        names = []
        for name in self.list_files():
            if name.isascii() or name.encode(errors="ignore").decode() == name:
                names.append(name)
            else:
                _warn_once(f"left out: the name of {name!a} in {self.place} is not UTF-8; rename it")
        return [*names, *list_solvers()]

    def load(self, name: str) -> Solver:
        """The solver of a name that `names` lists; of nothing else, whatever a prompt may hold in its place."""
        return replace(load_solver(self._path(name)), name=name)

    def loadable(self) -> list[Solver]:
        """All solvers that can be read, the user's first; the log names a broken file once."""
        solvers = []
        for name in self.names():
            try:
                solvers.append(self.load(name))
            except Exception as error:  # whatever a broken file raises, the others can still be chosen
                _warn_once(f"left out of the automatic choice: {error}", self.fingerprint(name))
        return solvers

    def place_of(self, name: str) -> str:
        """Where a name's file lies, for people."""
        return "bundled" if name in list_solvers() else self.place

    def fingerprint(self, *names: str) -> str:
        """A text that changes when one of the files does; without names all are watched."""
        return "|".join(map(self._mark, names or self.names()))

    def _mark(self, name: str) -> str:
        try:
            status = self._path(name).stat()
            return f"{name}:{status.st_mtime_ns}:{status.st_size}"
        except OSError:
            return f"{name}:gone"

    def _path(self, name: str) -> Path:
        if name in list_solvers():
            return BUNDLED / f"{name}{SUFFIX}"
        names = self.names()
        path = self.path_of(name) if name in names else None
        if path is None:
            raise FileNotFoundError(
                f"no solver file is called {shown(repr(name), 200)}: choose one of {few(names)}, or put the file into "
                f"{self.place}"
            )
        return Path(path)


@cache
def _warn_once(text: str, mark: str = "") -> None:
    """Writes a warning about a file, again only when the file is another one."""
    _log.warning("%s", text)
