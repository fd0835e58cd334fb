"""Files of tensors that are whole or not there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from ..samplers.files import write_whole

__all__ = ["write_tensors"]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file, or leaves what was there, also when killed; makes the folder.

    Raises:
        OSError: It cannot be written; the message names the path.
    """
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    write_whole(path, save(plain, dict(metadata or {"format": "pt"})))
