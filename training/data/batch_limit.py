"""Samples per model call: the requested number or the fastest one, halved whenever memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["MEASURED", "BatchLimit", "Memory", "is_out_of_memory"]

MEASURED = 0
"""The size that stands for the fastest one."""
_Result = TypeVar("_Result")
_MESSAGES = ("out of memory", "not enough memory", "can't allocate memory", "failed to allocate", "alloc_failed")
_MESSAGES += ("not enough gpu video memory", "unable to find an engine to execute")  # DirectML's, cuDNN's
_LARGEST = 8  # beyond, GPUs gain little
_GAIN = 0.9  # a larger batch must take at most this part of the time per sample


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means out of memory: from a GPU, the CPU allocator or Python itself."""
    no_memory = MemoryError, torch.cuda.OutOfMemoryError  # from torch 2.5 on the same as torch.OutOfMemoryError
    return isinstance(error, no_memory) or any(message in str(error).lower() for message in _MESSAGES)


def _release() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Memory:
    """How out of memory is recognised, and how unused memory is given back; a host has its own ways."""

    is_out: Callable[[BaseException], bool] = is_out_of_memory
    release: Callable[[], object] = _release


class BatchLimit:
    """Chooses the samples per model call, and halves them when memory runs out.

    The fastest size is found while a fit works: 1, 2, 4 and 8 are timed, as long as each is faster per sample than the
    one before. After a shortage the lower limit is permanent, unless the same size has succeeded before: the first
    failure of such a size may be a temporary shortage, the second is not. A single sample is tried again at once.
    """

    def __init__(self, log: Callable[[str], None] = lambda line: None, memory: Memory | None = None) -> None:
        self.log, self.memory = log, memory or Memory()
        self.limit: int | None = None
        self.largest_success, self.failed_sizes = 0, set[int]()
        self.largest = _LARGEST
        self.size, self.candidate = 1, 1  # the fastest so far, and the next to be timed; 0 if there is none
        self.on_choice: Callable[[dict[str, Tensor]], object] = lambda record: None
        self.is_timing = False
        self._seconds: dict[int, float] = {}

    def each(
        self, count: int, size: int, work: Callable[[int, int], _Result], groups: Sequence[Hashable] = ()
    ) -> Iterator[_Result]:
        """Yields `work(start, stop)` for consecutive parts of `count` samples, each of at most `size` and of one group.

        Work that ran out of memory is repeated on half as many samples, so it must have no side effect when it raises.
        """
        start, local_limit = 0, count  # `local_limit` applies until this work is done
        waited = -1  # the sample that was tried again alone
        while start < count:
            together = next((i for i in range(start, count) if groups and groups[i] != groups[start]), count) - start
            together = min(together, local_limit, self.limit or count)
            part = min(together, self._next_size(together) if size == MEASURED else size)
            self.is_timing = size == MEASURED and part == self.candidate
            try:
                result = work(start, start + part)
            except Exception as error:
                self.is_timing = False
                if not self.memory.is_out(error):
                    raise
                if part == 1 and (start == waited or not self.largest_success):
                    self.log(
                        "out of memory with a single sample: close what else uses the memory, or choose a smaller "
                        "image size"
                    )
                    raise
            else:
                self._judge()
                self.largest_success = max(self.largest_success, part)
                yield result
                start += part
                continue
            if part > 1:  # outside `except`: the exception's frames no longer hold memory
                local_limit = self._halve(part)
            else:
                waited = start
                self.memory.release()
                self.log("out of memory with a single sample, which fitted before: trying again")

    def time(self, x: Tensor, seconds: float) -> None:
        """Takes the duration of a call of states x, while `is_timing`."""
        self._seconds[len(x)] = min(seconds / len(x), self._seconds.get(len(x), seconds))

    def restore(self, record: Mapping[str, Tensor]) -> None:
        """Continues with the choice of an interrupted fit, as given to `on_choice`."""
        size, candidate, seconds = record["choice"].tolist()
        self.size, self.candidate = int(size), int(candidate)
        self._seconds[self.size] = seconds

    def _next_size(self, together: int) -> int:
        return self.candidate if 0 < self.candidate <= together else self.size

    def _judge(self) -> None:
        """Takes the candidate if it was timed and is faster, and chooses the next one."""
        tried, self.is_timing = self.candidate if self.is_timing else 0, False
        if tried not in self._seconds:  # not timed, or the work made no call
            return
        faster = tried == 1 or self._seconds[tried] <= _GAIN * self._seconds[self.size]
        if faster and tried > 1:
            before, after = (1 / self._seconds[size] for size in (self.size, tried))
            self.log(f"{tried} samples per call: {after:.1f} instead of {before:.1f} calls per second")
        self.size = tried if faster else self.size
        self.candidate = 2 * tried if faster and 2 * tried <= self.largest else 0
        choice = [self.size, self.candidate, self._seconds[self.size]]
        self.on_choice({"choice": torch.tensor(choice, dtype=torch.float64)})

    def _halve(self, size: int) -> int:
        if size > self.largest_success or size in self.failed_sizes:
            self.limit = size // 2
        if size == self.candidate:
            self.candidate = 0
        self.failed_sizes.add(size)
        self.memory.release()
        self.log(f"out of memory with {size} samples per call: continuing with {size // 2}")
        return size // 2
