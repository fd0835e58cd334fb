"""Files that are whole or not there: written beside their place, then moved to it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

__all__ = ["write_tensors"]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file, or leaves what was there, also when killed; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        save_file(
            {k: t.detach().cpu().contiguous() for k, t in tensors.items()},
            temporary,
            dict(metadata or {"format": "pt"}),
        )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
