"""A fit as data: settings, starts, noise schedule, card entries. What does not go together is refused here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..samplers.files.card import VERSION, Card, StepCard
from ..samplers.schedules import Noise, check_noise
from .data.samples import Samples
from .settings import FitSettings
from .store.content import content_hash

__all__ = ["FitJob"]

_FEWEST_NUMBERS = 64  # whose root mean square is near their standard deviation
_CARD = {
    "architecture": "unknown",
    "checkpoint": "unknown",
    "package_version": VERSION,
    "source": "fitted with Learned Solvers",
}


@dataclass(frozen=True, eq=False)
class FitJob:
    """Everything about a fit but the model.

    Args:
        settings: What is fitted, and how; kept with nothing left open.
        samples: Starts at the model's highest noise level, and what the model takes with them; the last ones judge.
        noise: The model's noise schedule.
        card: Entries of the card, added to the usual ones.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: They do not go together; the message names the rule and the remedy.
    """

    settings: FitSettings
    samples: Samples
    noise: Noise
    card: Mapping[str, Any]

    def __post_init__(self) -> None:
        check_noise(self.noise)
        _check_starts(self.samples.x, self.noise)
        _check_rows(self.samples)
        settings = self.settings.resolved(len(self.samples), self.noise)
        object.__setattr__(self, "settings", settings)
        object.__setattr__(self, "card", {**_CARD, **self.card})
        _check_card(settings.family, self.noise, self.card)

    @property
    def held_out(self) -> int:
        """Number of samples that judge."""
        return self.settings.held_out or 0

    @property
    def history(self) -> int:
        """Newest entries that a step may use."""
        return self.settings.history or 0

    @property
    def fitted(self) -> int:
        """Number of samples to fit to."""
        return len(self.samples) - self.held_out

    def on(self, device: torch.device) -> FitJob:
        """The same job with its starts on a device."""
        return replace(self, samples=replace(self.samples, x=self.samples.x.to(device)))

    def content_hash(self) -> str:
        """What tells the job from others: the same in every process, whatever microbatch and card.

        Functions count by their names, objects of other unknown kinds by their types.
        """
        return content_hash(
            self.settings, self.samples.x, self.samples.extra_args, self.noise, VERSION,
            describe=lambda other: getattr(other, "__qualname__", type(other).__qualname__),
        )  # fmt: skip


def _check_starts(x: Tensor, noise: Noise) -> None:
    """Refuses, of VP and EDM models, starts of another size than noise at the highest level, such as unit noise, too.

    A flow model's noise may have a scale of its own, and few numbers have no size.
    """
    if not x.is_floating_point() or x.ndim < 2 or not bool(torch.isfinite(x.float()).all()):
        raise ValueError(
            f"x must hold finite floating-point numbers, a start per row, got {x.dtype} of shape {list(x.shape)}: draw "
            "it anew"
        )
    if noise.start_std is None or x.numel() < _FEWEST_NUMBERS:
        return
    size = float(x.cpu().double().square().mean().sqrt())
    if not noise.start_std / 2 < size < 2 * math.sqrt(1 + noise.start_std**2):
        raise ValueError(
            f"x must hold starts at the model's highest noise level, of standard deviation {noise.start_std:.4g}, got "
            f"{size:.4g}: multiply unit noise by the level"
        )


def _check_rows(samples: Samples) -> None:
    for name, value in samples.extra_args.items():
        # A text or a mapping is no list of rows, a number or 0-d tensor has none.
        rows = len(value) if isinstance(value, Tensor | list | tuple) and getattr(value, "ndim", 1) else 1
        if rows not in (1, len(samples)):
            raise ValueError(
                f"extra_args[{name!r}] must have a row per start, {len(samples)}, or one for all, got {rows}: repeat "
                f"its rows, or bind what all starts share to the model, functools.partial(model, {name}=...)"
            )


def _check_card(family: str, noise: Noise, card: Mapping[str, Any]) -> None:
    """Refuses, before hours of fitting, entries that no card can have."""
    free = [entry.name for entry in fields(Card) if entry.name not in ("family", "prediction", "steps")]
    if unknown := [name for name in card if name not in free]:
        raise ValueError(f"card has no entry {', '.join(map(str, unknown))}: choose from {', '.join(free)}")
    Card(family, noise.kind, steps={1: StepCard()}, **card)
