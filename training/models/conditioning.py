"""Encoded prompts and their files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...samplers.files.write import write_tensors

__all__ = ["Cond", "read_conditioning", "write_conditioning"]

Cond = dict[str, Tensor]
"""An encoded prompt: "context" [1, T, D] and the encoder's other outputs, such as "pooled_output" [1, P]."""


def write_conditioning(path: Path, conds: Sequence[Cond], prompts: Sequence[str], architecture: str) -> None:
    """Writes encoded prompts, the negative one first, with their texts and the model architecture."""
    tensors = {f"{i}/{key}": tensor for i, cond in enumerate(conds) for key, tensor in cond.items()}
    write_tensors(path, tensors, {"architecture": architecture, **{f"{i}": prompt for i, prompt in enumerate(prompts)}})


def read_conditioning(path: Path, architecture: str, negative: str | None = None) -> list[Cond]:
    """The encoded prompts of a file, the negative one first.

    Refuses a file for another architecture or negative prompt; None accepts any negative prompt.
    """
    conds: dict[int, Cond] = {}
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            for key in file.keys():  # noqa: SIM118 - not a dict
                number, _, name = key.partition("/")
                conds.setdefault(int(number), {})[name] = file.get_tensor(key).clone()  # Windows deletes no mapped file
        complete = sorted(conds) == list(range(len(conds))) and all("context" in cond for cond in conds.values())
        if not complete or len(conds) < 2:
            raise ValueError("prompts are missing")
    except (SafetensorError, ValueError) as error:
        raise ValueError(
            f"{path} is not a conditioning file ({error}); delete it to encode the prompts again"
        ) from error
    if facts.get("architecture", architecture) != architecture:
        raise ValueError(
            f"{path} contains prompts encoded for {facts['architecture']}, but this model is {architecture}: pass "
            "another file"
        )
    if negative is not None and facts.get("0", negative) != negative:
        raise ValueError(
            f"{path} was encoded with the negative prompt {facts['0']!r}, but --negative is {negative!r}: pass another "
            "file"
        )
    return [conds[i] for i in range(len(conds))]
