"""A solver for N steps as a start for another number of steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["resampled"]


def resampled(tensors: Mapping[str, Tensor], steps: int) -> dict[str, Tensor]:
    """Returns a solver file's tensors for another number of steps; unchanged for the same number.

    Row i of the result is the row at the same place of the path, aligned at its newest entry; per-step vectors are
    interpolated, and time deltas are those of the interpolated path.
    """
    own = len(next(iter(tensors.values())))
    if own == steps:
        return dict(tensors)
    places = torch.linspace(0, own - 1, steps, dtype=torch.float64)
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name == "timedeltas":
            path = torch.cat([torch.zeros(1, dtype=torch.float64), tensor.cumsum(0)])
            made[name] = _interpolated(path, torch.linspace(0, own, steps + 1, dtype=torch.float64)).diff()
        elif tensor.ndim == 1:
            made[name] = _interpolated(tensor, places)
        else:
            made[name] = _rows(tensor, places.round().long().tolist())
    return made


def _rows(matrix: Tensor, sources: list[int]) -> Tensor:
    made = torch.zeros(len(sources), len(sources), dtype=torch.float64)
    for i, source in enumerate(sources):
        for back in range(source + 1):
            made[i, max(0, i - back)] += matrix[source, source - back]
    return made


def _interpolated(values: Tensor, places: Tensor) -> Tensor:
    low = places.floor().long().clamp(max=max(0, len(values) - 2))
    high = (low + 1).clamp(max=len(values) - 1)
    return torch.lerp(values[low], values[high], places - low)
