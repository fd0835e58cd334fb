"""How much memory this process has used at most."""

from __future__ import annotations

import sys

import torch

__all__ = ["peak_memory"]


def peak_memory(device: torch.device) -> str:
    """Returns this process's peak so far, in words: allocated on a CUDA device, else resident as a whole."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GB on the GPU"
    if sys.platform == "win32":
        return "unknown"
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{size * (1 if sys.platform == 'darwin' else 1024) / 2**30:.2f} GB resident"
