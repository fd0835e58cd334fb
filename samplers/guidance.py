"""Guidance as data: what a card says of a fit and a host of a run, and parameters between the knots of a fit."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat, TypeVar

import torch
from torch import Tensor

__all__ = ["Guidance", "at_guidance", "call_by_group", "format_values", "per_sample", "range_around"]

_Value = TypeVar("_Value", bound=Hashable)


@dataclass(frozen=True)
class Guidance:
    """The guidance of a fit, or of a run.

    Args:
        kind: "cfg" (classifier-free guidance), "embedded" (an input of the network, as in FLUX.1-dev) or "none".
        values: Ascending. Of a fit: the values of its samples, and those that its source shows it at. Of a run: the
            one value, or none where it is unknown.
        usual: The value that a table is made for unless another is asked for; None: the middle one of `values`.
        cfg: The classifier-free guidance used with an embedded one; None for the other kinds, or where it is unknown.

    Raises:
        ValueError: Another kind, or numbers that are negative, not finite or not in order.
    """

    kind: str = "none"
    values: tuple[float, ...] = ()
    usual: float | None = None
    cfg: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("cfg", "embedded", "none"):
            raise ValueError(f"guidance has kind {self.kind!r:.40}; choose cfg, embedded or none")
        object.__setattr__(self, "values", tuple(self.values) or (() if self.usual is None else (self.usual,)))
        numbers = (*self.values, *(number for number in (self.usual, self.cfg) if number is not None))
        if not all(isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n < 1e9 for n in numbers):
            raise ValueError(f"guidance must be finite numbers of at least 0, got {numbers!s:.80}")
        if any(a >= b for a, b in zip(self.values, self.values[1:], strict=False)):
            raise ValueError(f"guidance values must ascend without repeats, got {list(self.values)!s:.80}")
        if self.values and self.usual is not None and not self.values[0] <= self.usual <= self.values[-1]:
            raise ValueError(f"the usual guidance must lie within {format_values(self.values)}, got {self.usual:g}")
        if (self.kind == "none" and numbers) or (self.kind != "embedded" and self.cfg is not None):
            raise ValueError(f"guidance of kind {self.kind} has a number too many: {self.to_json()}")

    @property
    def at(self) -> float | None:
        """The value that a table is made for unless another is asked for."""
        if self.usual is not None or not self.values:
            return self.usual
        return self.values[len(self.values) // 2]

    def value_of(self, run: Guidance | None) -> float | None:
        """A run's value where it is of this kind; else None, which stands for the usual one."""
        return run.values[0] if run is not None and run.kind == self.kind and run.values else None

    def covers(self, other: Guidance) -> bool:
        """Whether another guidance is of this kind and lies within this one's values."""
        if other.kind != self.kind or bool(other.values) != bool(self.values):
            return False
        if None not in (self.cfg, other.cfg) and self.cfg != other.cfg:
            return False
        part = 1e-6  # hosts carry guidance in float32
        return all(self.values[0] * (1 - part) <= value <= self.values[-1] * (1 + part) for value in other.values)

    def __str__(self) -> str:
        if self.kind == "none":
            return "no guidance"
        values = format_values(self.values) or "unknown"
        if self.kind == "cfg":
            return f"CFG {values}"
        return f"embedded guidance {values}" + ("" if self.cfg is None else f", CFG {self.cfg:g}")

    def to_json(self) -> dict[str, Any]:
        """The entries that are set, as plain JSON values."""
        numbers = {"values": list(self.values), "usual": self.usual, "cfg": self.cfg}
        return {"kind": self.kind, **{name: value for name, value in numbers.items() if value not in (None, [])}}

    @classmethod
    def from_json(cls, plain: object) -> Guidance:
        """The guidance of a JSON object; anything else raises ValueError."""
        if not isinstance(plain, Mapping) or not set(plain) <= {"kind", "values", "usual", "cfg"}:
            raise ValueError(f"guidance must be an object with kind, values, usual and cfg, got {plain!r:.80}")
        if not isinstance(plain.get("values", []), list):
            raise ValueError(f"guidance values must be a list, got {plain['values']!r:.80}")
        return cls(plain.get("kind", "none"), tuple(plain.get("values", ())), plain.get("usual"), plain.get("cfg"))


def at_guidance(stack: Tensor, knots: Sequence[float], guidance: float | None) -> Tensor:
    """Parameters at a guidance: linear in log(guidance) between the knots, outside those of the nearest knot.

    Args:
        stack: Parameters at each knot, shape [K, ...].
        knots: Guidance of each, positive, ascending, at least one where K > 1.
        guidance: Ignored where K is 1.
    """
    if len(stack) == 1:
        return stack[0]
    try:
        value = float(guidance) if isinstance(guidance, SupportsFloat) else math.nan
    except (ValueError, RuntimeError, OverflowError):
        value = math.nan
    if math.isnan(value):
        raise ValueError(f"guidance must be a number, got {guidance!r:.40}: parameters depend on it")
    place = min(max(value, knots[0]), knots[-1])
    high = max(1, bisect_left(knots, place))
    low, span = math.log(knots[high - 1]), math.log(knots[high]) - math.log(knots[high - 1])
    return torch.lerp(stack[high - 1].double(), stack[high].double(), (math.log(place) - low) / span)


def range_around(middle: float, part: float) -> tuple[float, ...]:
    """Middle * (1 - part), middle and middle * (1 + part), to hundredths; never below 1, which has no guidance.

    A middle of at most 1, or a part that is nothing, leaves the middle alone.
    """
    if middle <= 1 or not part:
        return (middle,)
    return tuple(sorted({max(1.0, round(middle * (1 - part), 2)), middle, round(middle * (1 + part), 2)}))


def per_sample(values: Sequence[float], count: int) -> list[float]:
    """The guidance of each of `count` samples: the values in turn, so that any few in a row have all of them."""
    if count < len(values):
        raise ValueError(
            f"{count} samples are too few for guidances {format_values(values)}: take {len(values)}, or one guidance"
        )
    return [values[i % len(values)] for i in range(count)]


def format_values(values: Sequence[float]) -> str:
    """Values for people: "5, 7.5, 10"."""
    return ", ".join(f"{value:g}" for value in values)


def call_by_group(
    values: Sequence[_Value], x: Tensor, sigma: Tensor, run: Callable[[_Value, list[int], Tensor, Tensor], Tensor]
) -> Tensor:
    """Calls `run(value, rows, x[rows], sigma[rows])` once per value and returns the results in the rows' own order.

    Args:
        values: One per row of x.
        x: States, shape [B, ...].
        sigma: Noise levels, shape [B].
        run: Called once per value; rows are given by their numbers.
    """
    groups: dict[_Value, list[int]] = {}
    for row, value in enumerate(values):
        groups.setdefault(value, []).append(row)
    if len(groups) == 1:
        return run(values[0], groups[values[0]], x, sigma)
    parts = torch.cat([run(value, rows, x[rows], sigma[rows]) for value, rows in groups.items()])
    order = torch.tensor([row for rows in groups.values() for row in rows])
    return parts[order.argsort().to(parts.device)]
