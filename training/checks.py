"""What `fit_solver` refuses before any call of the model: each check says the rule, the value and the remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ..samplers.files.card import Card, StepCard
from ..samplers.schedules import FlowNoise, Noise, check_noise

__all__ = ["MOST_STEPS", "check_card", "check_kinds", "check_settings", "check_size"]

MOST_STEPS = 100  # calls of a solver: beyond, nothing is left to learn, and a Jacobian takes days
_SIZED = 64  # numbers whose root mean square is near their standard deviation


def check_kinds(
    x: Tensor, noise: Noise, steps: Sequence[int], counts: Mapping[str, object], extra_args: object, card: object
) -> None:
    """Refuses arguments of another kind than `fit_solver` takes."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a tensor of floating-point numbers, a start per row, got {got}")
    check_noise(noise)
    if not (isinstance(steps, Sequence) and all(_is_whole(n) for n in steps)):
        raise TypeError(f"steps must be a list of step counts, such as (4, 6), got {steps!r:.100}")
    for name, value in counts.items():
        if value is not None and not _is_whole(value):
            raise TypeError(f"{name} must be a whole number, got {value!r:.100}")
    if not (
        extra_args is None or (isinstance(extra_args, Mapping) and all(isinstance(key, str) for key in extra_args))
    ):
        raise TypeError(f"extra_args must map the model's argument names to values, got {extra_args!r:.100}")
    if not isinstance(card, Mapping | None):
        raise TypeError(f"card must map entries to texts, got {card!r:.100}")
    if x.ndim < 2 or not bool(torch.isfinite(x.float()).all()):
        raise ValueError(f"x must hold finite numbers, a start per row, got shape {list(x.shape)}: draw it anew")


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_settings(
    x: Tensor, held: int, steps: Sequence[int], history: int, microbatch: int | None, extra_args: Mapping[str, Any]
) -> None:
    """Refuses numbers that do not go together."""
    if not 0 < held < len(x):
        raise ValueError(
            f"held_out must leave samples on both sides of {len(x)}, got {held}: take 2 starts or more, and fewer that "
            "judge"
        )
    if not steps or min(steps) < 1 or max(steps) > MOST_STEPS:
        raise ValueError(f"steps must be counts from 1 to {MOST_STEPS}, got {list(steps)}")
    if history < 1 or (microbatch is not None and microbatch < 1):
        raise ValueError(f"history and microbatch must be at least 1, got {history} and {microbatch}")
    for name, value in extra_args.items():
        # A text or a mapping is no list of rows, a number or 0-d tensor has none.
        rows = len(value) if isinstance(value, Tensor | list | tuple) and getattr(value, "ndim", 1) else 1
        if rows not in (1, len(x)):
            raise ValueError(
                f"extra_args[{name!r}] must have a row per start, {len(x)}, or one for all, got {rows}: repeat its "
                f"rows, or bind what all starts share to the model, functools.partial(model, {name}=...)"
            )


def check_size(x: Tensor, noise: Noise) -> None:
    """Refuses VP and EDM starts of another size than noise at the highest level, such as unit noise.

    A flow model's noise may have a scale of its own, and few numbers have no size.
    """
    if isinstance(noise, FlowNoise) or x.numel() < _SIZED:
        return
    level = float(noise.sigma_max)
    size = float(x.cpu().double().square().mean().sqrt())
    if not level / 2 < size < 2 * math.sqrt(1 + level**2):
        raise ValueError(
            f"x must hold starts at the model's highest noise level, of standard deviation {level:.4g}, got "
            f"{size:.4g}: multiply unit noise by the level"
        )


def check_card(family: str, noise: Noise, facts: Mapping[str, Any]) -> None:
    """Refuses, before hours of fitting, entries that no card can have."""
    free = [entry.name for entry in fields(Card) if entry.name not in ("family", "prediction", "steps")]
    if unknown := [name for name in facts if name not in free]:
        raise ValueError(f"card has no entry {', '.join(map(str, unknown))}: take some of {', '.join(free)}")
    Card(family, noise.kind, steps={1: StepCard()}, **facts)
