"""Levenberg-Marquardt with forward differences: fitting without backpropagation, at sampling memory.

The problem has 10 to 60 parameters and cheap-to-add normal equations, so a handful of damped Gauss-Newton steps reach
what thousands of stochastic gradient steps do. Only the model's forward pass is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .problem import Normal, Problem

__all__ = ["GaussNewton", "Progress", "difference_step"]

Progress = Callable[[str], None]


@dataclass(frozen=True)
class GaussNewton:
    """Settings of a fit.

    Args:
        iterations: At most so many Jacobians.
        patience: Stop after so many iterations without a better held-out loss.
        tolerance: Stop when an iteration lowers the loss by less than this part.
        damping: First damping, relative to the diagonal of J^T J.
        tries: Damped steps tried per Jacobian before giving up.
        difference: Size of the differences; None measures the model's rounding noise first.
    """

    iterations: int = 8
    patience: int = 2
    tolerance: float = 2e-2
    damping: float = 1e-3
    tries: int = 6
    difference: float | None = None

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
            save: Called after each iteration with all that a continuation needs.
        """
        judge = held_out or problem
        if state is None:
            step = self.difference or difference_step(problem, theta)
            first = judge.loss(theta)
            state = {
                "theta": theta,
                "best": theta,
                "numbers": torch.tensor([self.damping, step, first, 0.0, 0.0, 0.0], dtype=torch.float64),
            }
        theta, best = state["theta"], state["best"]
        damping, step, best_loss, iteration, stale, done = state["numbers"].tolist()
        while not done and iteration < self.iterations:
            normal = problem.normal(theta, step)
            moved, loss, damping = self._descend(problem, theta, normal, damping)
            iteration += 1
            if moved is None:
                done = 1.0
            else:
                done = float(loss > (1 - self.tolerance) * normal.loss)
                theta = moved
                judged = judge.loss(theta) if held_out else loss
                better = judged < best_loss
                best, best_loss = (theta, judged) if better else (best, best_loss)
                stale = 0.0 if better else stale + 1
                done = max(done, float(stale >= self.patience))
                if progress is not None:
                    progress(f"iteration {int(iteration)}: loss {loss:.3e}, held out {judged:.3e}")
            if save is not None:
                numbers = torch.tensor([damping, step, best_loss, iteration, stale, done], dtype=torch.float64)
                save({"theta": theta, "best": best, "numbers": numbers})
        return best, best_loss

    def _descend(
        self, problem: Problem, theta: Tensor, normal: Normal, damping: float
    ) -> tuple[Tensor | None, float, float]:
        """Returns the first damped step that lowers the loss, its loss, and the damping to go on with."""
        diagonal = normal.matrix.diagonal()
        # A parameter without any effect (a row times 0) must not make the system singular.
        diagonal = diagonal.clamp(min=1e-12 * float(diagonal.max()))
        for _ in range(self.tries):
            step = torch.linalg.solve(normal.matrix + torch.diag(damping * diagonal), -normal.gradient)
            loss = problem.loss(theta + step)
            if loss < normal.loss:
                return theta + step, loss, max(damping / 5, 1e-7)
            damping *= 5
        return None, normal.loss, damping


def difference_step(problem: Problem, theta: Tensor) -> float:
    """Returns a size for forward differences, about the root of the model's relative rounding noise.

    A difference of size h is off by about h (curvature) plus noise / h. The noise is what a second difference over a
    small distance leaves: 1e-7 in float32, 1e-2 in bfloat16. Costs three runs of a few samples.
    """
    probe = problem.samples.rows(0, problem.probe)
    tables = [problem.space.table(theta + k * 1e-3) for k in (-1, 0, 1)]
    squares = torch.zeros(2, dtype=torch.float64)
    for _, batch in probe.batches():
        ends = [problem.run(table, batch).states[-1].double() for table in tables]
        second = ends[0] - 2 * ends[1] + ends[2]
        squares += torch.stack([second.square().sum(), ends[1].square().sum()]).cpu()
    of_difference, of_state = problem.sums(squares).tolist()
    noise = math.sqrt(of_difference / (6 * of_state))
    return min(max(math.sqrt(noise), 1e-4), 0.1)
