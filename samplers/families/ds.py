"""DS-Solver: learned time steps and multistep coefficients.

Paper: Differentiable Solver Search for Fast Diffusion Sampling, https://arxiv.org/abs/2505.21114 (ICML 2025, MIT).
Two intended differences from its released code: the time deltas in a file sum to exactly 1 (the published ones are
rounded), and the VP form applies each step once (its `src/diffusion/ddpm` applies it twice).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..files.card import StepCard
from ..schedules import Noise
from ..table import SolverTable
from .base import Family

__all__ = ["FAMILY", "TIMES", "ds_flow_table", "ds_table", "ds_vp_table"]

VP_TIMES = (0.999, 1e-3)  # first and last model time on VP models in the paper


def ds_flow_table(timedeltas: Tensor, coeffs: Tensor) -> SolverTable:
    """The table of a DS-Solver on flow models; differentiable in both parameters.

    sigmas_0 = 1, sigmas_{i+1} = sigmas_i - dt_i; x_{i+1} = x_i - dt_i * sum_j C_ij d_j with C_ii = 1 - sum_{j<i} c_ij.

    Args:
        timedeltas: Positive steps dt, sum 1, shape [N].
        coeffs: Coefficients c of older entries, strictly lower-triangular, shape [N, N].
    """
    timedeltas = timedeltas.double()
    n = len(timedeltas)
    levels = torch.cat([timedeltas.new_ones(1), 1 - timedeltas[:-1].cumsum(0), timedeltas.new_zeros(1)])
    rows = -timedeltas[:, None] * _with_newest(coeffs)
    return SolverTable(levels, levels[:-1], torch.ones(n, dtype=torch.float64), rows, "derivative")


def ds_vp_table(timedeltas: Tensor, coeffs: Tensor, noise: Noise) -> SolverTable:
    """The table of a DS-Solver on VP models; differentiable in both parameters.

    t_0 = 0.999, t_{i+1} = max(t_i - dt_i, 1e-3); sigmas_i = sigma / alpha at t_i, which on a model's own table is its
    index 1000 * t_i; with r_i = sigmas_{i+1} / sigmas_i: x_{i+1} = r_i x_i + (1 - r_i) sum_j C_ij D_j.

    Args:
        timedeltas: Positive steps dt, sum 1, shape [N].
        coeffs: Coefficients c of older entries, strictly lower-triangular, shape [N, N].
        noise: The model's schedule.
    """
    first, last = VP_TIMES
    times = [torch.tensor(first, dtype=torch.float64)]
    for dt in timedeltas.double():
        times.append((times[-1] - dt).clamp(min=last))
    levels = noise.sigma_at_index(1000 * torch.stack(times))
    ratio = levels[1:] / levels[:-1]
    return SolverTable(levels, levels[:-1], ratio, (1 - ratio)[:, None] * _with_newest(coeffs), "denoised")


def ds_table(timedeltas: Tensor, coeffs: Tensor, noise: Noise) -> SolverTable:
    """The table of a DS-Solver on a flow or VP schedule; differentiable in both parameters."""
    if noise.kind not in _TABLES:
        raise ValueError(
            f"DS-Solver is defined on {' and '.join(_TABLES)} noise, got {noise.kind}; fit dyweight instead"
        )
    return _TABLES[noise.kind](timedeltas, coeffs, noise)


def _with_newest(coeffs: Tensor) -> Tensor:
    """C: the coefficients, with that of the newest entry, 1 minus the row's sum, on the diagonal."""
    coeffs = coeffs.double()
    return coeffs + torch.diag(1 - coeffs.sum(1))


TIMES = {"flow": (1.0, 0.0), "vp": VP_TIMES}
"""First and last time of the steps, by kind of noise schedule."""
_TABLES = {"flow": lambda timedeltas, coeffs, noise: ds_flow_table(timedeltas, coeffs), "vp": ds_vp_table}


def _check(tensors: Mapping[str, Tensor], nfe: int, step: StepCard) -> None:
    timedeltas, coeffs = tensors["timedeltas"], tensors["coeffs"]
    if tuple(timedeltas.shape) != (nfe,) or not bool((timedeltas > 0).all()):
        raise ValueError(f"timedeltas must hold {nfe} positive steps, got {timedeltas.flatten()[:8].tolist()}")
    if abs(float(timedeltas.sum()) - 1) > 1e-6:
        raise ValueError(f"timedeltas must sum to 1, got {float(timedeltas.sum()):.6f}; divide them by their sum")
    if tuple(coeffs.shape) != (nfe, nfe) or bool((coeffs.triu() != 0).any()):
        raise ValueError(
            f"coeffs must be strictly lower-triangular [{nfe}, {nfe}], got {list(coeffs.shape)}; leave out the newest "
            "entry's coefficient, which is 1 minus the row's sum"
        )


def _table(tensors: Mapping[str, Tensor], step: StepCard, noise: Noise) -> SolverTable:
    return ds_table(tensors["timedeltas"], tensors["coeffs"], noise)


FAMILY = Family(
    name="ds",
    title="DS-Solver",
    sampler="ds_solver",
    about="learns time steps and multistep coefficients",
    paper="https://arxiv.org/abs/2505.21114",
    tensors=("timedeltas", "coeffs"),
    kinds=tuple(_TABLES),
    check=_check,
    table=_table,
)
