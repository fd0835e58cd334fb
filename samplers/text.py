"""Texts for messages: one line, cut where they are long."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

__all__ = ["counted", "few", "shown", "to_ascii"]


def shown(text: str, longest: int = 800) -> str:
    """Returns a text for a message: one line, cut where it is long, escapes in the place of what cannot be shown."""
    cut = text if len(text) <= longest else f"{text[:longest]} ..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


def counted(number: int, noun: str) -> str:
    """Returns a number and what it counts: "1 step", "2 steps"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def few(texts: Sequence[str], joint: str = ", ", most: int = 8) -> str:
    """Returns texts for a message: each as `shown` has it, the first so many, then how many more there are."""
    told = joint.join(shown(text, 200) for text in texts[:most])
    return told if len(texts) <= most else f"{told} and {len(texts) - most} more"


def to_ascii(text: str) -> str:
    """A text for a drawing in Pillow's own font: accents dropped, a question mark for letters outside ASCII."""
    letters = (letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return "".join(letters).encode("ascii", "replace").decode()
