"""What a prompt says about a node: the model file that it uses, and a hash of everything that leads to it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import folder_paths

__all__ = ["inputs_hash", "model_file", "model_names"]

_MODEL_WIDGETS = ("ckpt_name", "unet_name", "model_name", "gguf_name", "model_path")
_FILES = (*folder_paths.supported_pt_extensions, ".gguf")


def model_file(prompt: Mapping[str, Any], node_id: str) -> str | None:
    """The stem of the model file that a node's `model` input comes from; None if unknown."""
    *_, loader = [{}, *_nodes_before(prompt, node_id, "model")]
    files = [loader.get(widget) for widget in _MODEL_WIDGETS]
    return next((_stem(file) for file in files if isinstance(file, str) and file), None)


def model_names(prompt: Mapping[str, Any], node_id: str, wire: str = "model") -> list[str]:
    """The stems of the files that the model of an input is made of, LoRAs included."""
    values = [value for inputs in _nodes_before(prompt, node_id, wire) for value in inputs.values()]
    return [_stem(value) for value in values if isinstance(value, str) and value.lower().endswith(_FILES)]


def _nodes_before(prompt: Mapping[str, Any], node_id: str, wire: str) -> list[Mapping[str, Any]]:
    """The inputs of the nodes that a model passes before it reaches a node's input, the nearest first."""
    keys, link = [], prompt.get(node_id, {}).get("inputs", {}).get(wire)
    while isinstance(link, list) and link and str(link[0]) not in keys:
        keys.append(str(link[0]))
        link = prompt.get(keys[-1], {}).get("inputs", {}).get("model")
    return [prompt.get(key, {}).get("inputs", {}) for key in keys]


def _stem(file: str) -> str:
    return PurePosixPath(file.replace("\\", "/")).stem


def inputs_hash(prompt: Mapping[str, Any], node_id: str, omitted: tuple[str, ...]) -> str:
    """A hash of a node's inputs and of the nodes that lead to it, whatever their numbers; empty for an unknown node.

    It includes the size and time of the model files that are named there, and the host's mark of other files.

    Args:
        prompt: The prompt, as the host passes it to nodes.
        node_id: The node's number.
        omitted: Names of inputs of this node that do not matter.
    """
    from ..training.store.content import content_hash

    hashes: dict[str, str] = {}

    def hash_of(key: str, omitted: tuple[str, ...] = ()) -> str:
        if key not in hashes:
            hashes[key] = ""  # in case of a cycle
            node = prompt[key]
            inputs = {name: value_of(value) for name, value in node["inputs"].items() if name not in omitted}
            mark = "" if key == node_id else repr(node.get("is_changed"))  # the node's own changes with its file
            hashes[key] = content_hash(node["class_type"], inputs, mark)[:32]
        return hashes[key]

    def value_of(value: Any) -> Any:
        if isinstance(value, list) and len(value) == 2 and str(value[0]) in prompt:
            return hash_of(str(value[0])), value[1]
        return (value, _stamps(value)) if isinstance(value, str) and value.lower().endswith(_FILES) else value

    return hash_of(node_id, omitted) if node_id in prompt else ""


def _stamps(name: str) -> list[tuple[int, int]]:
    """Size and modification time of the model files of a name, in any of the host's folders."""
    paths = {folder_paths.get_full_path(kind, name) for kind in [*folder_paths.folder_names_and_paths]} - {None}
    return [(status.st_size, status.st_mtime_ns) for status in map(os.stat, sorted(paths))]
