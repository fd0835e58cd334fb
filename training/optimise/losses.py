"""Losses: the distance of the student's states from the teacher's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..data.teacher import Reference

__all__ = ["LOSSES", "Objective", "make_objective"]


class Objective(Protocol):
    """A sum of rho(r) over residual entries; as least squares it has the weights rho'(r) / 2r."""

    needs_trajectory: bool

    def residual(self, states: list[Tensor], levels: Tensor, reference: Reference) -> Tensor:
        """The residual of a run, shape [B, M]; `states` are x_1 ... x_N [B, ...] at the `levels` [N]."""
        ...

    def rho(self, residual: Tensor) -> Tensor:
        """The loss of each sample, shape [B]."""
        ...

    def weight(self, residual: Tensor) -> Tensor:
        """The least-squares weight of each entry, broadcastable to [B, M]."""
        ...


class Pointwise(NamedTuple):
    """A loss of independent numbers: rho(|r|) and the least-squares weight rho'(|r|) / 2|r|."""

    rho: Callable[[Tensor], Tensor]
    weight: Callable[[Tensor], Tensor]


def _huber(size: Tensor, delta: float) -> Tensor:
    return 0.5 * (delta / size.clamp(min=delta))


_DELTA = 0.1  # huber is half a square below it, linear above
POINTWISE: Mapping[str, Pointwise] = {
    "l2": Pointwise(Tensor.square, lambda size: torch.ones_like(size[:1, :1])),
    # l1's weight is unbounded at 0: limited where the entry no longer matters next to the others.
    "l1": Pointwise(lambda size: size, lambda size: 0.5 / size.clamp(min=1e-3 * size.mean())),
    "huber": Pointwise(
        lambda size: torch.where(size < _DELTA, size.square() / 2, _DELTA * (size - _DELTA / 2)),
        lambda size: _huber(size, _DELTA),
    ),
}
LOSSES = (*POINTWISE, "trajectory")


def make_objective(loss: str | Callable[[Tensor], Tensor]) -> Objective:
    """The objective of a name in LOSSES, or of a feature function x [B, ...] -> features [B, ...]."""
    if callable(loss):
        return PointLoss(POINTWISE["l2"], loss)
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)} or a feature function, got {loss!r}")
    return PointLoss(POINTWISE[loss]) if loss in POINTWISE else TrajectoryLoss()


@dataclass(frozen=True)
class PointLoss:
    """The mean of a pointwise loss over the end state, or over features of it (LPIPS, Inception).

    A feature function maps states [B, ...] to features, decoding them if necessary. Levenberg-Marquardt only evaluates
    it; gradient descent needs its derivative.
    """

    loss: Pointwise
    features: Callable[[Tensor], Tensor] | None = None
    needs_trajectory = False
    _goal: list[Any] = field(default_factory=list, compare=False, repr=False)  # the last reference, and its features

    def residual(self, states: list[Tensor], levels: Tensor, reference: Reference) -> Tensor:
        end, goal = states[-1], reference.end
        if self.features is not None:
            if not (self._goal and self._goal[0] is reference):
                self._goal[:] = reference, self._features_of(goal)
                if not bool(self._goal[1].isfinite().all()):
                    raise ValueError("the loss function's features of the teacher's end states are not finite")
            end, goal = self._features_of(end), self._goal[1]
        return (end - goal).flatten(1)

    def _features_of(self, states: Tensor) -> Tensor:
        assert self.features is not None
        features = self.features(states)
        if not isinstance(features, Tensor) or not features.is_floating_point() or features.ndim < 2:
            raise TypeError(
                "the loss function must return floating-point features, a row per state, got "
                + (f"{features.dtype} of shape {list(features.shape)}" if isinstance(features, Tensor) else "no tensor")
            )
        if len(features) != len(states) or not features.numel():
            raise ValueError(f"the loss function must return a row per state, {len(states)}, got {len(features)}")
        return features

    def rho(self, residual: Tensor) -> Tensor:
        return self.loss.rho(residual.abs()).mean(1)

    def weight(self, residual: Tensor) -> Tensor:
        return self.loss.weight(residual.abs())


@dataclass(frozen=True)
class TrajectoryLoss:
    """DS-Solver's loss (arXiv 2505.21114): mean squares at all of the student's times, and 1000 x Huber at the end.

    The teacher's states are interpolated to the student's levels. Huber's delta is 0.001, as in the paper's code.
    """

    end_factor: float = 1000.0
    delta: float = 1e-3
    needs_trajectory = True

    def residual(self, states: list[Tensor], levels: Tensor, reference: Reference) -> Tensor:
        inner = [x - reference.at(level) for x, level in zip(states[:-1], levels[:-1], strict=True)]
        return torch.stack([*inner, states[-1] - reference.end], dim=1).flatten(2)

    def rho(self, residual: Tensor) -> Tensor:
        size = residual[:, -1].abs()
        huber = torch.where(size < self.delta, size.square() / 2, self.delta * (size - self.delta / 2))
        return residual.square().mean(2).sum(1) + self.end_factor * huber.mean(1)

    def weight(self, residual: Tensor) -> Tensor:
        weight = torch.ones_like(residual)
        weight[:, -1] += self.end_factor * _huber(residual[:, -1].abs(), self.delta)
        return weight
