"""Guidance as data, of a fit or of a run, and parameters between the guidance knots of a fit."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat, TypeVar

import torch
from torch import Tensor

__all__ = ["Guidance", "at_guidance", "call_by_group", "format_values"]

_Value = TypeVar("_Value", bound=Hashable)


@dataclass(frozen=True)
class Guidance:
    """The guidance of a fit or of a run.

    Args:
        kind: "cfg" (classifier-free guidance), "embedded" (an input of the network, as in FLUX.1-dev) or "none".
        values: Ascending. Of a fit: the values of its samples and of its published results. Of a run: its one value,
            or none if unknown.
        usual: The default value of a table; None for the middle one of `values`.
        cfg: The classifier-free guidance in addition to an embedded one; None for the other kinds, or if unknown.

    Raises:
        ValueError: An unknown kind, or numbers that are negative, not finite or not in order.
    """

    kind: str = "none"
    values: tuple[float, ...] = ()
    usual: float | None = None
    cfg: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("cfg", "embedded", "none"):
            raise ValueError(f"guidance kind must be cfg, embedded or none, got {self.kind!r:.40}")
        object.__setattr__(self, "values", tuple(self.values) or (() if self.usual is None else (self.usual,)))
        numbers = (*self.values, *(number for number in (self.usual, self.cfg) if number is not None))
        if not all(isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n < 1e9 for n in numbers):
            raise ValueError(f"guidance must be finite numbers of at least 0, got {numbers!s:.80}")
        if any(a >= b for a, b in zip(self.values, self.values[1:], strict=False)):
            raise ValueError(f"guidance values must be strictly increasing, got {list(self.values)!s:.80}")
        if self.values and self.usual is not None and not self.values[0] <= self.usual <= self.values[-1]:
            raise ValueError(f"the usual guidance must be within {format_values(self.values)}, got {self.usual:g}")
        if (self.kind == "none" and numbers) or (self.kind != "embedded" and self.cfg is not None):
            raise ValueError(f"guidance of kind {self.kind} cannot have these numbers: {self.to_json()}")

    @classmethod
    def around(cls, usual: float, cfg: float | None = None) -> Guidance:
        """Values to fit at: 0.4, 2/3, 1 and 1.6 times the usual guidance, rounded to 0.01; a CFG of at least 1.

        With `cfg`, the usual value is that of an embedded guidance. Only the usual value if it has no effect (CFG 1).
        """
        kind, least = ("cfg", 1.0) if cfg is None else ("embedded", 0.0)
        factors = (0.4, 2 / 3, 1.6) if usual > least else ()
        return cls(kind, tuple(sorted({usual, *(max(least, round(usual * f, 2)) for f in factors)})), usual, cfg)

    @property
    def default(self) -> float | None:
        """The default value of a table."""
        if self.usual is not None or not self.values:
            return self.usual
        return self.values[len(self.values) // 2]

    def value_of(self, run: Guidance | None) -> float | None:
        """The value of a run with this kind of guidance; else None, which means the usual value."""
        return run.values[0] if run is not None and run.kind == self.kind and run.values else None

    def covers(self, other: Guidance) -> bool:
        """Whether another guidance has this kind and is within the range of these values."""
        if other.kind != self.kind or bool(other.values) != bool(self.values):
            return False
        if None not in (self.cfg, other.cfg) and self.cfg != other.cfg:
            return False
        error = 1e-6  # relative; hosts keep guidance in float32
        return all(self.values[0] * (1 - error) <= value <= self.values[-1] * (1 + error) for value in other.values)

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
        """The guidance of a JSON object; ValueError for anything else."""
        if not isinstance(plain, Mapping) or not set(plain) <= {"kind", "values", "usual", "cfg"}:
            raise ValueError(f"guidance must be an object with kind, values, usual and cfg, got {plain!r:.80}")
        if not isinstance(plain.get("values", []), list):
            raise ValueError(f"guidance values must be a list, got {plain['values']!r:.80}")
        return cls(plain.get("kind", "none"), tuple(plain.get("values", ())), plain.get("usual"), plain.get("cfg"))


def at_guidance(stack: Tensor, knots: Sequence[float], guidance: float | None) -> Tensor:
    """Parameters at a guidance: linear in log(guidance) between the knots, outside them those of the nearest knot.

    Args:
        stack: Parameters at each knot, shape [K, ...].
        knots: Guidance of each, positive and ascending; unused if K is 1.
        guidance: A number; unused if K is 1.
    """
    if len(stack) == 1:
        return stack[0]
    try:
        value = float(guidance) if isinstance(guidance, SupportsFloat) else math.nan
    except (ValueError, RuntimeError, OverflowError):
        value = math.nan
    if math.isnan(value):
        raise ValueError(f"guidance must be a number, got {guidance!r:.40}: parameters depend on it")
    clamped = min(max(value, knots[0]), knots[-1])
    high = max(1, bisect_left(knots, clamped))
    low, span = math.log(knots[high - 1]), math.log(knots[high]) - math.log(knots[high - 1])
    return torch.lerp(stack[high - 1].double(), stack[high].double(), (math.log(clamped) - low) / span)


def format_values(values: Sequence[float]) -> str:
    """Values as text: "5, 7.5, 10"."""
    return ", ".join(f"{value:g}" for value in values)


def call_by_group(
    values: Sequence[_Value], x: Tensor, sigma: Tensor, run: Callable[[_Value, list[int], Tensor, Tensor], Tensor]
) -> Tensor:
    """Calls `run(value, rows, x[rows], sigma[rows])` once per value; returns the results in the order of the rows.

    Args:
        values: One per row of x.
        x: States, shape [B, ...].
        sigma: Noise levels, shape [B].
        run: Called once per value; `rows` are indices.
    """
    groups: dict[_Value, list[int]] = {}
    for row, value in enumerate(values):
        groups.setdefault(value, []).append(row)
    if len(groups) == 1:
        return run(values[0], groups[values[0]], x, sigma)
    parts = torch.cat([run(value, rows, x[rows], sigma[rows]) for value, rows in groups.items()])
    order = torch.tensor([row for rows in groups.values() for row in rows])
    return parts[order.argsort().to(parts.device)]
