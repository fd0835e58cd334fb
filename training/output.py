"""Where a fit writes: a folder while it works, then solver file, report and picture, all three or none."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .claim import claimed, empty

__all__ = ["Output"]

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
