"""What a fit minimises: how far the student's states are from the teacher's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..data.teacher import Reference

__all__ = ["LOSSES", "Objective", "PointLoss", "TrajectoryLoss", "make_objective"]

LOSSES = ("l2", "l1", "huber", "trajectory")


class Objective(Protocol):
    """A sum over residual entries of rho(r); Gauss-Newton sees it as least squares with weights rho'(r) / 2r."""

    needs_trajectory: bool

    def residual(self, states: list[Tensor], levels: Tensor, reference: Reference) -> Tensor:
        """Returns the residual of a run, shape [B, M]; `states` are x_1 ... x_N [B, ...], `levels` [N] theirs."""
        ...

    def rho(self, residual: Tensor) -> Tensor:
        """Returns the loss of each sample, shape [B]."""
        ...

    def weight(self, residual: Tensor) -> Tensor:
        """Returns the least-squares weight of each entry, broadcast to [B, M]."""
        ...


def make_objective(loss: str | Callable[[Tensor], Tensor]) -> Objective:
    """Returns the objective of a name, or of a feature function x [B, ...] -> features [B, ...]."""
    if callable(loss):
        return PointLoss(features=loss)
    return TrajectoryLoss() if loss == "trajectory" else PointLoss(loss)


@dataclass(frozen=True)
class PointLoss:
    """The end state alone: l2 (mean square), l1 (mean absolute) or huber (half square below delta, linear above).

    With `features` it is the distance in a feature space (LPIPS, Inception): the function decodes states [B, ...] and
    looks at them. Gauss-Newton only evaluates it; the gradient way needs its derivative.
    """

    kind: str = "l2"
    delta: float = 0.1
    features: Callable[[Tensor], Tensor] | None = None
    needs_trajectory = False

    def __post_init__(self) -> None:
        if self.kind not in ("l2", "l1", "huber"):
            raise ValueError(f"loss must be one of {', '.join(LOSSES)} or a feature function, got {self.kind!r}")

    def residual(self, states: list[Tensor], levels: Tensor, reference: Reference) -> Tensor:  # noqa: D102
        end, goal = states[-1], reference.end
        if self.features is not None:
            end, goal = self.features(end), self.features(goal)
        return (end - goal).flatten(1)

    def rho(self, residual: Tensor) -> Tensor:  # noqa: D102
        size = residual.abs()
        if self.kind == "l2":
            return size.square().mean(1)
        if self.kind == "l1":
            return size.mean(1)
        return torch.where(size < self.delta, size.square() / 2, self.delta * (size - self.delta / 2)).mean(1)

    def weight(self, residual: Tensor) -> Tensor:  # noqa: D102
        if self.kind == "l2":
            return torch.ones_like(residual[:1, :1])
        size = residual.abs()
        # l1's weight has no bound at 0: rounded off where the entry no longer matters beside the others.
        return 0.5 / size.clamp(min=1e-3 * float(size.mean())) if self.kind == "l1" else _huber(size, self.delta)


def _huber(size: Tensor, delta: float) -> Tensor:
    return 0.5 * (delta / size.clamp(min=delta))


@dataclass(frozen=True)
class TrajectoryLoss:
    """DS-Solver's loss (arXiv 2505.21114): mean squares at all of the student's times, and 1000 x Huber at the end.

    The teacher's states are interpolated to the student's levels. Huber's delta is 0.001, as in the paper's code.
    """

    end_factor: float = 1000.0
    delta: float = 1e-3
    needs_trajectory = True

    def residual(self, states: list[Tensor], levels: Tensor, reference: Reference) -> Tensor:  # noqa: D102
        inner = [x - reference.at(level) for x, level in zip(states[:-1], levels[:-1], strict=True)]
        return torch.stack([*inner, states[-1] - reference.end], dim=1).flatten(2)

    def rho(self, residual: Tensor) -> Tensor:  # noqa: D102
        size = residual[:, -1].abs()
        huber = torch.where(size < self.delta, size.square() / 2, self.delta * (size - self.delta / 2))
        return residual.square().mean(2).sum(1) + self.end_factor * huber.mean(1)

    def weight(self, residual: Tensor) -> Tensor:  # noqa: D102
        weight = torch.ones_like(residual)
        weight[:, -1] += self.end_factor * _huber(residual[:, -1].abs(), self.delta)
        return weight
