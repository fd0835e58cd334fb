"""Reads the parameters in the DyWeight authors' .pkl files without executing anything in them.

Those files are EDM "persistence" pickles, which carry Python source that a stock unpickler would compile. Here the
eleven names that the authors' files use are mapped to inert stand-ins; a file with any other name, and so with any
other call, is refused. Tensor storages in the pickle are read by torch.load with weights_only.
"""

from __future__ import annotations

import io
import math
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.storage import TypedStorage

from .pickle_stream import check_pickles

__all__ = ["load_inert_pickle"]

_SOLVERS = ("dyweight_sampler", "heun_sampler", "ipndm_sampler", "euler_sampler", "dpm_pp_sampler", "unipc_sampler")


def load_inert_pickle(content: bytes) -> dict[str, Any]:
    """The pickle's outermost dictionary; objects become dictionaries of their state, solvers their names.

    May raise any exception, as a hostile file can misuse the stand-ins, but executes no code of the file.
    """
    check_pickles(content)
    allowed = _stand_ins()  # new for each file

    class InertUnpickler(pickle.Unpickler):
        def find_class(self, module_name: str, global_name: str) -> Any:
            if (module_name, global_name) not in allowed:
                raise ValueError(f"it refers to {module_name}.{global_name}, which is not on the allow-list")
            return allowed[module_name, global_name]

    loaded = InertUnpickler(io.BytesIO(content)).load()
    if not isinstance(loaded, dict):
        raise ValueError(f"it must hold a dictionary, got {type(loaded).__name__}")
    return loaded


def _stand_ins() -> dict[tuple[str, str], Callable[..., Any] | str | type]:
    """The allow-list, of new closures: a pickle that sets attributes on them affects no other load."""

    def persistent_object(meta: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(meta["class_name"], str):
            raise ValueError("a class name must be text")
        return dict(meta["state"], class_name=meta["class_name"])

    def parameter(data: Tensor, requires_grad: bool, hooks: Any) -> Tensor:
        return data

    def storage(content: bytes) -> Tensor:
        if content[:2] == b"PK":
            raise ValueError("a storage must be in torch's old layout")
        check_pickles(content, count=5)  # magic number, protocol, system, storage, keys
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # TypedStorage is deprecated; these files have only that
            typed = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            if not isinstance(typed, TypedStorage):  # a tensor of stride 0 may claim any number of entries
                raise ValueError("a storage must be a TypedStorage")
            return torch.tensor(typed.tolist(), dtype=typed.dtype)

    def tensor(
        data: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], requires_grad: bool, hooks: Any
    ) -> Tensor:
        # Each side is checked before the product, which is slow for huge numbers.
        if not all(type(n) is int and 0 < n <= data.numel() for n in size) or math.prod(size) > data.numel():
            raise ValueError("a tensor's size must be positive integers within its storage")
        return torch.as_strided(data, size, stride, offset).clone()

    return {
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): persistent_object,
        ("torch._utils", "_rebuild_parameter"): parameter,
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch.storage", "_load_from_bytes"): storage,
        ("collections", "OrderedDict"): OrderedDict,
        **{("solvers", name): name for name in _SOLVERS},
    }
