"""Values that no honest file holds, and JSON trees with one of them somewhere inside."""

from __future__ import annotations

import json
from random import Random
from typing import Any

__all__ = ["NAMES", "NUMBERS", "TEXTS", "changed_tree", "nested", "with_duplicate_key"]

NUMBERS = [0, -1, 1, 2, 3, 7, 9999, 10_000, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e-320, 1e308, -1e308]
NUMBERS += [float("nan"), float("inf"), -float("inf")]
NAMES = [
    "",
    "..",
    "../../x",
    "/etc/passwd",
    "C:\\x",
    "a\0b",
    "\x1b[2J",
    "\u202e",
    "\ud800",
    "٣",
    "03",
    "-1",
    "3/",
    "3//",
]
NAMES += ["3/weights", "3/../weights", "5/t_scale", "__metadata__", "__class__", "x" * 300, "9" * 5000]
TEXTS = [*NAMES, "true", "null", "{}", "[]", "1", "2", "<script>alert(1)</script>", "line\nline", "ü", "x" * 5000]


def nested(depth: int) -> str:
    """Returns JSON text of lists in lists."""
    return "[" * depth + "]" * depth


def junk(random: Random) -> Any:
    """Returns a JSON value of any kind."""
    kinds = [random.choice(NUMBERS), random.choice(TEXTS), None, True, False, [], {}]
    value = random.choice(kinds)
    for _ in range(random.choice([0, 0, 0, 1, 2, 50])):
        value = random.choice(
            [[value], {random.choice(NAMES): value}, [value, value]][: 2 if random.random() < 0.9 else 3]
        )
    return value


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Returns (container, key) of every value inside a JSON tree."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting and len(found) < 2000:
        own = waiting.pop()
        keys = list(own) if isinstance(own, dict) else range(len(own)) if isinstance(own, list) else []
        found += [(own, key) for key in keys]
        waiting += [own[key] for key in keys]
    return found


def changed_tree(tree: Any, random: Random) -> Any:
    """Returns a JSON tree after one change in place: a value replaced, removed, renamed, copied elsewhere or added."""
    inside = places(tree)
    if not inside:
        return junk(random)
    own, key = random.choice(inside)
    other, place = random.choice(inside)
    change = random.randrange(6)
    if change == 0:
        own[key] = junk(random)
    elif change == 1:
        del own[key]
    elif change == 2 and isinstance(own, dict):
        own[random.choice(NAMES)] = own.pop(key)
    elif change == 3:
        own[key] = json.loads(json.dumps(other[place]))
    elif change == 4 and isinstance(own, dict):
        own[random.choice(NAMES)] = junk(random)
    else:
        own[key] = random.choice(NUMBERS)
    return tree


def with_duplicate_key(text: str, random: Random) -> str:
    """Returns JSON text in which one object's first entry stands twice."""
    starts = [i for i, character in enumerate(text) if character == "{"]
    if not starts:
        return text
    at = random.choice(starts) + 1
    end = text.find(",", at)
    return text[:at] + text[at : end + 1] + text[at:] if end > 0 else text
