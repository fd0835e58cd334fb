"""The container of a solver file, a safetensors file: read whole, and checked before anything is made of it.

Read into memory, not mapped: a mapped file that another program cuts short while it is read would end the process.
"""

from __future__ import annotations

import json
import struct
import unicodedata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

__all__ = ["LARGEST", "is_text", "read_container", "read_json"]

LARGEST = 16 * 2**20  # bytes; a solver of 100 calls is 80 kB per knot
_MOST_DIMENSIONS = 3
_LONGEST_HEADER = 2**20  # bytes; a card of 100 step counts has 50 kB


def read_container(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Returns metadata and tensors of a file."""
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(
            f"a solver file has at most {LARGEST} bytes, this one has {path.stat().st_size}: it is probably a model; "
            "put it where models belong"
        )
    try:
        metadata = _metadata(content)
        return metadata, load(content)
    # Beside its own error the library raises what torch and Python say to shapes and types that nobody has.
    except (SafetensorError, ValueError, RuntimeError, KeyError, TypeError, AssertionError, OverflowError) as error:
        raise ValueError(f"not a safetensors file ({str(error)[:200] or type(error).__name__})") from error


def _metadata(content: bytes) -> dict[str, str]:
    """Returns the header's metadata."""
    length = struct.unpack("<Q", content[:8])[0] if len(content) >= 8 else 0
    if not 2 <= length <= min(len(content) - 8, _LONGEST_HEADER):
        # The first bytes of a text or a picture are a number too, one that tells nobody anything.
        found = f"a header of {length} bytes" if length <= 2**32 else "no header's length at the beginning"
        raise ValueError(f"{found}, in a file of {len(content)}: it has 2 to {_LONGEST_HEADER}, within the file")
    header = read_json(content[8 : 8 + length].decode())
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its header is no object with texts as metadata")
    # torch makes nothing of more than 64 dimensions, in a time that is quadratic in them.
    shapes = [entry.get("shape") if isinstance(entry, dict) else None for entry in header.values()]
    if not all(isinstance(shape, list) and len(shape) <= _MOST_DIMENSIONS for shape in shapes):
        raise ValueError(f"its header has an entry that is no tensor of at most {_MOST_DIMENSIONS} dimensions")
    return metadata


def read_json(text: str) -> Any:
    """Returns the value of a JSON text."""
    try:
        return json.loads(text)
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
