"""What a file says, made safe to work with: JSON in which no name stands twice, texts that can be shown."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from typing import Any

__all__ = ["counted", "few", "is_text", "read_json", "shown"]

_MOST_DIGITS = 1000  # of a whole number: float64's largest has 309


def read_json(text: str) -> Any:
    """Returns the value of a JSON text.

    Raises:
        ValueError: Not JSON, nested too deeply, or a name stands twice in one object (which of the two counts?).
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_int)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON from character {error.pos} on") from error


def is_text(value: object, longest: int) -> bool:
    """Whether a value is a text of at most so many characters that can be shown and stored as it is.

    Line breaks and tabs may be in it, other control characters and halves of surrogate pairs not.
    """
    if not isinstance(value, str) or len(value) > longest:
        return False
    return all(c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") for c in value)


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


def _int(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"it holds a number of {len(text)} digits: no figure has more than {_MOST_DIGITS}")
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1) if len(names) < 1000 else "one of many"
        raise ValueError(f"{twice[:40]!r} stands twice in one object")
    return found
