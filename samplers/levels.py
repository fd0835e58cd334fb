"""The rule that noise levels of a grid keep."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["checked_levels"]


def checked_levels(sigmas: Tensor) -> Tensor:
    """Returns noise levels as float64 on the CPU, without gradients, shape [N + 1].

    Raises:
        ValueError: They are fewer than two, do not descend, or end below 0.
    """
    sigmas = torch.as_tensor(sigmas, device="cpu").detach().double()
    if sigmas.ndim != 1 or len(sigmas) < 2 or bool((sigmas.diff() >= 0).any()) or float(sigmas[-1]) < 0:
        raise ValueError(f"sigmas must be at least two descending levels, the last 0 or above, got {sigmas.tolist()}")
    return sigmas
