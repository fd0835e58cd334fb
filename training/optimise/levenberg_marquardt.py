"""Levenberg-Marquardt with finite differences: fitting by forward passes, without backpropagation.

No activations are stored: in addition to a forward pass, a Jacobian needs one residual (for losses of the end state,
the size of a state) per parameter and sample of a microbatch.

The problem has 10 to 60 parameters, and normal equations add up over samples, so a handful of damped Gauss-Newton
steps reach what thousands of stochastic gradient steps do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .problem import Normal, Problem

__all__ = ["COARSE_DIFFERENCE", "LevenbergMarquardt", "Progress", "difference_step"]

Progress = Callable[[str], None]
COARSE_DIFFERENCE = 0.02  # larger ones, as in half precision, are two-sided: curvature would dominate the error


@dataclass(frozen=True)
class _State:
    """The state of a fit: `theta` is the newest point, `best` the result so far.

    `best` is the point found on the whole core with the lowest held-out loss. If there is none yet, or none better than
    the start, it is the best of the start and the points found on parts of the core.
    """

    theta: Tensor
    best: Tensor
    damping: float
    difference: float
    best_loss: float
    iteration: int
    stale: int
    done: bool
    count: int  # samples of the next iteration
    seen: int  # samples of the last one
    loss: float
    held_out_loss: float
    first_loss: float  # held-out loss of the start
    whole: bool = False  # whether `best` was found on the whole core

    def record(self) -> dict[str, Tensor]:
        """The state as tensors, for `of`."""
        numbers = [float(getattr(self, name)) for name in _NUMBERS]
        return {"theta": self.theta, "best": self.best, "numbers": torch.tensor(numbers, dtype=torch.float64)}

    @classmethod
    def of(cls, record: dict[str, Tensor]) -> _State:
        """The state stored in a record."""
        numbers = dict(zip(_NUMBERS, record["numbers"].tolist(), strict=True))
        counts = {name: int(numbers.pop(name)) for name in ("iteration", "stale", "count", "seen")}
        flags = {name: bool(numbers.pop(name)) for name in ("done", "whole")}
        return cls(record["theta"], record["best"], **counts, **flags, **numbers)


@dataclass(frozen=True)
class _Refined:
    """The state of the iterations on all samples: parameters, the loss of each sample [S], damping and progress."""

    theta: Tensor
    losses: Tensor
    damping: float
    iteration: int = 0
    done: bool = False

    def record(self) -> dict[str, Tensor]:
        """The state as tensors, for `of`; their names differ from those of a `_State`."""
        numbers = torch.tensor([self.damping, self.iteration, self.done], dtype=torch.float64)
        return {"refined": self.theta, "losses": self.losses, "refined numbers": numbers}

    @classmethod
    def of(cls, record: dict[str, Tensor]) -> _Refined:
        """The state stored in a record."""
        damping, iteration, done = record["refined numbers"].tolist()
        return cls(record["refined"], record["losses"], damping, int(iteration), bool(done))


_NUMBERS = [f.name for f in fields(_State) if f.name not in ("theta", "best")]


@dataclass(frozen=True)
class LevenbergMarquardt:
    """Settings of a fit.

    The first iterations, far from the optimum, use few samples; whenever one gains little the number is doubled, up to
    `core`. If there are more samples, iterations on all of them follow, with Jacobians of at most 2 * core samples.

    Args:
        iterations: Limit of the Jacobians on the core, parts of it included; and of those on all samples.
        patience: Stop after this many iterations on the whole core that gained little without a better held-out loss.
        gain: An iteration gains little if it lowers the loss by less than this fraction. While the loss falls faster,
            the held-out loss is ignored: among few samples, a single outlier that switches to another picture dominates
            it.
        tolerance: Stop when an iteration on the whole core, or on all samples, lowers the loss by less than this
            fraction.
        damping: First damping, relative to the diagonal of J^T J.
        tries: Damped steps per Jacobian before giving up.
        difference: Size of the differences; None: from the model's rounding noise, which is measured first.
        first: Samples of the first iterations.
        enough: An iteration on a part of the core that lowers the loss by less than this fraction is the last on it.
        core: Samples of the iterations before those on all samples.
        skip_core: The start is near the optimum: iterate on all samples at once, or on the whole core if that is all.
    """

    iterations: int = 20
    patience: int = 2
    gain: float = 0.1
    tolerance: float = 2e-2
    damping: float = 1e-3
    tries: int = 10
    difference: float | None = None
    first: int = 16
    enough: float = 0.3
    core: int = 64
    skip_core: bool = False

    def __post_init__(self) -> None:
        for name in ("iterations", "tries", "first", "core"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def fit(
        self,
        problem: Problem,
        theta: Tensor,
        held_out: Problem | None = None,
        progress: Progress | None = None,
        state: dict[str, Tensor] | None = None,
        save: Callable[[dict[str, Tensor]], None] | None = None,
    ) -> tuple[Tensor, float]:
        """The best parameters and their loss: on `held_out` if given, else on the problem itself.

        Args:
            problem: Space, samples and objective.
            theta: Start, shape [P], float64.
            held_out: Ranks the iterations on the core.
            progress: Receives a line per iteration.
            state: Resumes an interrupted run of the same fit from its last `save`.
            save: Receives, after each iteration, all that resuming needs.
        """
        core = problem.first(self.core)
        validation = held_out or core
        whole = core.total == problem.total
        now = self._begin(core, validation, theta, self.skip_core and not whole) if state is None else _State.of(state)
        while not now.done and now.iteration < self.iterations:
            now = self._iterate(core, validation, now)
            if progress is not None:
                losses = f"loss {now.loss:.3e} on {now.seen} samples, held out {now.held_out_loss:.3e}"
                progress(f"iteration {now.iteration}: {losses}")
            if save is not None:
                save(now.record())
        if whole:
            return now.best, now.best_loss
        refined = _Refined.of(state) if state is not None and "losses" in state else None
        refined = refined or _Refined(now.best, problem.losses(now.best), self.damping)
        keep = (lambda record: None) if save is None else (lambda record: save({**now.record(), **record}))
        theta = self._on_all(problem, refined, now.difference, progress, keep)
        return theta, (held_out or problem).loss(theta)

    def _on_all(
        self,
        problem: Problem,
        now: _Refined,
        difference: float,
        progress: Progress | None,
        save: Callable[[dict[str, Tensor]], None],
    ) -> Tensor:
        """The parameters after iterations on all samples; each iteration lowers the loss."""
        while not now.done and now.iteration < self.iterations:
            normal = self._normal_of_all(problem, now, difference)
            step, damping = self._descend(problem, now.theta, normal, now.damping)
            theta, losses = step or (now.theta, now.losses)
            before, after = normal.loss, float(losses.mean())
            done = not after < (1 - self.tolerance) * before  # also if neither is finite
            now = _Refined(theta, losses, damping, now.iteration + 1, done)
            if progress is not None:
                progress(f"iteration {now.iteration} on all {problem.total} samples: loss {before:.3e} -> {after:.3e}")
            save(now.record())
        return now.theta

    def _normal_of_all(self, problem: Problem, now: _Refined, difference: float) -> Normal:
        """The normal equations of all samples, estimated from Jacobians of at most 2 * core of them.

        Few samples hold most of the loss, so the hardest are all used. Of the others, sorted by loss, every k-th
        represents its neighbours too (stratified sampling); the next iteration uses another offset.
        """
        order = now.losses.argsort(descending=True, stable=True)
        hard, rest = order[: self.core], order[self.core :]
        stride = -(-len(rest) // self.core)
        matrix = torch.zeros(len(now.theta), len(now.theta), dtype=torch.float64)
        gradient = torch.zeros_like(now.theta)
        for rows, weight in ((hard, len(hard)), (rest[now.iteration % stride :: stride], len(rest))):
            normal = problem.pick(rows).normal(now.theta, difference, difference > COARSE_DIFFERENCE)
            matrix, gradient = matrix + weight * normal.matrix, gradient + weight * normal.gradient
        return Normal(matrix / problem.total, gradient / problem.total, float(now.losses.mean()))

    def _begin(self, problem: Problem, validation: Problem, theta: Tensor, done: bool) -> _State:
        difference = self.difference or difference_step(problem, theta)
        loss = validation.loss(theta)
        count = min(self.core if self.skip_core else self.first, problem.total)
        return _State(theta, theta, self.damping, difference, loss, 0, 0, done, count, 0, loss, loss, loss)

    def _iterate(self, problem: Problem, validation: Problem, now: _State) -> _State:
        """The state after one Jacobian and the first damped step that lowers the loss."""
        part = problem.first(now.count)
        whole = part.total == problem.total
        normal = part.normal(now.theta, now.difference, now.difference > COARSE_DIFFERENCE)
        step, damping = self._descend(part, now.theta, normal, now.damping)
        loss = float(step[1].mean()) if step else normal.loss
        now = replace(now, iteration=now.iteration + 1, seen=part.total, loss=loss, damping=damping)
        if step:
            point = step[0]
            held_out_loss = loss if whole and validation is problem else validation.loss(point)
            # A point found on part of the core could look best on the few held-out samples by luck. It only counts
            # until a point found on the whole core is better than the start.
            better = held_out_loss < (now.first_loss if whole and not now.whole else now.best_loss)
            best, best_loss = (point, held_out_loss) if better else (now.best, now.best_loss)
            stale = 0
            if whole and not better:
                stale = now.stale + int(loss > (1 - self.gain) * normal.loss)
            on_whole = now.whole or (whole and better)
            now = replace(
                now,
                theta=point,
                best=best,
                best_loss=best_loss,
                held_out_loss=held_out_loss,
                stale=stale,
                whole=on_whole,
            )
        little = step is None or loss > (1 - (self.tolerance if whole else self.enough)) * normal.loss
        if whole:
            return replace(now, done=little or now.stale >= self.patience)
        if little:
            return replace(now, count=min(2 * now.count, problem.total), damping=min(now.damping, self.damping))
        return now

    def _descend(
        self, problem: Problem, theta: Tensor, normal: Normal, damping: float
    ) -> tuple[tuple[Tensor, Tensor] | None, float]:
        """The first damped point that lowers the loss, with its samples' losses, and the next damping."""
        for _ in range(self.tries):
            point = theta + _damped(normal.matrix, normal.gradient, damping)
            losses = problem.losses(point)
            if float(losses.mean()) < normal.loss:
                return (point, losses), max(damping / 5, 1e-7)
            damping *= 5
        return None, damping


def _damped(matrix: Tensor, gradient: Tensor, damping: float) -> Tensor:
    """The step of Levenberg and Marquardt; damping is relative to the matrix's diagonal."""
    if not bool(matrix.diagonal().any()):
        raise ValueError(
            "no coefficient changes the model's end states: make the denoiser return the denoised state, not its input "
            "or a constant times it"
        )
    # A parameter without effect (a row times 0) must not make the system singular.
    diagonal = matrix.diagonal().clamp(min=1e-12 * float(matrix.diagonal().max()))
    return torch.linalg.solve(matrix + torch.diag(damping * diagonal), -gradient)


def difference_step(problem: Problem, theta: Tensor) -> float:
    """The size of finite differences: about the root of the model's relative rounding noise, the cube root if coarse.

    The error of a forward difference of size h is about h (curvature) plus noise / h, of a two-sided one h^2 plus
    noise / h. The noise is measured as a second difference over a small distance: 1e-5 in float32, 1e-2 in bfloat16.
    Costs three runs of a few samples.
    """
    probe = problem.first(16).samples
    tables = [problem.space.table(theta + k * 1e-3) for k in (-1, 0, 1)]

    def squares_of(start: int, stop: int) -> Tensor:
        batch = probe.rows(start, stop)
        ends = [problem.run(table, batch).states[-1].cpu().double() for table in tables]
        second = ends[0] - 2 * ends[1] + ends[2]
        return torch.stack([second.square().sum(), ends[1].square().sum()])

    parts = list(problem.model.batch_limit.each(len(probe), probe.microbatch, squares_of))
    squares = torch.stack(parts).sum(0) if parts else torch.zeros(2, dtype=torch.float64)
    of_difference, of_state = problem.processes.sums(squares).tolist()
    if not (math.isfinite(of_difference) and math.isfinite(of_state)):
        raise ValueError(
            "the initial solver's states are not finite: choose another initial solver, or remove the starts on which "
            "the network overflows"
        )
    noise = math.sqrt(of_difference / (6 * max(of_state, 1e-300)))
    forward = math.sqrt(noise)
    return max(forward, 1e-4) if forward <= COARSE_DIFFERENCE else min(noise ** (1 / 3), 0.2)
