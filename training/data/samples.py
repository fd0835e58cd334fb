"""Starting states with their conditioning, cut into microbatches."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from .batch_limit import BatchLimit, Memory

__all__ = ["CountedDenoiser", "Samples", "each_microbatch"]

_Result = TypeVar("_Result")
_MOST_UNCHECKED = 1000  # calls
_OUTLIER_FACTOR = 30  # a state this many times larger than noise plus picture is on no sensible trajectory


@dataclass(frozen=True, eq=False)
class Samples:
    """Starting states x [S, ...] at the first noise level, float32 or wider, and the model's keyword arguments.

    Tensors with S rows and lists of length S are per sample.

    Args:
        x: The states; on the CPU where they are large.
        extra_args: The arguments.
        microbatch: Samples per model call; MEASURED: the fastest number.
        device: Where the model runs; None: where x is.
        groups: A key per sample; those of different keys share no call. Empty: all may.
    """

    x: Tensor
    extra_args: Mapping[str, Any]
    microbatch: int
    device: torch.device | None = None
    groups: Sequence[Hashable] = ()

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, start: int, stop: int) -> Samples:
        """Samples start ... stop - 1."""
        arguments = {
            key: value[start:stop] if self.is_per_sample(value) else value for key, value in self.extra_args.items()
        }
        return replace(self, x=self.x[start:stop], extra_args=arguments, groups=self.groups[start:stop])

    def pick(self, rows: Tensor) -> Samples:
        """The samples with the given row numbers."""
        picked = {
            key: value[rows.to(value.device)] if isinstance(value, Tensor) else [value[i] for i in rows.tolist()]
            for key, value in self.extra_args.items()
            if self.is_per_sample(value)
        }
        groups = [self.groups[i] for i in rows.tolist()] if self.groups else ()
        return replace(self, x=self.x[rows.to(self.x.device)], extra_args={**self.extra_args, **picked}, groups=groups)

    def grouped(self, groups: Sequence[Hashable], ends: Sequence[int] = ()) -> Samples:
        """The samples with these groups; in each part, up to one of the `ends`, those of a group follow each other."""
        samples = replace(self, groups=groups)
        if len(set(groups)) < 2:
            return samples
        first = {key: i for i, key in reversed([*enumerate(groups)])}
        order = sorted(range(len(self)), key=lambda i: (bisect_right(ends, i), first[groups[i]]))
        return samples.pick(torch.tensor(order))

    def loaded(self) -> Samples:
        """The same with its states on the model's device: a microbatch, before it runs."""
        return self if self.device is None else replace(self, x=self.x.to(self.device))

    def is_per_sample(self, value: Any) -> bool:
        """Whether an extra argument has one row per sample."""
        return isinstance(value, Tensor | list | tuple) and getattr(value, "ndim", 1) > 0 and len(value) == len(self)


class CountedDenoiser:
    """A denoiser that counts network calls, one per sample and call, and hides half precision from the fit.

    The fit's states are float32; a model in half precision gets them in its own dtype. `batch_limit` chooses the
    samples per call. Nothing waits for the device in a call, unless it is timed: results that are not finite are
    noticed by `check`. `highest` is the model's highest noise level.
    """

    def __init__(
        self,
        model: Any,
        dtype: torch.dtype,
        log: Callable[[str], None] = lambda line: None,
        *,
        memory: Memory | None = None,
        on_call: Callable[[int], object] = lambda count: None,
        highest: float = math.inf,
    ) -> None:
        self.model = model
        self.dtype = dtype
        self.calls = 0
        self.batch_limit = BatchLimit(log, memory)
        self.on_call, self.highest = on_call, highest
        self._unchecked: list[tuple[int, Tensor]] = []

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        """The denoised state in x's dtype; any other result is refused."""
        self.calls += len(x)
        return self.uncounted(x, sigma, **extra_args)

    def uncounted(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        """The same without counting."""
        is_timing = self.batch_limit.is_timing
        started = _wait_for(x) if is_timing else 0.0
        denoised = self.model(x.to(self.dtype), sigma, **extra_args)
        if not isinstance(denoised, Tensor) or denoised.shape != x.shape:
            got = f"shape {list(denoised.shape)}" if isinstance(denoised, Tensor) else type(denoised).__name__
            raise TypeError(
                f"the model must return denoised states in the shape of x, {list(x.shape)}, got {got}: wrap it in "
                "k-diffusion's interface, model(x, sigma) -> denoised"
            )
        if is_timing:
            self.batch_limit.time(x, _wait_for(denoised) - started)
        self.on_call(len(x))
        denoised = denoised.to(x.dtype)
        self._unchecked.append((self.calls, _broken(x.detach(), sigma.detach(), denoised.detach(), self.highest)))
        if len(self._unchecked) > _MOST_UNCHECKED:
            self.check()
        return denoised

    def each(self, samples: Samples, work: Callable[[int, int], _Result]) -> Iterator[_Result]:
        """Yields `work(start, stop)` for microbatches of samples, and checks the calls of each; see `BatchLimit`."""

        def checked(start: int, stop: int) -> _Result:
            self._unchecked.clear()  # of work that was given up
            try:
                result = work(start, stop)
            except ValueError:
                self.check()  # a call may be the cause of what `work` refuses
                raise
            self.check()
            return result

        return self.batch_limit.each(len(samples), samples.microbatch, checked, samples.groups)

    def check(self) -> None:
        """Waits for the calls since the last check.

        Raises:
            ValueError: A result is not finite, for a state of normal size at a level that the model has: a bad table
                just gets an infinite loss.
        """
        calls, self._unchecked = self._unchecked, []
        if not calls:
            return
        facts = torch.stack([facts for _, facts in calls]).cpu()
        for (number, _), (count, total, level, size) in zip(calls, facts.tolist(), strict=True):
            if count > 0:
                raise ValueError(
                    f"network call {number} (sigma {level:.4g}) returned {count:.0f} non-finite values out of "
                    f"{total:.0f} for a state of normal magnitude ({size:.3g}): run the model in bfloat16 or float32 "
                    "(ComfyUI options --bf16-unet, --fp32-unet) instead of float16, or download the checkpoint again"
                )


def each_microbatch(model: Any, samples: Samples, work: Callable[[int, int], _Result]) -> Iterator[_Result]:
    """`CountedDenoiser.each`, or the same of a plain denoiser, whose results are not checked."""
    if isinstance(model, CountedDenoiser):
        return model.each(samples, work)
    return BatchLimit().each(len(samples), samples.microbatch, work, samples.groups)


def _wait_for(x: Tensor) -> float:
    """The time at which a device has computed a tensor."""
    x.flatten()[:1].cpu()
    return time.perf_counter()


def _broken(x: Tensor, sigma: Tensor, denoised: Tensor, highest: float) -> Tensor:
    """Numbers of a call, shape [4], on its device: non-finite values in all, values, level, largest size of a state.

    The first is 0 unless a state of normal size at a level below about `highest` led to some.
    """
    sizes, level = x.float().flatten(1).square().mean(1).sqrt(), sigma.float().max()
    infinite = ~torch.isfinite(denoised).flatten(1)
    broken = infinite.any(1) & (sizes <= _OUTLIER_FACTOR * (1 + level**2).sqrt()) & (level < 1.001 * highest)
    count = infinite.sum() * broken.any()
    size = torch.where(broken, sizes, torch.zeros_like(sizes)).max()
    return torch.stack([count.float(), torch.full_like(level, denoised.numel()), level, size])
