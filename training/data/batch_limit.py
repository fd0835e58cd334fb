"""The largest number of samples per model call: the requested one, halved whenever memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

__all__ = ["BatchLimit", "is_out_of_memory"]

_Result = TypeVar("_Result")
_MESSAGES = ("out of memory", "not enough memory", "can't allocate memory", "failed to allocate", "alloc_failed")
_MESSAGES += ("not enough gpu video memory",)  # DirectML's


class BatchLimit:
    """Halves the microbatch when memory runs out, and logs it.

    The lower limit is permanent, unless the same size has succeeded before: the first failure of such a size may be a
    temporary shortage, the second is not.
    """

    def __init__(self, log: Callable[[str], None] = lambda line: None) -> None:
        self.log = log
        self.limit: int | None = None
        self.largest_success, self.failed_sizes = 0, set[int]()

    def each(self, count: int, size: int, work: Callable[[int, int], _Result]) -> Iterator[_Result]:
        """Yields `work(start, stop)` for consecutive parts of `count` samples, each of at most `size`.

        Work that ran out of memory is repeated on half as many samples, so it must have no side effect when it raises.
        """
        start, local_limit = 0, count  # `local_limit` applies until this work is done
        while start < count:
            stop = min(count, start + min(size, local_limit, self.limit or size))
            try:
                result = work(start, stop)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if stop - start == 1:
                    self.log("out of memory with a single sample: choose a smaller image size")
                    raise
            else:
                self.largest_success = max(self.largest_success, stop - start)
                yield result
                start = stop
                continue
            local_limit = self._halve(stop - start)  # outside `except`: the exception's frames no longer hold memory

    def _halve(self, size: int) -> int:
        if size > self.largest_success or size in self.failed_sizes:
            self.limit = size // 2
        self.failed_sizes.add(size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.log(f"out of memory with {size} samples per call: continuing with {size // 2}")
        return size // 2


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means out of memory: from a GPU, the CPU allocator or Python itself."""
    no_memory = MemoryError, torch.cuda.OutOfMemoryError  # from torch 2.5 on the same as torch.OutOfMemoryError
    return isinstance(error, no_memory) or any(message in str(error).lower() for message in _MESSAGES)
