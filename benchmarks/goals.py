"""The goals of the measurements, and whether the records reach them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any

from .fidelity import lead, ours, points
from .peers import best_value
from .record import read_records

__all__ = ["Goal", "goals"]

_SMALL = ("digits", "patches", "shapes")


@dataclass(frozen=True)
class Goal:
    """A condition, how many points should meet it (0: it only explains others), how many do, and of how many."""

    text: str
    threshold: int
    count: int
    points: int

    @property
    def reached(self) -> bool:
        """Whether enough points meet it."""
        return self.count >= self.threshold

    @property
    def verdict(self) -> str:
        """In words; empty without a threshold."""
        return "" if not self.threshold else "reached" if self.reached else f"not reached: {self.threshold} needed"

    def __str__(self) -> str:
        return f"{self.text}: {self.count} of {self.points}" + f" ({self.verdict})" * bool(self.threshold)


def goals() -> list[Goal]:
    """The goals whose parts have been measured, with numbers that explain those that are not reached."""
    return [*_accuracy("default"), *_accuracy("thorough"), *_overhead()]


def _accuracy(effort: str) -> Iterator[Goal]:
    at = points(effort)
    later = {place: point for place, point in at.items() if place[2] >= 4}
    small = {place: point for place, point in later.items() if place[0] in _SMALL}
    conditions: tuple[tuple[str, Mapping[Any, Any], Fraction, Callable[[Any], bool]], ...] = (
        ("error below the best peer's", at, Fraction(1), lambda p: lead(p, effort=effort) > 1),
        ("Fréchet distance below the best peer's", at, Fraction(0), lambda p: lead(p, "frechet", effort) > 1),
        ("error at most half the best peer's", later, Fraction(1, 2), lambda p: lead(p, effort=effort) >= 2),
        ("error at most 1.15 times the span bound, small networks", small, Fraction(2, 3),
         lambda p: ours(p, effort=effort) <= 1.15 * ours(p, "span", effort)),
        ("Fréchet distance at most a third of the best peer's", later, Fraction(2, 3),
         lambda p: lead(p, "frechet", effort) >= 3),
        ("span bound above half the best peer's error", later, Fraction(0),
         lambda p: 2 * ours(p, "span", effort) > best_value(p, "error")),
    )  # fmt: skip
    for text, part, share, holds in conditions if at else ():
        first, count = min(steps for _, _, steps in part), sum(map(holds, part.values()))
        yield Goal(f"{effort}, from {first} steps on: {text}", ceil(share * len(part)), count, len(part))
    singles = [
        run["error"] < best_value(point, "error")
        for point in at.values()
        for run in point["fits"]
        if (run["family"], run["effort"]) == ("dyweight", effort)
    ]
    if len(singles) > len(at):
        yield Goal(f"{effort}, single fits: error below the best peer's", 0, sum(singles), len(singles))


def _overhead() -> Iterator[Goal]:
    if sizes := read_records("overhead").get("overhead"):
        for family in [name for name in next(iter(sizes.values())) if name.startswith("dyweight")]:
            for key, what in (("seconds", "time per step"), ("states", "memory")):
                count = sum(times[family][key] <= times["ipndm"][key] for times in sizes.values())
                yield Goal(f"{family}: {what} at most ComfyUI's ipndm's", len(sizes), count, len(sizes))
