"""A host's solver files: the user's and the bundled ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from ..architectures import RECORDS
from ..text import format_list, printable
from .solver import BUNDLED, SUFFIX, Solver, list_solvers, load_solver

__all__ = ["SolverFolder"]

_log = logging.getLogger("learned_solvers")


@dataclass(frozen=True)
class SolverFolder:
    """The user's folder of solver files in a host, together with the bundled solvers.

    Args:
        place: The folder as messages name it: "models/solver_weights".
        list_files: Returns the names of the user's files, with sub-folder and suffix.
        path_of: Returns the path of such a name; None if the file is gone.
    """

    place: str
    list_files: Callable[[], Iterable[str]]
    path_of: Callable[[str], Path | str | None]

    def names(self) -> list[str]:
        """The user's files (with suffix), then the bundled solvers (without). Names that are not UTF-8 are left out.

        Python reads such names on Linux as lone surrogates, which logs and web pages cannot encode.
        """
        names = []
        for name in self.list_files():
            if name.isascii() or name.encode(errors="ignore").decode() == name:
                names.append(name)
            else:
                _warn_once(f"skipped: the name of {name!a} in {self.place} is not UTF-8; rename it")
        return [*names, *list_solvers()]

    def choices(self) -> list[str]:
        """The `names` for drop-downs: without the bundled solvers of models that no host loads; `load` accepts them."""
        return [name for name in self.names() if name not in _unhosted()]

    def load(self, name: str) -> Solver:
        """The solver of a name in `names`; any other name, such as a path in a prompt, is refused."""
        return self._load(name)

    def loadable(self) -> list[Solver]:
        """All solvers that load without an error, the user's first; a broken file is logged once."""
        solvers, names = [], self.names()
        for name in names:
            try:
                solvers.append(self._load(name, names))
            except Exception as error:  # one broken file must not affect the others
                _warn_once(f"skipped in automatic selection: {error}", self._mark(name, names))
        return solvers

    def place_of(self, name: str) -> str:
        """The folder of a name's file, as messages name it."""
        return "bundled" if name in list_solvers() else self.place

    def fingerprint(self, *names: str) -> str:
        """A text that changes with the named files, or without names with any file."""
        if names:
            return "|".join(map(self._mark, names))
        listed = self.names()
        return "|".join(self._mark(name, listed) for name in listed)

    def _load(self, name: str, names: Sequence[str] | None = None) -> Solver:
        return replace(load_solver(self._path(name, names)), name=name)

    def _mark(self, name: str, names: Sequence[str] | None = None) -> str:
        try:
            status = self._path(name, names).stat()
            return f"{name}:{status.st_mtime_ns}:{status.st_size}"
        except OSError:
            return f"{name}:gone"

    def _path(self, name: str, names: Sequence[str] | None = None) -> Path:
        """The path of a bundled name, or of one in `names`, the current listing, which is made if not given."""
        if name in list_solvers():
            return BUNDLED / f"{name}{SUFFIX}"
        names = self.names() if names is None else names
        path = self.path_of(name) if name in names else None
        if path is None:
            raise FileNotFoundError(
                f"there is no solver file named {printable(repr(name), 200)}: choose one of {format_list(names)}, or "
                f"put the file into {self.place}"
            )
        return Path(path)


@cache
def _unhosted() -> frozenset[str]:
    """The bundled solvers that neither transfer nor were fitted for an architecture of a host."""
    hosted = {record.name for record in RECORDS}
    cards = {}
    for name in list_solvers():
        try:
            cards[name] = load_solver(name).card
        except Exception:  # its error appears when it is chosen
            continue
    return frozenset(n for n, card in cards.items() if not card.transferable and card.architecture not in hosted)


@cache
def _warn_once(text: str, mark: str = "") -> None:
    """Logs a warning about a file once, and again when the file's mark has changed."""
    _log.warning("%s", text)
