"""One process or many: how samples are shared out and sums are added up (torch.distributed)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .samples import Samples

__all__ = ["Processes", "join_processes"]


@dataclass(frozen=True)
class Processes:
    """This process's place among `count`; process `rank` has the samples rank, rank + count, ..."""

    rank: int = 0
    count: int = 1

    def own(self, samples: Samples) -> Samples:
        """Returns this process's samples."""
        if self.count == 1:
            return samples
        return samples.pick(torch.arange(self.rank, len(samples), self.count))

    def first(self, samples: Samples, count: int) -> Samples:
        """Returns this process's part of the first `count` samples of all, from its own `samples`."""
        return samples.rows(0, len(range(self.rank, count, self.count)))

    def sums(self, tensor: Tensor) -> Tensor:
        """Returns the sum of a tensor over processes."""
        if self.count == 1:
            return tensor
        tensor = tensor.detach().cpu().clone()
        dist.all_reduce(tensor, group=_gloo())
        return tensor

    def from_first(self, value: Any) -> Any:
        """Returns what process 0 has."""
        if self.count == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0, group=_gloo())
        return held[0]


def join_processes() -> Processes:
    """Returns this process's place under torchrun, or that of a single process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    if not dist.is_initialized():
        dist.init_process_group("gloo")  # sums are small and on the CPU
    return Processes(dist.get_rank(), dist.get_world_size())


def _gloo() -> dist.ProcessGroup | None:
    return dist.group.WORLD
