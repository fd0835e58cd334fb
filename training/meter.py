"""How far a fit is, and how long it takes, in minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["Meter", "about", "duration"]


class Meter:
    """The network calls of a fit so far, and its time, those of interrupted runs included.

    Args:
        usual: Calls that a fit usually takes.
        most: Calls at most.
        show: Called after each call, to draw a bar of `calls` out of `total`.
    """

    def __init__(self, usual: int = 0, most: int = 0, show: Callable[[Meter], object] = lambda meter: None) -> None:
        self.usual, self.most, self.show = usual, most, show
        self.calls, self.rate = 0, 0.0
        self._resumed_calls, self._resumed_seconds = 0, 0.0
        self._started = time.monotonic()
        self._first: tuple[float, int] | None = None  # when the first call of this run had ended, and its calls

    @property
    def seconds(self) -> float:
        """Duration so far."""
        return self._resumed_seconds + time.monotonic() - self._started

    @property
    def total(self) -> int:
        """Calls that the fit will probably take."""
        return max(self.usual, self.calls)

    def add(self, calls: int) -> None:
        """Counts calls."""
        self.calls += calls
        self._first = self._first or (time.monotonic(), calls)
        self.show(self)

    def record(self) -> dict[str, Tensor]:
        """The calls and seconds so far, for `resume`."""
        return {"progress": torch.tensor([self.calls, self.seconds], dtype=torch.float64)}

    def resume(self, record: Mapping[str, Tensor]) -> None:
        """Continues where an interrupted run was."""
        calls, self._resumed_seconds = record["progress"].tolist()
        self._resumed_calls, self.calls = int(calls) - self.calls, int(calls)
        self.show(self)

    def forecast(self) -> str:
        """The time at `rate` calls per second: "about 12 minutes (3,100 calls at 4.2 per second), at most 16"."""
        calls, most = self.total - self.calls, max(self.most, self.total) - self.calls
        usual, longest = duration(calls / self.rate), duration(most / self.rate)
        left = " left" if self._resumed_calls else ""
        text = f"{about(calls / self.rate)}{left} ({calls:,} calls at {_pace(self.rate)})"
        if longest == usual:
            return text
        number, unit = longest.rpartition(" ")[::2]
        return f"{text}, at most {number if usual[0].isdigit() and usual.endswith(f' {unit}') else longest}"

    def left(self) -> str:
        """The time that remains at the pace of this run so far: "about 4 minutes left"; empty at its beginning."""
        if self._first is None or not self.usual:
            return ""
        moment, calls = self._first
        made = self.calls - self._resumed_calls - calls
        if made < 1:
            return ""
        return f"{about((self.total - self.calls) * (time.monotonic() - moment) / made)} left"


def about(seconds: float) -> str:
    """A duration as text: "about 12 minutes"."""
    text = duration(seconds)
    return text if text.startswith("less") else f"about {text}"


def _pace(rate: float) -> str:
    if rate < 0.5:
        return f"{1 / rate:.1f} seconds each"
    return f"{rate:,.{int(rate < 100)}f} per second"


def duration(seconds: float) -> str:
    """A duration as text."""
    if seconds < 45:
        return "less than a minute"
    for size, unit, limit in ((60, "minute", 90 * 60), (3600, "hour", 48 * 3600), (86400, "day", float("inf"))):
        if seconds < limit:
            count = f"{seconds / size:.0f}" if unit == "minute" else f"{seconds / size:.1f}"
            return f"{count} {unit}{'s' * (count != '1')}"
    raise AssertionError
