"""Levenberg-Marquardt with forward differences: fitting without backpropagation.

Nothing of the activations is kept: beside what a forward pass takes, a Jacobian needs one residual (a state, for the
losses of end states) per parameter and sample of a microbatch.

The problem has 10 to 60 parameters and cheap-to-add normal equations, so a handful of damped Gauss-Newton steps reach
what thousands of stochastic gradient steps do. Only the model's forward pass is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .problem import Normal, Problem

__all__ = ["COARSE", "GaussNewton", "Progress", "difference_step"]

Progress = Callable[[str], None]
COARSE = 0.02  # larger differences are two-sided: the curvature would rule them, as in half precision


@dataclass(frozen=True)
class _State:
    """Where a fit stands: `theta` the newest point, `best` the result so far.

    That is the point on the whole core with the lowest held-out loss; before there is one, or where it is worse than
    the start, the best of the start and the points on parts.
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
    judged: float
    first_loss: float  # the start's, held out
    whole: bool = False  # whether `best` was found on the whole core

    def record(self) -> dict[str, Tensor]:
        """Returns tensors that `of` understands."""
        numbers = [float(getattr(self, name)) for name in _NUMBERS]
        return {"theta": self.theta, "best": self.best, "numbers": torch.tensor(numbers, dtype=torch.float64)}

    @classmethod
    def of(cls, record: dict[str, Tensor]) -> _State:
        """Returns the state of a record."""
        numbers = dict(zip(_NUMBERS, record["numbers"].tolist(), strict=True))
        whole = {name: int(numbers.pop(name)) for name in ("iteration", "stale", "count", "seen")}
        flags = {name: bool(numbers.pop(name)) for name in ("done", "whole")}
        return cls(record["theta"], record["best"], **whole, **flags, **numbers)


@dataclass(frozen=True)
class _Refined:
    """Where the iterations on all samples stand: parameters, each sample's loss [S], and what goes on from there."""

    theta: Tensor
    losses: Tensor
    damping: float
    iteration: int = 0
    done: bool = False

    def record(self) -> dict[str, Tensor]:
        """Returns tensors that `of` understands, beside those of a `_State`."""
        numbers = torch.tensor([self.damping, self.iteration, self.done], dtype=torch.float64)
        return {"refined": self.theta, "losses": self.losses, "refined numbers": numbers}

    @classmethod
    def of(cls, record: dict[str, Tensor]) -> _Refined:
        """Returns the state of a record."""
        damping, iteration, done = record["refined numbers"].tolist()
        return cls(record["refined"], record["losses"], damping, int(iteration), bool(done))


_NUMBERS = [f.name for f in fields(_State) if f.name not in ("theta", "best")]


@dataclass(frozen=True)
class GaussNewton:
    """Settings of a fit.

    The first iterations, far from the optimum, see few samples; whenever one gains little their number is doubled, up
    to `core`. Where there are more samples, iterations on all of them follow, which take Jacobians of at most 2 * core.

    Args:
        iterations: At most so many Jacobians, those of parts of the core included; and as many on all samples.
        patience: Stop after so many iterations on the whole core without a better held-out loss that gained little.
        gain: An iteration gains little if it lowers the loss by less than this part. While it falls faster, the few
            held-out samples are no judge yet: one that tips over to another picture rules them.
        tolerance: Stop when an iteration on the whole core, or on all samples, lowers the loss by less than this part.
        damping: First damping, relative to the diagonal of J^T J.
        tries: Damped steps tried per Jacobian before giving up.
        difference: Size of the differences; None measures the model's rounding noise first.
        first: Samples that the first iterations see.
        enough: An iteration on a part of the core that lowers the loss by less than this part is the last on it.
        core: Samples that are iterated on at first.
        near: What is fitted is near its optimum: begin on all samples, or on the whole core where it is all there is.
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
    near: bool = False

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
        """Returns the best parameters and their loss: on `held_out` where given, else on the problem itself.

        Args:
            problem: What is fitted.
            theta: Start, shape [P], float64.
            held_out: Judges the iterations on the core.
            progress: Told about each iteration.
            state: What `save` was given by an interrupted run of the same fit: goes on from there.
            save: Called after each iteration with all that a continuation needs.
        """
        core = problem.first(self.core)
        judge = held_out or core
        whole = core.total == problem.total
        now = self._begin(core, judge, theta, self.near and not whole) if state is None else _State.of(state)
        while not now.done and now.iteration < self.iterations:
            now = self._iterate(core, judge, now)
            if progress is not None:
                progress(
                    f"iteration {now.iteration}: loss {now.loss:.3e} on {now.seen} samples, held out {now.judged:.3e}"
                )
            if save is not None:
                save(now.record())
        if whole:
            return now.best, now.best_loss
        refined = _Refined.of(state) if state is not None and "losses" in state else None
        refined = refined or _Refined(now.best, problem.losses(now.best), self.damping)
        keep = (lambda found: None) if save is None else (lambda found: save({**now.record(), **found}))
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
        """Returns the parameters after iterations on all samples, each of which lowers their loss."""
        while not now.done and now.iteration < self.iterations:
            normal = self._normal_of_all(problem, now, difference)
            found, damping = self._descend(problem, now.theta, normal, now.damping)
            theta, losses = found or (now.theta, now.losses)
            before, after = normal.loss, float(losses.mean())
            done = not after < (1 - self.tolerance) * before  # so too where neither is finite
            now = _Refined(theta, losses, damping, now.iteration + 1, done)
            if progress is not None:
                progress(f"iteration {now.iteration} on all {problem.total} samples: loss {before:.3e} -> {after:.3e}")
            save(now.record())
        return now.theta

    def _normal_of_all(self, problem: Problem, now: _Refined, difference: float) -> Normal:
        """Returns the normal equations of all samples, estimated from Jacobians of at most 2 * core of them.

        Few samples hold most of the loss: the hardest are taken as they are, and of the others, in the order of their
        losses, every k-th for its neighbours too (stratified sampling); another one of k in the next iteration.
        """
        order = now.losses.argsort(descending=True, stable=True)
        hard, rest = order[: self.core], order[self.core :]
        stride = -(-len(rest) // self.core)
        matrix = torch.zeros(len(now.theta), len(now.theta), dtype=torch.float64)
        gradient = torch.zeros_like(now.theta)
        for rows, weight in ((hard, len(hard)), (rest[now.iteration % stride :: stride], len(rest))):
            normal = problem.pick(rows).normal(now.theta, difference, difference > COARSE)
            matrix, gradient = matrix + weight * normal.matrix, gradient + weight * normal.gradient
        return Normal(matrix / problem.total, gradient / problem.total, float(now.losses.mean()))

    def _begin(self, problem: Problem, judge: Problem, theta: Tensor, done: bool) -> _State:
        difference = self.difference or difference_step(problem, theta)
        loss = judge.loss(theta)
        count = min(self.core if self.near else self.first, problem.total)
        return _State(theta, theta, self.damping, difference, loss, 0, 0, done, count, 0, loss, loss, loss)

    def _iterate(self, problem: Problem, judge: Problem, now: _State) -> _State:
        """Returns the state after one Jacobian and the first damped step that lowers the loss."""
        part = problem.first(now.count)
        whole = part.total == problem.total
        normal = part.normal(now.theta, now.difference, now.difference > COARSE)
        found, damping = self._descend(part, now.theta, normal, now.damping)
        loss = float(found[1].mean()) if found else normal.loss
        now = replace(now, iteration=now.iteration + 1, seen=part.total, loss=loss, damping=damping)
        if found:
            moved = found[0]
            judged = loss if whole and judge is problem else judge.loss(moved)
            # What a part of the samples led to must not win by the luck of few held-out ones: it only ranks before
            # there is a point on the whole core that is better than the start.
            better = judged < (now.first_loss if whole and not now.whole else now.best_loss)
            best, best_loss = (moved, judged) if better else (now.best, now.best_loss)
            stale = 0
            if whole and not better:
                stale = now.stale + int(loss > (1 - self.gain) * normal.loss)
            on_whole = now.whole or (whole and better)
            now = replace(now, theta=moved, best=best, best_loss=best_loss, judged=judged, stale=stale, whole=on_whole)
        little = found is None or loss > (1 - (self.tolerance if whole else self.enough)) * normal.loss
        if whole:
            return replace(now, done=little or now.stale >= self.patience)
        if little:
            return replace(now, count=min(2 * now.count, problem.total), damping=min(now.damping, self.damping))
        return now

    def _descend(
        self, problem: Problem, theta: Tensor, normal: Normal, damping: float
    ) -> tuple[tuple[Tensor, Tensor] | None, float]:
        """Returns the first damped point that lowers the loss, with its samples' losses, and the next damping."""
        for _ in range(self.tries):
            moved = theta + _damped(normal.matrix, normal.gradient, damping)
            losses = problem.losses(moved)
            if float(losses.mean()) < normal.loss:
                return (moved, losses), max(damping / 5, 1e-7)
            damping *= 5
        return None, damping


def _damped(matrix: Tensor, gradient: Tensor, damping: float) -> Tensor:
    """Returns the step of Levenberg and Marquardt; damping is relative to the matrix's diagonal."""
    if not bool(matrix.diagonal().any()):
        raise ValueError(
            "no coefficient changes where the model's samples end: a denoiser must return the denoised state, not its "
            "input or a constant times it"
        )
    # A parameter without any effect (a row times 0) must not make the system singular.
    diagonal = matrix.diagonal().clamp(min=1e-12 * float(matrix.diagonal().max()))
    return torch.linalg.solve(matrix + torch.diag(damping * diagonal), -gradient)


def difference_step(problem: Problem, theta: Tensor) -> float:
    """Returns a size for differences: about the root of the model's relative rounding noise, the cube root if coarse.

    A forward difference of size h is off by about h (curvature) plus noise / h, a two-sided one by h^2 plus noise / h.
    The noise is what a second difference over a small distance leaves: 1e-5 in float32, 1e-2 in bfloat16. Costs three
    runs of a few samples.
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
            "a fit cannot start where the states are not finite: take another initial, or leave out the starts that "
            "the network overflows on"
        )
    noise = math.sqrt(of_difference / (6 * max(of_state, 1e-300)))
    forward = math.sqrt(noise)
    return max(forward, 1e-4) if forward <= COARSE else min(noise ** (1 / 3), 0.2)
