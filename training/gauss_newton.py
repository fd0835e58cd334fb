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
from .space import is_valid

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


_NUMBERS = [f.name for f in fields(_State) if f.name not in ("theta", "best")]


@dataclass(frozen=True)
class GaussNewton:
    """Settings of a fit.

    The first iterations, far from the optimum, see few samples; whenever one gains little their number is doubled, up
    to `core`. What samples there are beside these are seen once, in a pass that adds up their normal equations.

    Args:
        iterations: At most so many Jacobians, those of parts of the core included.
        patience: Stop after so many iterations on the whole core without a better held-out loss that gained little.
        gain: An iteration gains little if it lowers the loss by less than this part. While it falls faster, the few
            held-out samples are no judge yet: one that tips over to another picture rules them.
        tolerance: Stop when an iteration on the whole core lowers the loss by less than this part.
        damping: First damping, relative to the diagonal of J^T J.
        tries: Damped steps tried per Jacobian before giving up.
        difference: Size of the differences; None measures the model's rounding noise first.
        first: Samples that the first iterations see.
        enough: An iteration on a part of the core that lowers the loss by less than this part is the last on it.
        core: Samples that are iterated on.
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
            held_out: Judges the iterations.
            progress: Told about each iteration.
            state: What `save` was given by an interrupted run of the same fit: goes on from there.
            save: Called after each iteration, and each block of the pass, with all that a continuation needs.
        """
        core = problem.first(self.core)
        judge = held_out or core
        now = self._begin(core, judge, theta) if state is None else _State.of(state)
        while not now.done and now.iteration < self.iterations:
            now = self._iterate(core, judge, now)
            if progress is not None:
                progress(
                    f"iteration {now.iteration}: loss {now.loss:.3e} on {now.seen} samples, held out {now.judged:.3e}"
                )
            if save is not None:
                save(now.record())
        if core.total == problem.total:
            return now.best, now.best_loss
        keep = None if save is None else lambda passed: save({**now.record(), **passed})
        theta = self._pass(problem, now.best, now.difference, progress, state or {}, keep)
        return theta, (held_out or problem).loss(theta)

    def _pass(
        self,
        problem: Problem,
        theta: Tensor,
        difference: float,
        progress: Progress | None,
        state: dict[str, Tensor],
        save: Callable[[dict[str, Tensor]], None] | None,
    ) -> Tensor:
        """Returns the parameters after a look at every sample, or those before it if they are better on all.

        Near the optimum the Jacobian hardly changes, so each block of samples is linearised once, where the fit stands
        then, and its normal equations are added to those of the blocks before (an extended Kalman filter's update).
        """
        moved, seen = state.get("moved", theta), int(state.get("passed", 0))
        matrix = state.get("matrix", torch.zeros(len(theta), len(theta), dtype=torch.float64))
        gradient = state.get("gradient", torch.zeros_like(theta))
        while seen < problem.total:
            block = problem.between(seen, seen + self.core)
            normal = block.normal(moved, difference, difference > COARSE)
            matrix, gradient = matrix + block.total * normal.matrix, gradient + block.total * normal.gradient
            step = _damped(matrix, gradient, self.damping)
            if is_valid(problem.space, moved + step):
                moved, gradient = moved + step, gradient + matrix @ step
            seen += block.total
            if save is not None:
                passed = torch.tensor(float(seen), dtype=torch.float64)
                save({"moved": moved, "matrix": matrix, "gradient": gradient, "passed": passed})
        before, after = problem.loss(theta), problem.loss(moved)
        if progress is not None:
            progress(f"a pass over {seen} samples: loss {before:.3e} -> {after:.3e}")
        return moved if after < before else theta

    def _begin(self, problem: Problem, judge: Problem, theta: Tensor) -> _State:
        difference = self.difference or difference_step(problem, theta)
        loss = judge.loss(theta)
        count = min(self.first, problem.total)
        return _State(theta, theta, self.damping, difference, loss, 0, 0, False, count, 0, loss, loss, loss)

    def _iterate(self, problem: Problem, judge: Problem, now: _State) -> _State:
        """Returns the state after one Jacobian and the first damped step that lowers the loss."""
        part = problem.first(now.count)
        whole = part.total == problem.total
        normal = part.normal(now.theta, now.difference, now.difference > COARSE)
        moved, loss, damping = self._descend(part, now.theta, normal, now.damping)
        now = replace(now, iteration=now.iteration + 1, seen=part.total, loss=loss, damping=damping)
        if moved is not None:
            judged = loss if whole and judge is problem else judge.loss(moved)
            # What a part of the samples led to must not win by the luck of few held-out ones: it only ranks before
            # there is a point on the whole core that is better than the start.
            better = judged < (now.first_loss if whole and not now.whole else now.best_loss)
            best, best_loss = (moved, judged) if better else (now.best, now.best_loss)
            stale = 0
            if whole and not better:
                stale = now.stale + int(loss > (1 - self.gain) * normal.loss)
            found = now.whole or (whole and better)
            now = replace(now, theta=moved, best=best, best_loss=best_loss, judged=judged, stale=stale, whole=found)
        little = moved is None or loss > (1 - (self.tolerance if whole else self.enough)) * normal.loss
        if whole:
            return replace(now, done=little or now.stale >= self.patience)
        if little:
            return replace(now, count=min(2 * now.count, problem.total), damping=min(now.damping, self.damping))
        return now

    def _descend(
        self, problem: Problem, theta: Tensor, normal: Normal, damping: float
    ) -> tuple[Tensor | None, float, float]:
        """Returns the first damped step that lowers the loss, its loss, and the damping to go on with."""
        for _ in range(self.tries):
            step = _damped(normal.matrix, normal.gradient, damping)
            loss = problem.loss(theta + step)
            if loss < normal.loss:
                return theta + step, loss, max(damping / 5, 1e-7)
            damping *= 5
        return None, normal.loss, damping


def _damped(matrix: Tensor, gradient: Tensor, damping: float) -> Tensor:
    """Returns the step of Levenberg and Marquardt; damping is relative to the matrix's diagonal."""
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

    parts = list(problem.model.room.each(len(probe), probe.microbatch, squares_of))
    squares = torch.stack(parts).sum(0) if parts else torch.zeros(2, dtype=torch.float64)
    of_difference, of_state = problem.processes.sums(squares).tolist()
    noise = math.sqrt(of_difference / (6 * max(of_state, 1e-300)))
    forward = math.sqrt(noise)
    return max(forward, 1e-4) if forward <= COARSE else min(noise ** (1 / 3), 0.2)
