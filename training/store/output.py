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

import filelock
from filelock import FileLock, Timeout

__all__ = ["Output", "claimed"]

# Before version 4 filelock deletes the file itself, after which a second deletion could be that of another's.
_RELEASE_KEEPS_FILE = int(filelock.__version__.partition(".")[0]) >= 4
_log = logging.getLogger("learned_solvers")

# What a fit leaves in its folder: the prompts and the folders of work are named by a hash.
_CONTENT = re.compile(r"delivering|prompts-[0-9a-f]+\.safetensors|[0-9a-f]{16}|\..*\.part")


@dataclass(frozen=True)
class Output:
    """The solver file of a fit, with its report (.md) and picture (.png) next to it.

    `command`, without what does not change the result, tells an unfinished delivery from files that someone else made.
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
        """What an interrupted fit resumes from; deleted when the files stand."""
        return self.solver.with_suffix(".fit")

    def check(self) -> None:
        """Refuses existing files, unless they are an unfinished delivery of the same command."""
        mark = self.folder / "delivering"
        if self.overwrite or (mark.exists() and mark.read_text("utf-8") == self.command):
            return
        for file in reversed(self.files):
            if file.exists():
                raise FileExistsError(f"{file} exists already: choose another --output, or add --overwrite")

    @contextmanager
    def claimed(self, needed: int) -> Iterator[None]:
        """Holds the folder, see `claimed`; refuses files that appeared since `check`, by a fit that has just ended."""
        with claimed(self.folder, needed, name=str(self.solver), remedy="choose another --output"):
            self.check()
            yield

    def deliver(self) -> None:
        """Moves the three files from the claimed folder to their places; deletes what else the fit left in it."""
        self.check()
        mark = self.folder / "delivering"
        mark.write_text(self.command, "utf-8")
        for file in self.files:
            os.replace(self.folder / file.name, file)
        mark.unlink()  # from here on they are files like any other
        for path in self.folder.iterdir():
            if _CONTENT.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def claimed(folder: Path, needed: int, *, name: str, remedy: str = "choose another name") -> Iterator[None]:
    """Holds a folder for this process, after making sure that it can be written and has room for `needed` bytes.

    The lock is a file next to the folder. In the end it is deleted, and so is an empty folder. `name` is what is
    fitted, `remedy` what the user can do, in the refusals.

    Raises:
        OSError: The folder cannot be written, has too little room, or another process is at work in it.
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
            folder.mkdir(exist_ok=True)  # held: the process before may have been about to delete it
        except OSError as error:
            raise OSError(f"{folder} cannot be written ({error.strerror}): {remedy}") from error
        if (free := shutil.disk_usage(folder).free) < needed:
            sizes = f"{free / 2**20:.0f} MB free, the fit writes up to {needed / 2**20:.0f} MB"
            raise OSError(f"{folder} has {sizes}: make room, or {remedy}")
        yield
    finally:
        with suppress(OSError):
            folder.rmdir()  # where it is empty
        if _RELEASE_KEEPS_FILE:
            with suppress(OSError):
                os.unlink(lock.lock_file)  # while it is held: later it may be another process's
        lock.release()


def _acquire(lock: FileLock) -> None:
    """Takes the lock; a network folder without locks is worked in without one, which the log reports."""
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        _log.warning("%s cannot be locked (%s): do not start a second fit to this name", lock.lock_file, error.strerror)
