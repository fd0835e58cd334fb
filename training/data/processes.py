"""Distributes samples over processes and adds up their sums (torch.distributed)."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .batch_limit import MEASURED
from .samples import Samples

__all__ = ["Processes", "join_processes"]


@dataclass(frozen=True)
class Processes:
    """This process's rank among `count` processes; it holds the microbatches rank, rank + count, ..., or none.

    Whole microbatches give each sample the same bits as in a single process. Picked rows form new microbatches, so
    with more samples than the core float32 results differ by rounding. Where the size is measured, each process
    chooses its own.
    """

    rank: int = 0
    count: int = 1

    def share(self, samples: Samples) -> Samples:
        """This process's samples; in smaller microbatches if there were fewer microbatches than processes."""
        if self.count == 1:
            return samples
        size = samples.microbatch or 1
        if -(-len(samples) // size) < self.count:
            size = max(1, len(samples) // self.count)
        share = samples.pick(torch.tensor(self._rows(len(samples), size), dtype=torch.long))
        return share if samples.microbatch == MEASURED else replace(share, microbatch=size)

    def first(self, samples: Samples, count: int) -> Samples:
        """Those of this process's `samples` that are among the first `count` of all processes."""
        return samples.rows(0, len(self._rows(count, samples.microbatch)))

    def local_rows(self, rows: Tensor, samples: Samples, total: int) -> Tensor:
        """Indices into this process's `samples` for those global `rows` (of `total`) that it holds."""
        positions = {row: i for i, row in enumerate(self._rows(total, samples.microbatch))}
        return torch.tensor([positions[row] for row in rows.tolist() if row in positions], dtype=torch.long)

    def gather(self, values: Tensor | None, samples: Samples, total: int) -> Tensor:
        """The values [total, ...] of the samples of all processes, from those of this process's samples on the CPU.

        None: this process has no sample.
        """
        if self.count == 1:
            assert values is not None
            return values
        parts: list[Any] = [None] * self.count
        dist.all_gather_object(parts, None if values is None else (self._rows(total, samples.microbatch), values))
        rows, tensors = zip(*(part for part in parts if part is not None), strict=True)
        gathered = torch.cat(tensors)
        return gathered[torch.tensor([row for some in rows for row in some]).argsort()]

    def _rows(self, total: int, microbatch: int) -> list[int]:
        return [row for row in range(total) if row // (microbatch or 1) % self.count == self.rank]

    def sums(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.count == 1:
            return tensor
        tensor = tensor.detach().cpu().clone()
        dist.all_reduce(tensor)
        return tensor

    def from_first(self, value: Any) -> Any:
        """Process 0's value, broadcast to all."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def leave(self) -> None:
        """Waits for the others, then leaves: exiting early would close connections that the others still use."""
        if self.count > 1:
            dist.barrier()
            dist.destroy_process_group()


def join_processes() -> Processes:
    """This process's rank under torchrun, or that of a single process. Each process takes its own device."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    if torch.cuda.is_available():
        # ComfyUI runs models on the current device.
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    if not dist.is_initialized():
        # Sums are small and on the CPU. The long timeout lets processes wait for the slowest; closed connections report
        # a process that died at once.
        dist.init_process_group("gloo", timeout=timedelta(hours=24))
    return Processes(dist.get_rank(), dist.get_world_size())
