"""Checks that a model is a function of state and noise level: a fit calls it out of order."""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import Tensor

from ...samplers.loop import Denoiser
from ...samplers.schedules import Noise
from .samples import CountedDenoiser, Samples

__all__ = ["PROBE_CALLS", "check_is_function"]

PROBE_CALLS = 16
_STEPS = 4
_OFFSET = 0.01  # part of the state's size, as in a fit's differences
_FLOOR = 1e-4  # relative difference of two equal calls that is no rounding
_TOLERANCE = 0.02  # half precision in other kernels, which the host chooses per call by free memory


def check_is_function(model: Denoiser, samples: Samples, noise: Noise, log: Callable[[str], None]) -> float:
    """Refuses a model whose result depends on earlier calls; logs that of one that draws random numbers.

    Makes `PROBE_CALLS` calls of one or two samples: a few steps of one, a state close to the last, steps of another,
    then states of the first again after other calls than before. Two equal sequences of calls show what is random.

    Returns:
        Seconds per call and sample, without the first call.

    Raises:
        ValueError: The model remembers earlier calls, or returns values that are not finite.
    """
    checked = CountedDenoiser(model, samples.x.dtype)
    first, other = samples.rows(0, 1).loaded(), samples.rows(len(samples) - 1, len(samples)).loaded()
    levels, began = noise.teacher_grid(_STEPS), list[float]()

    def call(x: Tensor, i: int, of: Samples = first) -> Tensor:
        denoised = checked(x, levels[i].to(x).expand(len(x)), **of.extra_args)
        if not began:
            float(denoised.flatten()[0])  # waits for the device
            began.append(time.perf_counter())
        return denoised

    def follow(of: Samples) -> tuple[list[Tensor], list[Tensor]]:
        states, results = [of.x], []
        for i in range(_STEPS):
            x = states[-1]
            results.append(call(x, i, of))
            states.append(x + float((levels[i + 1] - levels[i]) / levels[i]) * (x - results[-1]))
        return states, results

    states, results = follow(first)
    close = states[-2] + _OFFSET * states[-2].square().mean().sqrt()
    results.append(call(close, _STEPS - 1))
    states = [*states[:-1], close]
    follow(other)
    order = [2, 4, 0, 1, 0, 1, 1]
    again = [call(states[i], min(i, _STEPS - 1)) for i in order]
    checked.check()
    floor = _difference(again[5], again[3])  # after the same calls
    seconds = (time.perf_counter() - began[0]) / (PROBE_CALLS - 1)
    change = max(_difference(repeated, results[i]) for i, repeated in zip(order, again, strict=True))
    if not change <= max(_TOLERANCE, 10 * floor):
        raise ValueError(
            f"this model remembers earlier calls: after others, the same state gives a result that differs by "
            f"{change:.0%}. A fit cannot use it. Remove what caches or accumulates (EasyCache, TeaCache, APG momentum, "
            "scheduled LoRAs)"
        )
    if floor > _FLOOR:
        log(
            f"two equal calls of this model differ by {floor:.1%} (random patches, such as token merging): the fit is "
            "less accurate and takes more calls"
        )
    return seconds


def _difference(one: Tensor, other: Tensor) -> float:
    """The relative root mean square difference."""
    one, other = one.cpu().double(), other.cpu().double()
    return float((one - other).square().mean().sqrt() / other.square().mean().sqrt().clamp(min=1e-12))
