"""The bar of a fit in a terminal."""

from __future__ import annotations

import re
import sys

from tqdm import tqdm

from ..meter import Meter

__all__ = ["FitBar"]


class FitBar:
    """A bar over the usual calls, with the latest error; without a terminal, nothing. It begins with the first call."""

    def __init__(self, *, hidden: bool = False) -> None:
        self._hidden, self._error = True if hidden else None, ""  # None: hidden without a terminal
        self._bar: tqdm | None = None

    def move(self, meter: Meter) -> None:
        """Shows the calls of a meter."""
        if self._bar is None:
            self._bar = tqdm(total=meter.total, initial=meter.calls, unit=" calls", disable=self._hidden,
                             dynamic_ncols=True, postfix=self._error or None)  # fmt: skip
        self._bar.total = meter.total
        self._bar.update(meter.calls - self._bar.n)

    def note(self, line: str) -> None:
        """Shows the error that a log line reports, if any."""
        if (found := re.search(r"error \d+\.\d+", line)) and self._bar is not None:
            self._bar.set_postfix_str(found[0])

    def write(self, line: str) -> None:
        """Prints a line above the bar."""
        tqdm.write(line)
        sys.stdout.flush()

    def finish(self) -> None:
        """Fills the bar, as a fit may take fewer calls than usual, and closes it."""
        if self._bar is not None:
            self._bar.total = self._bar.n
        self.close()

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()
