"""A progress bar that counts network calls, with what the fit said last about the held-out error."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

__all__ = ["CallBar", "peak_memory"]


class CallBar:
    """A bar for a denoiser's calls; as a fit's `progress` it is told lines and prints them above the bar.

    Args:
        calls: Network calls that are expected; the bar ends early where the fit needs fewer.
        silent: Neither draw nor print: all processes but the first.
    """

    def __init__(self, calls: int, silent: bool = False) -> None:
        self.silent = silent
        # disable=None: no bar where the output is no terminal.
        self.bar = tqdm(total=calls, unit=" calls", disable=True if silent else None, dynamic_ncols=True)
        self.calls = 0

    def counted(self, denoiser: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Returns the denoiser, its calls counted, one per sample."""

        def count(x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
            self.calls += len(x)
            self.bar.update(len(x))
            return denoiser(x, sigma, **extra_args)

        return count

    def __call__(self, line: str) -> None:
        """Prints a line; what it says about held-out samples stays beside the bar."""
        if self.silent:
            return
        self.bar.write(line)
        if "held out" in line or "held-out" in line:
            self.bar.set_postfix_str(line.rpartition(": ")[2])

    def close(self) -> None:
        """Ends the bar where it is."""
        self.bar.total = self.bar.n
        self.bar.close()


def peak_memory(device: torch.device) -> str:
    """Returns this process's peak so far, in words: allocated on a CUDA device, else resident as a whole."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GB on the GPU"
    if sys.platform == "win32":
        return "unknown"
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{size * (1 if sys.platform == 'darwin' else 1024) / 2**30:.2f} GB resident"
