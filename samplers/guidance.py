"""Several guidances: how a fit's samples have them, how a card lists them, and which lie among those of a card."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["among", "apart", "listed", "of_samples", "spread", "values_of"]

_Value = TypeVar("_Value", bound=Hashable)

_SHOWN = re.compile(r" \(shown [^)]*\)")  # where else the authors show it
_LIST = re.compile(r"\d+(?:\.\d+)?(?:, \d+(?:\.\d+)?)*")


def spread(middle: float, part: float) -> tuple[float, ...]:
    """Returns middle * (1 - part), middle, middle * (1 + part), to hundredths; never below 1, which has no guidance.

    A middle of at most 1, or a part that is nothing, leaves the middle alone.
    """
    if middle <= 1:
        return (middle,)
    return tuple(dict.fromkeys((max(1.0, round(middle * (1 - part), 2)), middle, round(middle * (1 + part), 2))))


def of_samples(values: Sequence[float], count: int) -> list[float]:
    """Returns the guidance of each of `count` samples: the values in turn, so that any few in a row have all of them.

    Raises:
        ValueError: There are more values than samples.
    """
    if count < len(values):
        raise ValueError(
            f"{count} samples are too few for guidances {listed(values)}: take {len(values)}, or one guidance"
        )
    return [values[i % len(values)] for i in range(count)]


def listed(values: Sequence[float]) -> str:
    """Returns values as cards and people have them: "5, 7.5, 10"."""
    return ", ".join(f"{value:g}" for value in values)


def values_of(text: str) -> tuple[float, ...]:
    """Returns the guidances that a card's text begins with: (5, 7.5, 10) of "5, 7.5, 10", none of words."""
    found = _LIST.match(text)
    return tuple(map(float, found[0].split(", "))) if found else ()


def among(here: str, fitted: str) -> bool:
    """Whether a guidance, as a card would say it, is that of a card, or lies within those that the card lists.

    All else that the texts say must be the same: "3 (distilled, CFG 1)" is among "2, 3.5, 5 (distilled, CFG 1)", and
    "3" is not. Only where else it was shown does not count: "1" is among "1 (shown at 1.375)".
    """
    here, fitted = _SHOWN.sub("", here), _SHOWN.sub("", fitted)
    if _LIST.sub("#", here) != _LIST.sub("#", fitted):
        return False
    pairs = [(values_of(a), values_of(b)) for a, b in zip(_LIST.findall(here), _LIST.findall(fitted), strict=True)]
    return all(min(b) <= min(a) and max(a) <= max(b) for a, b in pairs)


def apart(
    values: Sequence[_Value], x: Tensor, sigma: Tensor, run: Callable[[_Value, list[int], Tensor, Tensor], Tensor]
) -> Tensor:
    """Returns what `run(value, rows, x[rows], sigma[rows])` does for the rows of each value, in the rows' own order.

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
