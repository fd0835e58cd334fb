"""Formatting of names and numbers for messages and drawings."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

__all__ = ["count_noun", "format_list", "format_numbers", "printable", "to_ascii"]


def printable(text: str, longest: int = 800) -> str:
    """The text on one line, cut after `longest` characters, with escapes for those that cannot be printed."""
    cut = text if len(text) <= longest else f"{text[:longest]} ..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


def count_noun(number: int, noun: str) -> str:
    """A number with its noun: "1 step", "2 steps"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def format_list(texts: Sequence[str], joint: str = ", ", most: int = 8) -> str:
    """The first `most` texts, each `printable`, and the number of the others."""
    first = joint.join(printable(text, 200) for text in texts[:most])
    return first if len(texts) <= most else f"{first} and {len(texts) - most} more"


def format_numbers(numbers: Iterable[int]) -> str:
    """Numbers as a list: "4, 6 and 8"."""
    *most, last = map(str, numbers)
    return f"{', '.join(most)} and {last}" if most else last


def to_ascii(text: str) -> str:
    """The text in ASCII, for Pillow's built-in font: without accents, and with "?" for all other characters."""
    characters = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(characters).encode("ascii", "replace").decode()
