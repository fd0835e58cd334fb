"""Where a solver that the user makes is written, and what its card can say about the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import folder_paths

from ..samplers.names import check_name, has_suffix
from ..samplers.solver_file import SUFFIX
from .folder import FOLDER

__all__ = ["guidance_of", "model_file", "path_of_new"]

_MODEL_WIDGETS = ("ckpt_name", "unet_name", "model_name", "gguf_name", "model_path")


def path_of_new(name: str, overwrite: bool) -> tuple[Path, str]:
    """Returns the path of a new file below models/solver_weights, and its drop-down entry.

    Raises:
        ValueError: The name leads out of the folder, or some system does not take it.
        FileExistsError: The file exists and `overwrite` is False.
    """
    plain = PurePosixPath(name.strip().replace("\\", "/"))
    if not plain.name or plain.is_absolute() or ".." in plain.parts or ":" in str(plain):
        raise ValueError(
            f"file_name must be a name within models/{FOLDER}, got {name!r}: dyweight_my-model, mine/my-model"
        )
    for part in plain.parts:
        check_name(part)
    if not has_suffix(plain, SUFFIX):
        plain = plain.with_name(plain.name + SUFFIX)
    path = Path(folder_paths.get_folder_paths(FOLDER)[0], *plain.parts)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already: choose another file_name, or switch overwrite on")
    return path, str(Path(*plain.parts))


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


def guidance_of(base: Any, conds: Iterable[Mapping[str, Any]], cfg: float) -> str:
    """Returns what a card says about guidance: CFG, or the guidance that is part of the conditioning.

    Args:
        base: ComfyUI's BaseModel.
        conds: The entries of the positive conditioning, without their tensors.
        cfg: Classifier-free guidance.
    """
    own = next((cond["guidance"] for cond in conds if cond.get("guidance") is not None), None)
    if own is not None:
        return f"{own:g} (distilled, CFG {cfg:g})"
    if getattr(base.model_config, "unet_config", {}).get("guidance_embed"):
        return f"the host's default (distilled, CFG {cfg:g})"
    return f"{cfg:g}"
