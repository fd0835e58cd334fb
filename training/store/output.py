"""Output of a fit: a working folder first, then solver file, report and picture, all three or none."""

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

# Before version 4 filelock deletes the file itself; deleting it again could hit another process's lock.
_RELEASE_KEEPS_FILE = int(filelock.__version__.partition(".")[0]) >= 4
_log = logging.getLogger("learned_solvers")

# What a fit leaves in its folder; prompts and working folders are named by a hash.
_WORK_FILES = re.compile(r"delivering|prompts-[0-9a-f]+\.safetensors|[0-9a-f]{16}|\..*\.part")


@dataclass(frozen=True)
class Output:
    """The solver file of a fit, with its report (.md) and picture (.png) next to it.

    `command`, reduced to what affects the result, distinguishes an unfinished delivery from unrelated files.
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
        """The folder that an interrupted fit resumes from; deleted after the delivery."""
        return self.solver.with_suffix(".fit")

    def check(self) -> None:
        """Refuses to overwrite files, unless they are an unfinished delivery of the same command."""
        mark = self.folder / "delivering"
        if self.overwrite or (mark.exists() and mark.read_text("utf-8") == self.command):
            return
        for file in reversed(self.files):
            if file.exists():
                raise FileExistsError(f"{file} already exists: choose another --output, or add --overwrite")

    @contextmanager
    def claimed(self, needed: int) -> Iterator[None]:
        """Locks the folder, see `claimed`, and checks again: another fit may have just delivered."""
        with claimed(self.folder, needed, name=str(self.solver), remedy="choose another --output"):
            self.check()
            yield

    def deliver(self) -> None:
        """Moves the three files out of the locked folder and deletes what else the fit left there."""
        self.check()
        mark = self.folder / "delivering"
        mark.write_text(self.command, "utf-8")
        for file in self.files:
            os.replace(self.folder / file.name, file)
        mark.unlink()  # from here on the files are finished and protected
        for path in self.folder.iterdir():
            if _WORK_FILES.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


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
