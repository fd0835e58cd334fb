"""A stand-in for tensors on a device: notices what is read from it, and how much it holds."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from unittest.mock import patch

from learned_solvers.training.data.samples import Samples
from learned_solvers.training.data.teacher import Reference
from torch import Tensor
from torch.utils._pytree import tree_leaves

READS = {"cpu", "item", "tolist", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__"}


class OnDevice(Tensor):
    """A tensor on the device of `use_device`; what is computed from it is there too, until `cpu()`."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs or {})
        if (name := getattr(func, "__name__", "")) in READS:
            _device[0].reads.append(_device[0].calls)
            return result.as_subclass(Tensor) if name == "cpu" else result
        for tensor in tree_leaves(result):
            if isinstance(tensor, OnDevice):
                _device[0].keep(tensor)
        return result


@dataclass
class Device:
    """What happened on it: the number of model calls at each read, and the most bytes held at a call."""

    model: Callable[..., Tensor]
    calls: int = 0
    reads: list[int] = field(default_factory=list)
    most: int = 0
    _alive: dict[int, weakref.ref] = field(default_factory=dict)

    def keep(self, tensor: OnDevice) -> None:
        key = id(tensor)
        self._alive[key] = weakref.ref(tensor, lambda _: self._alive.pop(key, None))

    def held(self) -> int:
        """Bytes of all tensors on it."""
        storages = [t.as_subclass(Tensor).untyped_storage() for ref in self._alive.values() if (t := ref()) is not None]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: object) -> Tensor:
        """The model, whose own tensors are not counted."""
        assert isinstance(x, OnDevice)
        self.calls += 1
        self.most = max(self.most, self.held())
        plain = {k: v.as_subclass(Tensor) if isinstance(v, Tensor) else v for k, v in extra_args.items()}
        return self.model(x.as_subclass(Tensor), sigma.as_subclass(Tensor), **plain).as_subclass(OnDevice)


_device: list[Device] = []


@contextmanager
def use_device(model: Callable[..., Tensor]) -> Iterator[Device]:
    """A device on which a model runs; microbatches and the teacher's states for them are moved there."""

    def move(x: Tensor) -> Tensor:
        moved = x.clone().as_subclass(OnDevice)
        _device[0].keep(moved)
        return moved

    def state(self: Reference, i: int) -> Tensor:
        if self.device is None:
            return self.states[i]
        if i not in self._loaded:
            self._loaded[i] = move(self.states[i])
        return self._loaded[i]

    _device[:] = [Device(model)]
    with (
        patch.object(Samples, "loaded", lambda self: replace(self, x=move(self.x))),
        patch.object(Reference, "_state", state),
    ):
        yield _device[0]
