"""Heun's method as a table."""

from __future__ import annotations

import torch
from torch import Tensor

from ..grids import checked_levels
from ..table import SolverTable

__all__ = ["heun"]


def heun(sigmas: Tensor) -> SolverTable:
    """Heun's method (arXiv 2206.00364, algorithm 1): two calls per step, one in a last step to 0.

    Each stage is a row: the first goes to sigma_{i+1} with h_0; the second stays at that level and adds half a step
    times h_1 - h_0. The table of M steps has 2 M rows, or 2 M - 1 if the last level is 0.
    """
    sigmas = checked_levels(sigmas)
    steps = sigmas.diff()
    twice = len(steps) - (sigmas[-1] == 0).int().item()
    levels = torch.cat([sigmas[:1], sigmas[1 : twice + 1].repeat_interleave(2), sigmas[twice + 1 :]])
    coeffs = torch.zeros(len(levels) - 1, len(levels) - 1, dtype=torch.float64)
    for i, step in enumerate(steps.tolist()):
        coeffs[2 * i, 2 * i] = step
        if i < twice:
            coeffs[2 * i + 1, 2 * i], coeffs[2 * i + 1, 2 * i + 1] = -step / 2, step / 2
    return SolverTable(levels, levels[:-1], torch.ones(len(levels) - 1, dtype=torch.float64), coeffs, "derivative")
