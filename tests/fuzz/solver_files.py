"""Hostile solver files: structured changes of valid ones, down to single bytes."""

from __future__ import annotations

import json
import struct
from random import Random
from typing import Any

from .junk import NAMES, NUMBERS, TEXTS, changed_tree, nested, with_duplicate_key

__all__ = ["changed_bytes", "changed_solver_file"]

_DTYPES = [
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "I32",
    "I16",
    "I8",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F8_E5M2",
    "C64",
    "U64",
    "F4",
]
_DTYPES += ["F6_E2M3", "F8_E8M0", "F128", "", 5, None, []]
_LENGTHS = [0, 1, 2, 7, 8, 100, 2**16, 2**31, 2**32, 2**62, 2**63, 2**64 - 1]


def changed_bytes(content: bytes, random: Random) -> bytes:
    """Returns content that is cut, padded, overwritten or doubled somewhere."""
    at, change = random.randrange(len(content) + 1), random.randrange(6)
    if change == 0:
        return content[:at]
    if change == 1:
        return content + random.choice([b"\0", b" ", b"{}", content[:at]])
    if change == 2:
        return content[:at] + bytes([random.randrange(256)]) + content[at + 1 :]
    if change == 3:
        return content[:at] + content[at + random.choice([1, 8, 64]) :]
    if change == 4:
        return content[:at] + random.randbytes(random.choice([1, 2, 8])) + content[at:]
    return content[:at] + random.choice([b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7]) + content[at + 8 :]


def changed_solver_file(content: bytes, random: Random) -> bytes:
    """Returns a solver file after one change: of its bytes, its header, its card or its numbers."""
    try:
        (length,) = struct.unpack("<Q", content[:8])
        header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
        kind = random.randrange(9)
        if not isinstance(header, dict) or kind == 0:
            return changed_bytes(content, random)
        if kind == 1:
            return (
                struct.pack("<Q", random.choice([*_LENGTHS, length + random.choice([-8, -1, 1, 8]) % 2**64]))
                + content[8:]
            )
        if kind == 2:
            return _packed(with_duplicate_key(json.dumps(header), random), data)
        if kind == 3:
            return _packed(json.dumps(changed_tree(header, random)), data)
        if kind == 4:
            return _packed(json.dumps(header), _changed_numbers(data, random))
        if kind in (5, 6):
            return _packed(_changed_tensor(header, random), data)
        return _packed(json.dumps(_changed_card(header, random)), data)
    except (ValueError, KeyError, TypeError, struct.error, OverflowError, RecursionError, AttributeError):
        return changed_bytes(content, random)  # an earlier change left no header to speak of


def _packed(header: str, data: bytes) -> bytes:
    raw = header.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw + data


def _changed_numbers(data: bytes, random: Random) -> bytes:
    at = 8 * random.randrange(max(1, len(data) // 8))
    value = random.choice([n for n in NUMBERS if abs(n) < 2**65 or n != n or n in (float("inf"), -float("inf"))])
    return data[:at] + struct.pack("<d", float(value)) + data[at + 8 :]


def _changed_tensor(header: dict[str, Any], random: Random) -> str:
    name = random.choice([key for key in header if key != "__metadata__"] or ["3/weights"])
    entry = header.get(name, {"dtype": "F64", "shape": [0], "data_offsets": [0, 0]})
    change = random.randrange(6)
    if change == 0:
        entry["dtype"] = random.choice(_DTYPES)
    elif change == 1:
        entry["shape"] = random.choice([[], [0], [0, 2**62], [2**62, 2**62], [-1, 3], [1] * 500, [1.0], "3", None])
    elif change == 2:
        entry["shape"] = random.choice([[*entry["shape"], 1], list(reversed(entry["shape"])), entry["shape"][:-1]])
    elif change == 3:
        entry["data_offsets"][random.randrange(2)] = random.choice([0, 8, 2**31, 2**63, 2**64 - 1, -8])
    elif change == 4:
        header[random.choice(NAMES)] = header.pop(name, entry)
    else:
        header[random.choice(NAMES)] = {"dtype": random.choice(_DTYPES), "shape": [0], "data_offsets": [0, 0]}
    return json.dumps(header)


def _changed_card(header: dict[str, Any], random: Random) -> dict[str, Any]:
    card = header["__metadata__"]
    change = random.randrange(7)
    if change == 0:
        card[random.choice(list(card))] = random.choice(TEXTS)
    elif change == 1:
        card.pop(random.choice(list(card)))
    elif change == 2:
        card[random.choice(NAMES)] = random.choice(TEXTS)
    elif change == 3:
        card.update({f"key {i}": "x" * 10 for i in range(random.choice([10, 10, 2000]))})
    elif change == 4:
        card["steps"] = with_duplicate_key(card["steps"], random)
    elif change == 5:
        card["steps"] = random.choice([nested(4000), '{"3": ' + nested(2000) + "}", "[" * 5000])
    else:
        card["steps"] = json.dumps(changed_tree(json.loads(card["steps"]), random))
    return header
