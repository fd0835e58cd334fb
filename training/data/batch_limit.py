"""How many samples fit into memory at a time: as many as asked for, and half as many whenever memory ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

__all__ = ["Room", "is_out_of_memory"]

_Result = TypeVar("_Result")
_SAID = ("out of memory", "not enough memory", "can't allocate memory", "failed to allocate", "alloc_failed")
_SAID += ("not enough gpu video memory",)  # DirectML's


class Room:
    """The largest number of samples that was found to fit.

    Args:
        say: Told when it is halved.
    """

    def __init__(self, say: Callable[[str], None] = lambda line: None) -> None:
        self.say = say
        self.most: int | None = None
        self.fitted, self.ended = 0, set[int]()

    def each(self, count: int, size: int, work: Callable[[int, int], _Result]) -> Iterator[_Result]:
        """Yields `work(start, stop)` of parts of `count` samples, of `size` or, where memory ended, fewer.

        Work that ran out of memory is done again on half as many, so it must leave nothing behind when it raises.

        Raises:
            RuntimeError: Out of memory with one sample.
        """
        start, here = 0, count  # `here`: at most so many until this work is done
        while start < count:
            stop = min(count, start + min(size, here, self.most or size))
            result, ended = self._tried(work, start, stop)
            if ended:  # here the exception is gone, and with it what its frames held
                here = self._halved(stop - start)
            else:
                self.fitted = max(self.fitted, stop - start)
                yield result  # pyright: ignore[reportReturnType]
                start = stop

    def _tried(self, work: Callable[[int, int], _Result], start: int, stop: int) -> tuple[_Result | None, bool]:
        try:
            return work(start, stop), False
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if stop - start == 1:
                self.say("out of memory with one sample at a time: a smaller picture takes less")
                raise
            return None, True

    def _halved(self, tried: int) -> int:
        """Returns half as many; not for good where as many fitted before: memory may be short once."""
        if tried > self.fitted or tried in self.ended:
            self.most = tried // 2
        self.ended.add(tried)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.say(f"out of memory with {tried} samples at a time: going on with {tried // 2}")
        return tried // 2


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there is no memory left: a GPU's, the CPU allocator's, or Python's own."""
    no_room = MemoryError, torch.cuda.OutOfMemoryError  # which is torch.OutOfMemoryError, from torch 2.5 on
    return isinstance(error, no_room) or any(said in str(error).lower() for said in _SAID)
