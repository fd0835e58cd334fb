"""Gradient descent through the network, as in the papers: Adam, AdamW or Lion with warm-up, cosine and clipping.

For differentiable denoisers; activations are recomputed instead of stored (torch.utils.checkpoint). The gradient is
compared with a finite difference before the first step, because fused operations of hosts may drop it silently.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..data.batch_limit import is_out_of_memory
from ..data.samples import CountedDenoiser
from .levenberg_marquardt import Progress, difference_step
from .problem import Problem

__all__ = ["OPTIMIZERS", "GradientDescent", "Lion"]


class Lion(torch.optim.Optimizer):
    """Lion (arXiv 2302.06675): sign of an interpolated momentum, decoupled weight decay."""

    def __init__(
        self, params: Any, lr: float = 1e-2, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Performs one update."""
        for group in self.param_groups:
            beta_1, beta_2 = group["betas"]
            for p in (p for p in group["params"] if p.grad is not None):
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * torch.lerp(p.grad, momentum, beta_1).sign())
                momentum.lerp_(p.grad, 1 - beta_2)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "lion": Lion,
}


@dataclass(frozen=True)
class GradientDescent:
    """Settings of a fit; the defaults are DyWeight's for small pixel models (arXiv 2603.11607, its run.sh).

    Args:
        optimizer: "adam", "adamw" or "lion".
        rate: Highest learning rate: 3e-2 for small models, 5e-4 to 1e-3 for SD and FLUX, 1e-2 with Lion.
        weight_decay: Decoupled; the FLUX recipe has 5e-2.
        batch: Samples per update, over all processes, at most.
        epochs: Passes over the samples.
        warm_up: Fraction of the updates during which the rate rises; a cosine then lowers it to 1 %.
        clip: Largest norm of the gradient.
        seed: Seed of the order of samples.
    """

    optimizer: str = "adam"
    rate: float = 3e-2
    weight_decay: float = 0.0
    batch: int = 16
    epochs: int = 1
    warm_up: float = 0.1
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        if self.batch < 1 or self.epochs < 1 or not self.rate > 0 or not 0 <= self.warm_up < 1:
            raise ValueError(
                "batch and epochs must be at least 1, rate above 0 and warm_up in [0, 1), got "
                f"{self.batch}, {self.epochs}, {self.rate:g} and {self.warm_up:g}"
            )

    def fit(
        self,
        problem: Problem,
        theta: Tensor,
        held_out: Problem | None = None,
        progress: Progress | None = None,
        state: dict[str, Tensor] | None = None,
        save: Callable[[dict[str, Tensor]], None] | None = None,
    ) -> tuple[Tensor, float]:
        """The last parameters and their loss, on `held_out` if given; see `LevenbergMarquardt.fit`.

        Raises:
            ValueError: There is no gradient, or it disagrees with a finite difference.
        """
        theta = (theta if state is None else state["theta"]).clone().requires_grad_(True)
        optimizer = OPTIMIZERS[self.optimizer]([theta], lr=self.rate, weight_decay=self.weight_decay)
        first = 0
        if state is None:
            self._check_gradient(problem, theta)
        else:
            first = int(state["updates"])
            optimizer.load_state_dict(_unflatten(optimizer.state_dict(), state))
        batches = self._batches(problem.total)
        for update, batch in enumerate(batches[first:], first):
            rows = problem.processes.local_rows(batch, problem.samples, problem.total)
            loss = self._update(problem, theta, optimizer, rows, update / len(batches))
            if (update + 1) % max(1, len(batches) // 20) == 0:
                if progress is not None:
                    progress(f"update {update + 1} of {len(batches)}: loss {loss:.3e}")
                if save is not None:
                    flat = _flatten(optimizer.state_dict())
                    save({**flat, "theta": theta.detach(), "updates": torch.tensor(float(update + 1))})
        theta = theta.detach()
        return theta, (held_out or problem).loss(theta)

    def _batches(self, total: int) -> list[Tensor]:
        """Sample numbers of every update, in a new order each epoch; sizes differ by at most one."""
        order, per_epoch = torch.Generator().manual_seed(self.seed), -(-total // self.batch)
        epochs = [torch.randperm(total, generator=order) for _ in range(self.epochs)]
        return [part for rows in epochs for part in rows.tensor_split(per_epoch)]

    def _update(
        self, problem: Problem, theta: Tensor, optimizer: torch.optim.Optimizer, rows: Tensor, done: float
    ) -> float:
        for group in optimizer.param_groups:
            group["lr"] = self.rate * self._schedule(done)
        optimizer.zero_grad(set_to_none=True)
        gradient, loss = self._gradient(problem, theta, rows)
        # Gradient, loss and count are summed over processes: some may have none of the update's samples.
        sums = problem.processes.sums(torch.cat([gradient, loss[None], loss.new_tensor([len(rows)])]))
        theta.grad = sums[:-2] / sums[-1]
        torch.nn.utils.clip_grad_norm_([theta], self.clip)
        optimizer.step()
        return float(sums[-2] / sums[-1])

    def _gradient(self, problem: Problem, theta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient and value of the summed losses of some samples, in parts that fit into memory."""

        def part_gradient(start: int, stop: int) -> tuple[Tensor, Tensor]:
            batch = problem.samples.pick(rows[start:stop]).loaded()
            reference = problem.reference.pick(rows[start:stop]).loaded(batch)
            with torch.enable_grad():
                table = problem.space.table(theta)
                states = problem.run(table, batch, _RecomputingDenoiser(problem.model)).states
                residual = problem.objective.residual(states[1:], table.levels[1:], reference)
                loss = problem.objective.rho(residual).cpu().double().sum()
                return torch.autograd.grad(loss, theta)[0], loss.detach()

        gradient, value = torch.zeros_like(theta), theta.new_zeros(())
        for part, loss in problem.model.each(problem.samples.pick(rows), part_gradient):
            gradient, value = gradient + part, value + loss
        return gradient.detach(), value

    def _schedule(self, done: float) -> float:
        if done < self.warm_up:
            return (done + 1e-3) / self.warm_up
        return 0.01 + 0.99 * (1 + math.cos(math.pi * (done - self.warm_up) / (1 - self.warm_up))) / 2

    def _check_gradient(self, problem: Problem, theta: Tensor) -> None:
        """Compares the derivative along one direction with finite differences, on a few samples."""
        few, sums = problem.first(4), problem.processes.sums
        rows = torch.arange(len(few.samples))
        direction = torch.ones_like(theta) / math.sqrt(len(theta))
        step = difference_step(problem, theta.detach())
        try:
            gradient, _ = self._gradient(few, theta, rows)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise ValueError(
                f"this model is not differentiable ({error}): use the optimizer gauss-newton, which needs no gradient"
            ) from error
        along, differences = float(sums(gradient @ direction)) / few.total, []
        for size in (step, step / 10, step / 100, step / 1000):  # rounding limits small ones, curvature large ones
            with torch.no_grad():
                ahead, behind = (few.loss(theta + sign * size * direction) for sign in (1, -1))
            differences.append((ahead - behind) / (2 * size))
            if abs(along - differences[-1]) <= 0.05 * max(abs(along), abs(differences[-1]), 1e-12) + 10 * size * size:
                return
        raise ValueError(
            f"this model's gradient is wrong: {along:.4e} in a direction where finite differences give "
            f"{', '.join(f'{d:.4e}' for d in differences)}; use the optimizer gauss-newton, which needs no gradient"
        )


class _RecomputingDenoiser:
    """A denoiser that stores no activations: its forward pass is repeated during backpropagation.

    A call with a gradient counts as three: the forward pass, and two for the backward pass.
    """

    def __init__(self, model: CountedDenoiser) -> None:
        self.model = model

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        self.model.calls += (3 if x.requires_grad or sigma.requires_grad else 1) * len(x)
        return checkpoint(self.model.uncounted, x, sigma, use_reentrant=False, **extra_args)  # pyright: ignore


def _flatten(state: dict[str, Any]) -> dict[str, Tensor]:
    return {f"optimizer/{k}": torch.as_tensor(v).clone() for k, v in state["state"].get(0, {}).items()}


def _unflatten(empty: dict[str, Any], record: dict[str, Tensor]) -> dict[str, Any]:
    state = {k.removeprefix("optimizer/"): v for k, v in record.items() if k.startswith("optimizer/")}
    return {**empty, "state": {0: state} if state else {}}
