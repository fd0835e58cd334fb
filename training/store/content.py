"""What a value holds, hashed: conditions of any kind are told apart by their content."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

__all__ = ["Digest", "add_content"]


class Digest(Protocol):
    """A hash in the making, as hashlib's."""

    def update(self, data: Any, /) -> None:
        """Adds bytes."""
        ...


def add_content(digest: Digest, value: Any, of_other: Callable[[Any], str]) -> None:
    """Adds what a model's extra argument holds to a hash; `of_other` says it for objects of an unknown kind."""

    def add(text: str, *parts: Any) -> None:
        digest.update(f"{len(text)}:{text}".encode())
        for part in parts:
            add_content(digest, part, of_other)

    if isinstance(value, Tensor):
        held = value.detach().cpu()
        add(f"tensor {held.dtype} {list(held.shape)}")
        for row in held if held.ndim > 1 else [held]:  # a whole copy may be too large
            digest.update(row.contiguous().flatten().view(torch.uint8).numpy())
    elif isinstance(value, np.ndarray) and value.dtype.hasobject:
        add(f"objects {list(value.shape)}", *value.flatten().tolist())
    elif isinstance(value, np.ndarray):
        add(f"array {value.dtype} {list(value.shape)}")
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        add(f"mapping {len(value)}", *(part for key in sorted(value, key=str) for part in (key, value[key])))
    elif isinstance(value, list | tuple):
        add(f"list {len(value)}", *value)
    elif is_dataclass(value) and not isinstance(value, type):
        add(type(value).__qualname__, *(getattr(value, entry.name) for entry in fields(value)))
    elif value is None or isinstance(value, str | bytes | bool | int | float | complex | np.generic | Enum | PurePath):
        add(f"{type(value).__name__} {value!r}")
    else:
        add(of_other(value))
