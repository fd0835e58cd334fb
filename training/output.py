"""Where a fit writes: a folder while it works, then solver file, report and picture, all three or none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

__all__ = ["Output"]


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
        """Holds the folder for this process, after making sure that it can be written and has room.

        Args:
            needed: Bytes that the fit will write.

        Raises:
            OSError: The folder cannot be written, has no room, or another process is at work in it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / "lock").open("w")
        except OSError as error:
            raise OSError(f"{self.folder} cannot be written ({error.strerror}): choose another --output") from error
        with lock:
            try:
                _lock(lock)
            except OSError as error:
                raise OSError(
                    f"another process is fitting {self.solver}: wait for it, or choose another --output"
                ) from error
            free = shutil.disk_usage(self.folder).free
            if free < needed:
                raise OSError(
                    f"{self.folder} has {free / 2**20:.0f} MB free, the fit writes up to {needed / 2**20:.0f} MB: make "
                    "room, or choose another --output"
                )
            yield

    def deliver(self) -> None:
        """Moves the three files, made in the folder under their names, to their places, and deletes the folder."""
        self.check()
        self._delivering.write_text(self.command, "utf-8")
        for file in self.files:
            os.replace(self.folder / file.name, file)

    def clear(self) -> None:
        """Deletes the folder."""
        shutil.rmtree(self.folder)


def _lock(file: IO[str]) -> None:
    """Locks an open file until it is closed or the process ends, however it ends; OSError where it is locked."""
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
