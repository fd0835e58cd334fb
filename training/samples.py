"""Starting states with their conditioning, cut into microbatches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["CountedDenoiser", "Samples"]


@dataclass(frozen=True, eq=False)
class Samples:
    """Starting states x [S, ...] at the solver's first noise level, and what the model takes with them.

    Args:
        x: States, float32 or wider, shape [S, ...].
        extra_args: Keyword arguments of the model; tensors with S rows and lists of length S are per sample.
        microbatch: Samples per model call.
    """

    x: Tensor
    extra_args: Mapping[str, Any]
    microbatch: int

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, start: int, stop: int) -> Samples:
        """Returns samples start ... stop - 1."""
        own = {key: value[start:stop] if self.is_per_sample(value) else value for key, value in self.extra_args.items()}
        return Samples(self.x[start:stop], own, self.microbatch)

    def pick(self, rows: Tensor) -> Samples:
        """Returns the samples of a list of row numbers."""
        chosen = {
            key: value[rows.to(value.device)] if isinstance(value, Tensor) else [value[i] for i in rows.tolist()]
            for key, value in self.extra_args.items()
            if self.is_per_sample(value)
        }
        return Samples(self.x[rows.to(self.x.device)], {**self.extra_args, **chosen}, self.microbatch)

    def batches(self) -> Iterator[tuple[int, Samples]]:
        """Yields (first row, microbatch)."""
        for start in range(0, len(self), self.microbatch):
            yield start, self.rows(start, start + self.microbatch)

    def is_per_sample(self, value: Any) -> bool:
        """Whether an extra argument has one row per sample."""
        return isinstance(value, Tensor | list | tuple) and len(value) == len(self) and getattr(value, "ndim", 1) > 0


class CountedDenoiser:
    """A denoiser that counts network calls, one per sample and call, and hides half precision from the fit.

    The fit's states are float32; a model in half precision gets them in its own dtype.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self.model = model
        self.dtype = dtype
        self.calls = 0

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        """Returns the denoised state in x's dtype."""
        self.calls += len(x)
        return self.uncounted(x, sigma, **extra_args)

    def uncounted(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        """Returns the same without counting."""
        return self.model(x.to(self.dtype), sigma, **extra_args).to(x.dtype)
