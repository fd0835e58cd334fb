"""Where a fit writes: a folder while it works, then solver file, report and picture, all three or none."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

__all__ = ["Output", "claimed", "empty"]

_LOCK = "lock"
_log = logging.getLogger("learned_solvers")

# What a fit leaves in its folder: fit_plan.py names the prompts and the work folder by a hash.
_OWN = re.compile(r"delivering|prompts-[0-9a-f]+\.safetensors|[0-9a-f]{16}|\..*\.part")


@dataclass(frozen=True)
class Output:
    """The files of one fit.

    Args:
        solver: Solver file; report (.md) and picture (.png) lie beside it.
        command: What is run, without what does not change the result: tells an unfinished delivery of the same command
            from files that someone else made.
        overwrite: Whether existing files may be replaced.
    """

    solver: Path
    command: str
    overwrite: bool = False

    @property
    def files(self) -> list[Path]:
        """Picture, report and, last to appear, the solver file."""
        return [self.solver.with_suffix(suffix) for suffix in (".png", ".md", ".safetensors")]

    @property
    def folder(self) -> Path:
        """What an interrupted fit goes on from; deleted when the files stand."""
        return self.solver.with_suffix(".fit")

    @property
    def _delivering(self) -> Path:
        return self.folder / "delivering"

    def check(self) -> None:
        """Refuses files that stand already.

        Raises:
            FileExistsError: One of the files exists, and is no unfinished delivery of the same command.
        """
        if self.overwrite or (self._delivering.exists() and self._delivering.read_text("utf-8") == self.command):
            return
        for file in reversed(self.files):
            if file.exists():
                raise FileExistsError(f"{file} exists already: choose another --output, or add --overwrite")

    @contextmanager
    def claimed(self, needed: int) -> Iterator[None]:
        """Holds the folder for this process; refuses files that appeared since `check`, by a fit that has just ended.

        Args:
            needed: Bytes that the fit will write.

        Raises:
            FileExistsError: One of the files exists.
            OSError: The folder cannot be written, has no room, or another process is at work in it.
        """
        with claimed(self.folder, needed, name=str(self.solver), remedy="choose another --output"):
            self.check()
            yield

    def deliver(self) -> None:
        """Moves the three files, made in the folder under their names, to their places; empties the folder.

        The folder must be claimed still: a process that comes next must not lose its own.
        """
        self.check()
        self._delivering.write_text(self.command, "utf-8")
        for file in self.files:
            os.replace(self.folder / file.name, file)
        self._delivering.unlink()  # from here on they are files like any other
        empty(self.folder, _OWN)


@contextmanager
def claimed(folder: Path, needed: int, *, name: str, remedy: str = "choose another name") -> Iterator[None]:
    """Holds a folder for this process, after making sure that it can be written and has room.

    A folder in which nothing but the lock is left in the end is deleted.

    Args:
        folder: The folder; made where it is missing.
        needed: Bytes that will be written.
        name: What is fitted, for the refusal of a second process.
        remedy: What the user can do about it.

    Raises:
        OSError: The folder cannot be written, has no room, or another process is at work in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK).open("w")
    except OSError as error:
        raise OSError(f"{folder} cannot be written ({error.strerror}): {remedy}") from error
    with lock:
        if not _locked(lock) or not _is_at(lock, folder / _LOCK):
            raise OSError(f"another process is fitting {name}: wait for it, or {remedy}")
        try:
            free = shutil.disk_usage(folder).free
            if free < needed:
                raise OSError(
                    f"{folder} has {free / 2**20:.0f} MB free, the fit writes up to {needed / 2**20:.0f} MB: make "
                    f"room, or {remedy}"
                )
            yield
        finally:
            _tidy(folder)  # while it is held: a lock that is deleted later may be another process's
    if os.name == "nt":  # which deletes no open file, and no other process's
        _tidy(folder)


def empty(folder: Path, own: re.Pattern[str]) -> None:
    """Deletes the files and folders of a claimed folder whose name is `own`; what someone else put there stays."""
    for path in folder.iterdir():
        if not own.fullmatch(path.name) or path.name == _LOCK:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _tidy(folder: Path) -> None:
    with suppress(OSError):
        if os.listdir(folder) == [_LOCK]:
            (folder / _LOCK).unlink()
            folder.rmdir()


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether an open file is the one at a path, not one that its last holder deleted when it had done."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except OSError:
        return False


def _locked(file: IO[str]) -> bool:
    """Locks an open file until it is closed or the process ends, however it ends; False where it is locked.

    A network folder that knows no locks is worked in without one, which the log tells.
    """
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK):
            return False
        _log.warning("%s cannot be locked (%s): do not start a second fit to this name", file.name, error.strerror)
    return True
