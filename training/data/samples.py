"""Starting states with their conditioning, cut into microbatches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .batch_limit import BatchLimit

__all__ = ["CountedDenoiser", "Samples"]

_OUTLIER_FACTOR = 30  # a state this many times larger than noise plus picture is on no sensible trajectory


@dataclass(frozen=True, eq=False)
class Samples:
    """Starting states x [S, ...] at the first noise level, float32 or wider, and the model's keyword arguments.

    Tensors with S rows and lists of length S are per sample. A model call gets `microbatch` samples.
    """

    x: Tensor
    extra_args: Mapping[str, Any]
    microbatch: int

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, start: int, stop: int) -> Samples:
        """Samples start ... stop - 1."""
        arguments = {
            key: value[start:stop] if self.is_per_sample(value) else value for key, value in self.extra_args.items()
        }
        return Samples(self.x[start:stop], arguments, self.microbatch)

    def pick(self, rows: Tensor) -> Samples:
        """The samples with the given row numbers."""
        picked = {
            key: value[rows.to(value.device)] if isinstance(value, Tensor) else [value[i] for i in rows.tolist()]
            for key, value in self.extra_args.items()
            if self.is_per_sample(value)
        }
        return Samples(self.x[rows.to(self.x.device)], {**self.extra_args, **picked}, self.microbatch)

    def batches(self) -> Iterator[tuple[int, Samples]]:
        """Yields (first row, microbatch)."""
        for start in range(0, len(self), self.microbatch):
            yield start, self.rows(start, start + self.microbatch)

    def is_per_sample(self, value: Any) -> bool:
        """Whether an extra argument has one row per sample."""
        return isinstance(value, Tensor | list | tuple) and getattr(value, "ndim", 1) > 0 and len(value) == len(self)


class CountedDenoiser:
    """A denoiser that counts network calls, one per sample and call, and hides half precision from the fit.

    The fit's states are float32; a model in half precision gets them in its own dtype. `batch_limit` bounds the
    samples per call.
    """

    def __init__(self, model: Any, dtype: torch.dtype, log: Callable[[str], None] = lambda line: None) -> None:
        self.model = model
        self.dtype = dtype
        self.calls = 0
        self.batch_limit = BatchLimit(log)

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        """The denoised state in x's dtype; any other result is refused, and so are non-finite numbers."""
        self.calls += len(x)
        return self.uncounted(x, sigma, **extra_args)

    def uncounted(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        """The same without counting."""
        denoised = self.model(x.to(self.dtype), sigma, **extra_args)
        if not isinstance(denoised, Tensor) or denoised.shape != x.shape:
            got = f"shape {list(denoised.shape)}" if isinstance(denoised, Tensor) else type(denoised).__name__
            raise TypeError(
                f"the model must return denoised states in the shape of x, {list(x.shape)}, got {got}: wrap it in "
                "k-diffusion's interface, model(x, sigma) -> denoised"
            )
        denoised = denoised.to(x.dtype)
        if not bool(torch.isfinite(denoised).all()):
            self._refuse_unless_far_out(x.detach(), sigma.detach(), denoised.detach())
        return denoised

    def _refuse_unless_far_out(self, x: Tensor, sigma: Tensor, denoised: Tensor) -> None:
        """Raises ValueError unless a bad table led to this state: then the table just gets an infinite loss."""
        sizes, level = x.cpu().double().flatten(1).square().mean(1).sqrt(), sigma.cpu().double().max().item()
        broken = (~torch.isfinite(denoised.cpu())).flatten(1).any(1) & (
            sizes <= _OUTLIER_FACTOR * math.sqrt(1 + level**2)
        )
        if not bool(broken.any()):
            return
        count, size = int((~torch.isfinite(denoised)).sum()), float(sizes[broken][0])
        raise ValueError(
            f"network call {self.calls} (sigma {level:.4g}) returned {count} non-finite values out of "
            f"{denoised.numel()} for a state of normal magnitude ({size:.3g}): run the model in bfloat16 or float32 "
            "(ComfyUI options --bf16-unet, --fp32-unet) instead of float16, or download the checkpoint again"
        )
