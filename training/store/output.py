"""Output of a fit: a working folder, then the solver file, its report and its picture, in this order."""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
from filelock import FileLock, Timeout

from ...samplers.files.solver import Solver, load_solver
from ...samplers.files.write import write_whole

__all__ = ["WORK_SUFFIX", "Output", "claimed"]

# Before version 4 filelock deletes the file itself; deleting it again could hit another process's lock.
_RELEASE_KEEPS_FILE = int(filelock.__version__.partition(".")[0]) >= 4
_log = logging.getLogger("learned_solvers")

WORK_SUFFIX = ".work"
"""Suffix of files that a fit works with. They are safetensors, but no host must list them as solvers."""
# What a fit leaves in its folder; prompts and working folders are named by a hash.
_WORK_FILES = re.compile(rf"prompts-[0-9a-f]+\{WORK_SUFFIX}|[0-9a-f]{{16}}|\..*\.part")


@dataclass(frozen=True)
class Output:
    """The solver file of a fit, with its report (.md) and picture (.png) next to it.

    Args:
        solver: Path of the solver file.
        fit_id: Identity of the fit, as on the solver's card; tells its own files from others.
        overwrite: Whether files of other fits may be replaced.
        rename: In messages, how to choose another name.
        replace: In messages, how to allow overwriting.
    """

    solver: Path
    fit_id: str
    overwrite: bool = False
    rename: str = "choose another --output"
    replace: str = "add --overwrite"

    @property
    def report(self) -> Path:
        """The report, in Markdown."""
        return self.solver.with_suffix(".md")

    @property
    def picture(self) -> Path:
        """The picture of a few held-out samples; missing if it could not be drawn."""
        return self.solver.with_suffix(".png")

    @property
    def folder(self) -> Path:
        """The folder that an interrupted fit resumes from; deleted at the end."""
        return self.solver.with_suffix(".fit")

    def is_finished(self) -> bool:
        """Whether this very fit has written its solver and removed its working files."""
        return self._is_own() and not self._work_files()

    def check(self) -> None:
        """Refuses a path that cannot be written, and files unless this fit wrote them and was then interrupted."""
        try:
            str(self.solver.absolute()).encode()
        except UnicodeEncodeError:
            raise ValueError(f"{str(self.solver)!a} is not valid UTF-8: {self.rename}") from None
        for file in (self.solver, self.report, self.picture):
            if file.is_dir():
                raise IsADirectoryError(f"{file} is a folder: {self.rename}")
        unfinished = self._is_own() and self._work_files()
        if self.overwrite or unfinished:
            return
        for file in (self.solver,) if self._is_own_report() else (self.solver, self.report, self.picture):
            if os.path.lexists(file):
                raise FileExistsError(f"{file} already exists: {self.rename}, or {self.replace}")

    @contextmanager
    def claimed(self, needed: int) -> Iterator[None]:
        """Locks the folder, see `claimed`."""
        with claimed(self.folder, needed, name=str(self.solver), remedy=self.rename):
            yield

    def deliver(self, solver: Solver, report: str) -> None:
        """Writes the solver, then the report; a former picture is deleted."""
        try:
            self.check()  # again: another program may have written there during the fit
        except FileExistsError as error:
            raise FileExistsError(f"{error}; or move it away and run again, which delivers this fit") from None
        solver.save(self.solver, overwrite=self.overwrite or self._is_own())
        write_whole(self.report, f"# {self.solver.stem}\n\n{report}\n\n{self._mark}\n".encode())
        self.picture.unlink(missing_ok=True)

    def add_picture(self, picture: Any) -> None:
        """Writes the picture, a PIL image, and adds it to the report."""
        content = io.BytesIO()
        picture.save(content, "PNG")
        write_whole(self.picture, content.getvalue())
        self.append(f"![the same starts]({self.picture.name})")

    def append(self, paragraph: str) -> None:
        """Adds a paragraph to the report."""
        write_whole(self.report, self.report.read_bytes() + f"\n{paragraph}\n".encode())

    def clear(self) -> None:
        """Deletes the working files; foreign files in the folder are kept."""
        for path in self._work_files():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _is_own(self) -> bool:
        try:
            return bool(self.fit_id) and load_solver(self.solver).card.fit_id == self.fit_id
        except (OSError, ValueError):
            return False

    @property
    def _mark(self) -> str:
        """A line of the report that tells it from foreign files, where the solver has been deleted."""
        return f"<!-- fit {self.fit_id} -->"

    def _is_own_report(self) -> bool:
        try:
            return bool(self.fit_id) and self._mark in self.report.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            return False

    def _work_files(self) -> list[Path]:
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return [self.folder / name for name in names if _WORK_FILES.fullmatch(name)]


@contextmanager
def claimed(folder: Path, needed: int, *, name: str, remedy: str = "choose another name") -> Iterator[None]:
    """Locks a folder for this process, after checking that it is writable and has `needed` bytes free.

    The lock is a file next to the folder. It is deleted at the end, and so is the folder if empty. Error messages name
    the solver, `name`, and the `remedy`.

    Raises:
        OSError: The folder is not writable, lacks space, or is locked by another process.
    """
    lock = FileLock(folder.with_name(f"{folder.name}.lock"), timeout=0)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock)
    except Timeout:
        raise OSError(f"another process is fitting {name}: wait for it, or {remedy}") from None
    except OSError as error:
        raise OSError(f"{folder} cannot be written ({error.strerror}): {remedy}") from error
    try:
        try:
            folder.mkdir(exist_ok=True)  # only with the lock: the previous holder may have just deleted it
        except OSError as error:
            raise OSError(f"{folder} cannot be written ({error.strerror}): {remedy}") from error
        if (free := shutil.disk_usage(folder).free) < needed:
            sizes = f"{free / 2**20:.0f} MB free, but the fit writes up to {needed / 2**20:.0f} MB"
            raise OSError(f"{folder} has {sizes}: free up disk space, or {remedy}")
        yield
    finally:
        with suppress(OSError):
            folder.rmdir()  # fails unless it is empty
        if _RELEASE_KEEPS_FILE:
            with suppress(OSError):
                os.unlink(lock.lock_file)  # before the release: afterwards another process may hold it
        lock.release()


def _acquire(lock: FileLock) -> None:
    """Takes the lock; on a network folder without locks, logs a warning and continues without."""
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        _log.warning(
            "%s cannot be locked (%s): do not start a second fit with this output", lock.lock_file, error.strerror
        )
