"""How many samples a model call may have: as many as asked for, and half as many whenever memory ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

__all__ = ["BatchLimit", "is_out_of_memory"]

_Result = TypeVar("_Result")
_SAID = ("out of memory", "not enough memory", "can't allocate memory", "failed to allocate", "alloc_failed")
_SAID += ("not enough gpu video memory",)  # DirectML's


class BatchLimit:
    """Halves the microbatch on out-of-memory, with a line to `log`.

    The limit stays unless this size has fitted before: then the shortage may be temporary, until it happens twice.
    """

    def __init__(self, log: Callable[[str], None] = lambda line: None) -> None:
        self.log = log
        self.most: int | None = None
        self.fitted, self.ended = 0, set[int]()

    def each(self, count: int, size: int, work: Callable[[int, int], _Result]) -> Iterator[_Result]:
        """Yields `work(start, stop)` of parts of `count` samples, of `size` or, where memory ended, fewer.

        Work that ran out of memory is repeated on half as many, so it must leave nothing behind when it raises.
        """
        start, here = 0, count  # `here`: at most so many until this work is done
        while start < count:
            stop = min(count, start + min(size, here, self.most or size))
            try:
                result = work(start, stop)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if stop - start == 1:
                    self.log("out of memory with one sample at a time: a smaller picture takes less")
                    raise
            else:
                self.fitted = max(self.fitted, stop - start)
                yield result
                start = stop
                continue
            here = self._halve(stop - start)  # by now the exception is gone, and with it what its frames held

    def _halve(self, tried: int) -> int:
        if tried > self.fitted or tried in self.ended:
            self.most = tried // 2
        self.ended.add(tried)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.log(f"out of memory with {tried} samples at a time: going on with {tried // 2}")
        return tried // 2


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception reports that no memory is left: a GPU's, the CPU allocator's, or Python's own."""
    no_memory = MemoryError, torch.cuda.OutOfMemoryError  # which is torch.OutOfMemoryError, from torch 2.5 on
    return isinstance(error, no_memory) or any(said in str(error).lower() for said in _SAID)
