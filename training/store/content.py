"""Content hashes of values: distinguishes conditions of any type by what they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from hashlib import sha256
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["content_hash"]


def content_hash(*values: Any, describe: Callable[[Any], str] = repr) -> str:
    """SHA-256 of tensors, arrays, numbers and texts, and of lists, mappings and dataclasses of such, in hexadecimal.

    Other objects are hashed as the text that `describe` returns.
    """
    digest = sha256()

    def add_text(text: str, members: Iterable[Any] = ()) -> None:
        digest.update(f"{len(text)}:{text}".encode())
        for member in members:
            add(member)

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            rows = value.detach().cpu()
            add_text(f"tensor {rows.dtype} {list(rows.shape)}")
            for row in rows if rows.ndim > 1 else [rows]:  # a whole copy may be too large
                digest.update(row.contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(value, np.ndarray):
            objects = value.dtype.hasobject
            add_text(f"array {value.dtype} {list(value.shape)}", value.flatten().tolist() if objects else ())
            digest.update(b"" if objects else np.ascontiguousarray(value).tobytes())
        elif isinstance(value, Mapping):
            add_text(f"mapping {len(value)}", (part for key in sorted(value, key=str) for part in (key, value[key])))
        elif isinstance(value, list | tuple):
            add_text(f"list {len(value)}", value)
        elif is_dataclass(value) and not isinstance(value, type):
            add_text(type(value).__qualname__, (getattr(value, entry.name) for entry in fields(value)))
        elif value is None or isinstance(
            value, str | bytes | bool | int | float | complex | np.generic | Enum | PurePath
        ):
            add_text(f"{type(value).__name__} {value!r}")
        else:
            add_text(describe(value))

    add(values)
    return digest.hexdigest()
