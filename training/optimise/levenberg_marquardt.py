"""Levenberg-Marquardt with few Jacobians, on a growing number of samples: fitting by forward passes.

No backpropagation and no stored activations. A Jacobian by differences costs as much as 6 to 20 runs of a sample, so
it is corrected after every step by Broyden's update, and new samples, each with its Jacobian, are worth more
than new Jacobians of old ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import index

import torch
from torch import Tensor

from ..spaces.base import Space, is_valid
from ..starts.path import NO_EFFECT
from .problem import Linearisation, Problem, jacobian_calls

__all__ = ["FitPoint", "LevenbergMarquardt", "Progress", "difference_step"]

Progress = Callable[[str], None]
_PROBE = 4  # samples on which rounding noise is measured, with three runs each
_LEAST_DIFFERENCE, _LARGEST_DIFFERENCE = 2.0**-10, 2.0**-3


@dataclass(frozen=True)
class FitPoint:
    """A point of a fit, all that resuming needs.

    Args:
        theta: Parameters, shape [P].
        at: Residuals [S, K], losses [S] and Jacobian [S, P, K] at `theta`, of the first S samples.
        judged: Of every addition, the mean losses of the new and of the old samples before it, shape [additions, 2].
        damping: Of the next step.
        difference: Size of the finite differences.
        calls: Network calls so far, one per sample and call.
        stage: 0: the first samples, 1: more samples, 2: all samples, 3: done.
        evaluations: Evaluations since the last Jacobian, two for each that was taken and one for each that was not.
        reference: Loss at the last Jacobian of all samples so far.
    """

    theta: Tensor
    at: Linearisation
    judged: Tensor
    damping: float
    difference: float
    calls: int
    stage: int = 0
    evaluations: int = 0
    reference: float = math.inf

    def record(self) -> dict[str, Tensor]:
        """The point as tensors, for `of`."""
        numbers = [self.damping, self.difference, self.reference, self.calls, self.stage, self.evaluations]
        tensors = {"theta": self.theta, "judged": self.judged, **self.at._asdict()}
        return {**tensors, "numbers": torch.tensor(numbers, dtype=torch.float64)}

    @classmethod
    def of(cls, record: dict[str, Tensor]) -> FitPoint:
        """The point stored in a record."""
        damping, difference, reference, *counts = record["numbers"].tolist()
        at = Linearisation(*(record[name] for name in Linearisation._fields))
        calls, stage, evaluations = map(int, counts)
        return cls(record["theta"], at, record["judged"], damping, difference, calls, stage, evaluations, reference)


@dataclass(frozen=True)
class LevenbergMarquardt:
    """Settings of a fit.

    Args:
        samples: Samples to fit to, at most.
        first: Samples of the first Jacobians.
        batch: Samples that are added at a time. Each is evaluated before it is fitted to; the fit adds no more when
            the new ones are as close to the teacher as the old ones.
        work: Network calls of the fit, at most: this many Jacobians of all samples.
        first_part: Part of the work that the first samples may take while there are more.
        steps: Damped steps per Jacobian, except after an addition, which one follows. A step that does not lower the
            loss counts half.
        gain: A step that lowers the loss by less than this fraction is the last with a Jacobian.
        enough: Another Jacobian of the same samples follows if the last one lowered the loss below this fraction of it.
        outlier: The influence of a sample whose error exceeds the median this many times is bounded.
        similar: New samples are as close as the old ones if their error is at most this fraction larger; below 0, all
            samples are used.
        damping: First damping, relative to the diagonal of J^T J.
        difference: Size of the differences; None: from the model's rounding noise, which is measured first.
    """

    samples: int = 24
    first: int = 8
    batch: int = 4
    work: float = 2.1
    first_part: float = 0.75
    steps: int = 3
    gain: float = 0.05
    enough: float = 0.8
    outlier: float = 3.0
    similar: float = 0.05
    damping: float = 1e-2
    difference: float | None = None

    def __post_init__(self) -> None:
        for name in ("samples", "first", "batch", "steps"):
            if index(getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("work", "outlier", "damping", "difference"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value}")

    def blocks(self) -> list[int]:
        """Numbers of samples after the first Jacobian and after each addition of at least `batch`."""
        return [*range(min(self.first, self.samples), self.samples - self.batch + 1, self.batch), self.samples]

    def most_calls(self, space: Space) -> int:
        """The largest number of network calls of `fit`, one per sample and call."""
        return max(self.first_calls(space), int(self.work * self.samples * jacobian_calls(space)))

    def first_calls(self, space: Space) -> int:
        """The largest number of network calls of `begin`."""
        first = self.blocks()[0]
        runs = 3 * min(_PROBE, first) + 2 * self.steps * first
        return first * jacobian_calls(space) + space.steps * runs

    def fit(
        self,
        block: Callable[[int, int], Problem],
        theta: Tensor,
        progress: Progress = lambda line: None,
        state: dict[str, Tensor] | None = None,
        save: Callable[[dict[str, Tensor]], None] = lambda record: None,
    ) -> FitPoint:
        """Fits parameters to samples.

        Args:
            block: The problem of the samples from start to stop - 1.
            theta: Start, shape [P], float64.
            progress: Receives a line per stage.
            state: Resumes an interrupted run of the same fit from its last `save`.
            save: Receives, after each step, all that resuming needs.
        """
        now = self.begin(block, theta) if state is None else FitPoint.of(state)
        if state is None:
            save(now.record())
        while now.stage < 3:
            now = self._next(block, now, progress)
            save(now.record())
        return now

    def begin(self, block: Callable[[int, int], Problem], theta: Tensor) -> FitPoint:
        """The fit after the first Jacobian and its steps; see `fit`."""
        first = block(0, self.blocks()[0])
        difference = difference_step(first, theta) if self.difference is None else self.difference
        at = first.linearise(theta, difference)
        _check_effect(at)
        calls = len(at.losses) * jacobian_calls(first.space) + 3 * first.space.steps * min(_PROBE, first.total)
        none = torch.zeros(0, 2, dtype=torch.float64)
        now = FitPoint(theta, at, none, self.damping, difference, calls, reference=_mean(at.losses))
        while (later := self._after_step(block, now)) is not None:
            now = later
        return now

    def _after_step(self, block: Callable[[int, int], Problem], now: FitPoint) -> FitPoint | None:
        """The fit after one more step with the same Jacobian; None if it has had its steps."""
        steps, gain = (1, 0.0) if now.stage == 1 else (self.steps, self.gain)
        space = block(0, self.blocks()[0]).space
        if now.evaluations >= 2 * steps or now.calls + space.steps * len(now.at.losses) > self.most_calls(space):
            return None
        return self._take_step(block, now, gain)

    def _next(self, block: Callable[[int, int], Problem], now: FitPoint, progress: Progress) -> FitPoint:
        """The fit after one more Jacobian or evaluation, or in the next stage."""
        later = self._after_step(block, now)
        if later is not None:
            return later
        counts = self.blocks()
        space, count, loss = block(0, counts[0]).space, len(now.at.losses), _mean(now.at.losses)
        most, jacobian, run = self.most_calls(space), jacobian_calls(space), space.steps * len(now.at.losses)
        part = self.first_part if now.stage == 0 and count < counts[-1] else 1.0
        affordable = int((part * most - run - now.calls) // jacobian)
        renewed = max((end for end in counts if end <= min(count, affordable)), default=0)
        if now.stage != 1 and loss < self.enough * now.reference and (renewed == count or (now.stage == 2 and renewed)):
            progress(f"error {loss**0.5:.4f} on {count} samples, new Jacobian of {renewed}")
            parts = [block(*ends).linearise(now.theta, now.difference) for ends in _parts(counts, renewed)]
            old = Linearisation(*(part[renewed:] for part in now.at))
            at = Linearisation(*(torch.cat(part) for part in zip(*parts, old, strict=True)))
            calls = now.calls + renewed * jacobian
            return replace(now, at=at, calls=calls, evaluations=0, reference=_mean(at.losses))
        if now.stage == 0:
            return replace(now, stage=1, evaluations=2)
        if now.stage == 2:
            progress(f"error {loss**0.5:.4f} on {count} samples")
            return replace(now, stage=3)
        stop = next((end for end in counts if end > count), None)
        if stop is None or self._enough(now) or now.calls + (stop - count) * jacobian + stop * space.steps > most:
            return replace(now, stage=2, evaluations=2 * self.steps - 2, reference=math.inf)
        new = block(count, stop).linearise(now.theta, now.difference)
        progress(f"error {_mean(new.losses) ** 0.5:.4f} on {stop - count} new samples")
        if missing := int((~new.losses.isfinite()).sum()):
            progress(f"{missing} of them end in states that are not finite, and are left out")
        at = Linearisation(*(torch.cat(pair) for pair in zip(now.at, new, strict=True)))
        judged = torch.tensor([[_mean(new.losses), loss]], dtype=torch.float64)
        calls = now.calls + (stop - count) * jacobian
        return replace(now, at=at, calls=calls, judged=torch.cat([now.judged, judged]), evaluations=0)

    def _enough(self, now: FitPoint) -> bool:
        """Whether the newest samples are as close to the teacher as those fitted to."""
        if len(now.judged) < 2 or self.similar < 0:
            return False
        new, old = now.judged[-2:].sum(0).tolist()
        return new <= (1 + self.similar) ** 2 * old

    def _weights(self, losses: Tensor) -> Tensor:
        """Weights of samples: 1, less for outliers, which bounds the influence of each (Huber's loss of the errors)."""
        errors = losses.clamp(min=0).sqrt()
        return (self.outlier * errors.nanmedian() / errors.clamp(min=1e-300)).clamp(max=1.0).nan_to_num(nan=0.0)

    def _take_step(self, block: Callable[[int, int], Problem], now: FitPoint, gain: float) -> FitPoint:
        """The fit after evaluating one damped step, taken if it lowers the loss; Broyden's update of the Jacobian."""
        at, damping, counts = now.at, now.damping, self.blocks()
        weight = self._weights(at.losses)
        root = (weight / weight.sum()).sqrt()
        # A sample whose states are not finite has no weight.
        jacobian, residual = (part.cpu().double().nan_to_num(0.0, 0.0, 0.0) for part in (at.jacobian, at.residual))
        rows = (root[:, None, None] * jacobian).transpose(0, 1).flatten(1)  # [P, S K]
        matrix, gradient = rows @ rows.T, rows @ (root[:, None] * residual).flatten()
        problem = block(0, counts[0])
        for _ in range(40):
            diagonal = matrix.diagonal().clamp(min=1e-12 * float(matrix.diagonal().max()))
            damped = matrix + torch.diag(damping * diagonal)
            step = torch.linalg.solve(damped, -gradient)
            if is_valid(problem.space, now.theta + step):
                break
            damping *= 5
        else:
            return replace(now, evaluations=10**6)
        parts = [block(*ends).residuals(now.theta + step) for ends in _parts(counts, len(at.losses))]
        new = [torch.cat(part) for part in zip(*parts, strict=True)]
        now = replace(now, calls=now.calls + problem.space.steps * len(at.losses))
        before = float((weight * at.losses).nansum() / weight.sum())
        after = float((weight * new[1]).where(weight > 0, torch.zeros(())).sum() / weight.sum())
        predicted = residual + torch.einsum("p,spk->sk", step, jacobian)
        if bool(torch.isfinite(new[0]).all()):
            along = damped @ step / (step @ damped @ step)
            jacobian = jacobian + along[None, :, None] * (new[0].cpu().double() - predicted)[:, None]
        jacobian = jacobian.to(at.jacobian.dtype)
        if not after < before:
            at = Linearisation(at.residual, at.losses, jacobian)
            return replace(now, at=at, damping=damping * 5, evaluations=now.evaluations + 1)
        expected = before - float((weight * predicted.square().sum(1)).sum() / weight.sum())
        ratio = (before - after) / max(expected, 1e-300)
        damping = max(damping / 5, 1e-6) if ratio > 0.5 else damping * (2 if ratio < 0.1 else 1)
        little = after > (1 - gain) * before
        evaluations = 10**6 if little else now.evaluations + 2
        at = Linearisation(new[0], new[1], jacobian)
        return replace(now, theta=now.theta + step, at=at, damping=damping, evaluations=evaluations)


def _parts(counts: list[int], count: int) -> list[tuple[int, int]]:
    """First and last + 1 of the samples of each part of the first `count`."""
    ends = [end for end in counts if end <= count]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _mean(losses: Tensor) -> float:
    return float(losses[losses.isfinite()].mean())


def _check_effect(at: Linearisation) -> None:
    if not bool(torch.isfinite(at.losses).all()):
        raise ValueError(
            "the fit starts with states that are not finite: choose another initial, or remove the starts on which the "
            "network overflows"
        )
    if not bool(at.jacobian.any()):
        raise ValueError(NO_EFFECT)


def difference_step(problem: Problem, theta: Tensor) -> float:
    """The size of finite differences: about the root of the model's relative rounding noise.

    The error of a forward difference of size h is about h (curvature) plus noise / h. The noise is measured as a second
    difference over a small distance: 1e-5 in float32, 1e-2 in bfloat16. Costs three runs of a few samples.
    """
    few = problem.first(_PROBE)
    ends = [few.ends(problem.space.table(theta + k * 1e-3)).cpu().double() for k in (-1, 0, 1)]
    squares = torch.stack([(ends[0] - 2 * ends[1] + ends[2]).square().sum(), ends[1].square().sum()])
    second, size = problem.processes.sums(squares).tolist()
    if not (math.isfinite(second) and math.isfinite(size)):
        return _LEAST_DIFFERENCE  # `_check_effect` refuses the start
    noise = math.sqrt(second / (6 * max(size, 1e-300)))
    # A power of two, which rounding does not change.
    return 2.0 ** round(math.log2(min(max(math.sqrt(noise), _LEAST_DIFFERENCE), _LARGEST_DIFFERENCE)))
