"""Where a solver that the user makes is written, and what its card can say about the model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import folder_paths

from ..samplers.files.names import check_name, has_suffix
from ..samplers.files.solver import SUFFIX
from ..samplers.text import shown
from .folder import FOLDER

__all__ = ["model_file", "path_of_new", "refuse_existing"]

_LONGEST = 200  # bytes of a name; the systems take 255, ending included
_MODEL_WIDGETS = ("ckpt_name", "unet_name", "model_name", "gguf_name", "model_path")


def path_of_new(name: str, overwrite: bool) -> tuple[Path, str]:
    """Returns the path of a new file below models/solver_weights, and its drop-down entry.

    Raises:
        ValueError: The name leads out of the folder, or some system does not take it.
        FileExistsError: The file exists and `overwrite` is False.
    """
    plain = PurePosixPath(name.strip().replace("\\", "/"))
    if (
        not plain.name or plain.is_absolute() or ".." in plain.parts or ":" in str(plain) or not name.isprintable()
        or max(len(part.encode()) for part in plain.parts) > _LONGEST or len(name) > 4 * _LONGEST
    ):  # fmt: skip
        raise ValueError(
            f"file_name must be a name within models/{FOLDER}, got {shown(repr(name), 200)}: dyweight_my-model, "
            f"mine/my-model, at most {_LONGEST} bytes"
        )
    for part in plain.parts:
        check_name(part)
    if not has_suffix(plain, SUFFIX):
        plain = plain.with_name(plain.name + SUFFIX)
    folder = Path(folder_paths.get_folder_paths(FOLDER)[0])
    path = folder.joinpath(*plain.parts)
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path.parent} is a link that leads out of models/{FOLDER}: choose a file_name without it")
    refuse_existing(path, overwrite)
    return path, str(Path(*plain.parts))


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Refuses the path of a new file where there is one.

    Raises:
        FileExistsError: The file exists, or a link does, and `overwrite` is False.
    """
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(f"{path} exists already: choose another file_name, or switch overwrite on")


def model_file(prompt: Mapping[str, Any] | None, node_id: str | None) -> str | None:
    """Returns the stem of the model file that the `model` input of a node comes from, by the prompt; None if unseen."""
    node, wire = (prompt or {}).get(str(node_id), {}), None
    for _ in range(100):  # a chain of patches; a prompt has no cycles, but nothing here relies on it
        wire = node.get("inputs", {}).get("model", None)
        if not (isinstance(wire, list | tuple) and wire and str(wire[0]) in (prompt or {})):
            break
        node = (prompt or {})[str(wire[0])]
    named = [node.get("inputs", {}).get(widget) for widget in _MODEL_WIDGETS]
    return next((PurePosixPath(n.replace("\\", "/")).stem for n in named if isinstance(n, str) and n), None)
