"""Safe reading of a solver file's container, a safetensors file, whose header is checked before it is parsed further.

The file is read into memory, not mapped: if another program truncated a mapped file, the process would crash.
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

__all__ = ["is_text", "read_container", "read_json"]

_LARGEST = 16 * 2**20  # bytes; a solver of 100 calls is 80 kB per knot
_MOST_DIMENSIONS = 3
_LONGEST_HEADER = 2**20  # bytes; a card of 100 step counts has 50 kB


def read_container(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and tensors of a file."""
    with path.open("rb") as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ValueError(
            f"a solver file has at most {_LARGEST} bytes, but this one has {path.stat().st_size}: it is probably a "
            "model; move it to a model folder"
        )
    try:
        metadata = _metadata(content)
        return metadata, load(content)
    # For odd shapes and types, safetensors passes on errors of torch and Python.
    except (SafetensorError, ValueError, RuntimeError, KeyError, TypeError, AssertionError, OverflowError) as error:
        raise ValueError(f"not a safetensors file ({str(error)[:200] or type(error).__name__})") from error


def _metadata(content: bytes) -> dict[str, str]:
    """The header's metadata."""
    length = struct.unpack("<Q", content[:8])[0] if len(content) >= 8 else 0
    if not 2 <= length <= min(len(content) - 8, _LONGEST_HEADER):
        # The first bytes of a text or image make a huge number that means nothing to the reader.
        length_text = f"header length {length}" if length <= 2**32 else "header length missing or"
        raise ValueError(f"{length_text} out of range (2 to {_LONGEST_HEADER}); the file has {len(content)} bytes")
    header = read_json(content[8 : 8 + length].decode())
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("the header must be a JSON object, and its metadata must map strings to strings")
    # torch refuses more than 64 dimensions, in a time quadratic in their number.
    shapes = [entry.get("shape") if isinstance(entry, dict) else None for entry in header.values()]
    if not all(isinstance(shape, list) and len(shape) <= _MOST_DIMENSIONS for shape in shapes):
        raise ValueError(f"each tensor in the header must have a shape of at most {_MOST_DIMENSIONS} dimensions")
    return metadata


def read_json(text: str) -> Any:
    """The value of a JSON text; ValueError if it is invalid."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"invalid JSON at character {error.pos}") from error


def is_text(value: object, longest: int) -> bool:
    """Whether a value is a text of at most `longest` characters that displays and stores safely.

    It may contain line breaks and tabs, but no other control characters and no lone surrogates.
    """
    if not isinstance(value, str) or len(value) > longest:
        return False
    return all(c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") for c in value)
