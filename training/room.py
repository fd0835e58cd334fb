"""How many samples fit into memory at a time: as many as asked for, and half as many whenever memory ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

__all__ = ["Room", "is_out_of_memory"]

_Result = TypeVar("_Result")
_SAID = ("out of memory", "not enough memory", "can't allocate memory", "failed to allocate")


class Room:
    """The largest number of samples that was found to fit.

    Args:
        say: Told when it is halved.
    """

    def __init__(self, say: Callable[[str], None] = lambda line: None) -> None:
        self.say = say
        self.most: int | None = None

    def each(self, count: int, size: int, work: Callable[[int, int], _Result]) -> Iterator[_Result]:
        """Yields `work(start, stop)` of parts of `count` samples, of `size` or, where memory ended, fewer.

        Work that ran out of memory is done again on half as many, so it must leave nothing behind when it raises.

        Raises:
            RuntimeError: Out of memory with one sample.
        """
        start = 0
        while start < count:
            stop = min(count, start + min(size, self.most or size))
            result, ended = self._tried(work, start, stop)
            if ended:  # here the exception is gone, and with it what its frames held
                self._halve(stop - start)
            else:
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

    def _halve(self, tried: int) -> None:
        self.most = tried // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.say(f"out of memory with {tried} samples at a time: going on with {self.most}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there is no memory left: a GPU's, the CPU allocator's, or Python's own."""
    no_room = MemoryError, torch.cuda.OutOfMemoryError  # which is torch.OutOfMemoryError, from torch 2.5 on
    return isinstance(error, no_room) or any(said in str(error).lower() for said in _SAID)
