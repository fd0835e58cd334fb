"""One process or many: how samples are shared out and sums are added up (torch.distributed)."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .samples import Samples

__all__ = ["Processes", "join_processes"]


@dataclass(frozen=True)
class Processes:
    """This process's place among `count`; process `rank` has the microbatches rank, rank + count, ...

    Whole microbatches, so that each is computed as in a single process, to the last bit. Picked rows are grouped
    anew, so with more samples than the core float32's rounding differs; the result is as good.
    """

    rank: int = 0
    count: int = 1

    def own(self, samples: Samples) -> Samples:
        """Returns this process's samples, in smaller microbatches where there are fewer of them than processes."""
        if self.count == 1:
            return samples
        if len(samples) < self.count:
            raise ValueError(
                f"{self.count} processes need as many samples to fit to and as many to judge with, got {len(samples)}: "
                "take more samples, or fewer processes"
            )
        size = samples.microbatch
        if -(-len(samples) // size) < self.count:
            size = len(samples) // self.count
        own = samples.pick(torch.tensor(self._rows(len(samples), size)))
        return replace(own, microbatch=size)

    def first(self, samples: Samples, count: int) -> Samples:
        """Returns this process's part of the first `count` samples of all, from its own `samples`."""
        return samples.rows(0, len(self._rows(count, samples.microbatch)))

    def places(self, rows: Tensor, samples: Samples, total: int) -> Tensor:
        """Returns where in this process's `samples` those of the `rows` of all `total` samples are that it has."""
        place = {row: i for i, row in enumerate(self._rows(total, samples.microbatch))}
        return torch.tensor([place[row] for row in rows.tolist() if row in place], dtype=torch.long)

    def joined(self, own: Tensor, samples: Samples, total: int) -> Tensor:
        """Returns a number of each of all `total` samples, shape [total], from those of this process's `samples`."""
        if self.count == 1:
            return own
        numbers = own.new_zeros(total)
        numbers[self._rows(total, samples.microbatch)] = own
        return self.sums(numbers)

    def _rows(self, total: int, microbatch: int) -> list[int]:
        return [row for row in range(total) if row // microbatch % self.count == self.rank]

    def sums(self, tensor: Tensor) -> Tensor:
        """Returns the sum of a tensor over processes."""
        if self.count == 1:
            return tensor
        tensor = tensor.detach().cpu().clone()
        dist.all_reduce(tensor)
        return tensor

    def from_first(self, value: Any) -> Any:
        """Returns what process 0 has."""
        if self.count == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held)
        return held[0]

    def leave(self) -> None:
        """Waits for the others, then leaves: connections of a process that ends first may bring down the last."""
        if self.count > 1:
            dist.barrier()
            dist.destroy_process_group()


def join_processes() -> Processes:
    """Returns this process's place under torchrun, or that of a single process. Each takes a device of its own."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    if torch.cuda.is_available():
        # ComfyUI runs models on the current device.
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    if not dist.is_initialized():
        # Sums are small and on the CPU. Processes wait for the slowest; of one that died its connections tell at once.
        dist.init_process_group("gloo", timeout=timedelta(hours=24))
    return Processes(dist.get_rank(), dist.get_world_size())
