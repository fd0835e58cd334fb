"""DyWeight: learned weights over past gradients and a learned time scale per call.

Paper: DyWeight: Dynamic Gradient Weighting for Few-Step Diffusion Sampling, https://arxiv.org/abs/2603.11607.
Written from the paper's formulas; contains no code of the authors, whose repository has no licence.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..files.card import StepCard
from ..schedules import Noise
from ..table import SolverTable
from .base import Family

__all__ = ["FAMILY", "dyweight_table"]


def dyweight_table(
    weights: Tensor, t_scale: Tensor, grid: Tensor, *, analytic_first: bool = False, divisor: str = "state"
) -> SolverTable:
    """The table of DyWeight parameters on a grid; differentiable in `weights`, `t_scale` and `grid`.

    With true_0 = grid_0:

        sigmas_i   = |t_scale_i * true_i|                                   where the model is called
        true_{i+1} = true_i + (sum_j weights_ij) * (grid_{i+1} - true_i)    implicit time calibration
        coeffs_ij  = weights_ij * (grid_{i+1} - true_i) * c_j

    The row sums are learned step sizes: rows are never normalised, and the next step starts at the true level that
    they lead to. Weights [[1]], [-1/2, 3/2], ... and t_scale 1 are iPNDM.

    Args:
        weights: Lower-triangular, shape [N, N].
        t_scale: One factor per model call, shape [N], or [N - 1] with an analytic first step.
        grid: Noise levels, descending, shape [N + 1].
        analytic_first: The first step takes the derivative of pure noise instead of a model call.
        divisor: The level that x - D is divided by: "state", the true level (c_j = sigmas_j / true_j; the paper's
            pixel, latent and SD code), or "call", the level of the call (c_j = 1; its FLUX code).
    """
    weights, t_scale, grid = weights.double(), t_scale.double(), grid.double()
    n = weights.shape[0]
    if divisor not in ("state", "call"):
        raise ValueError(f'divisor must be "state" or "call", got {divisor!r}')
    for name, tensor, shape in (
        ("weights", weights, [n, n]),
        ("t_scale", t_scale, [n - analytic_first]),
        ("grid", grid, [n + 1]),
    ):
        if list(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape} for {n} steps, got {list(tensor.shape)}")
    if analytic_first:
        t_scale = torch.cat([t_scale.new_ones(1), t_scale])
    levels, steps = [grid[0]], []
    for i in range(n):
        steps.append(grid[i + 1] - levels[i])
        levels.append(levels[i] + weights[i].sum() * steps[i])
    true = torch.stack(levels[:-1])
    sigmas = (t_scale * true).abs()
    coeffs = weights * torch.stack(steps)[:, None]
    if divisor == "state":
        coeffs = coeffs * (sigmas / true)
    # As in the paper, the last state is the image at the grid's end, regardless of the last row's sum.
    return SolverTable(
        levels=torch.cat([true, grid[-1:]]),
        sigmas=sigmas,
        scale=torch.ones(n, dtype=torch.float64),
        coeffs=coeffs,
        entry="derivative",
        analytic_first=analytic_first,
    )


def _check(tensors: Mapping[str, Tensor], nfe: int, step: StepCard) -> None:
    analytic_first, _ = _options(step)
    n = nfe + analytic_first
    weights, t_scale = tensors["weights"], tensors["t_scale"]
    if tuple(weights.shape) != (n, n):
        raise ValueError(f"weights must be lower-triangular [{n}, {n}] for {nfe} calls, got {list(weights.shape)}")
    if bool((weights.triu(1) != 0).any()):
        raise ValueError("weights must be lower-triangular: step i may only use entries 0 ... i")
    if tuple(t_scale.shape) != (nfe,) or not bool((t_scale > 0).all()):
        raise ValueError(f"t_scale must hold {nfe} positive factors, got {t_scale.flatten()[:8].tolist()}")
    if step.grid is None:
        raise ValueError("the card has no grid rule, which a DyWeight solver needs")


def _table(tensors: Mapping[str, Tensor], step: StepCard, noise: Noise) -> SolverTable:
    analytic_first, divisor = _options(step)
    assert step.grid is not None  # see `_check`
    grid = step.grid.levels(len(tensors["weights"]), noise)
    return dyweight_table(tensors["weights"], tensors["t_scale"], grid, analytic_first=analytic_first, divisor=divisor)


def _options(step: StepCard) -> tuple[bool, str]:
    analytic_first, divisor = (FAMILY.option(step, name) for name in ("analytic_first", "divisor"))
    if not isinstance(analytic_first, bool):
        raise ValueError(f"analytic_first must be true or false, got {analytic_first!r:.40}")
    if divisor not in ("state", "call"):
        raise ValueError(f'divisor must be "state" or "call", got {divisor!r:.40}')
    return analytic_first, str(divisor)


FAMILY = Family(
    name="dyweight",
    title="DyWeight",
    sampler="dyweight",
    about="learns weights of past gradients and a time per call",
    paper="https://arxiv.org/abs/2603.11607",
    tensors=("weights", "t_scale"),
    kinds=("flow", "vp", "edm"),
    check=_check,
    table=_table,
    options={"analytic_first": False, "divisor": "state"},
)
