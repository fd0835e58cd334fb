"""DEIS: the derivative extrapolated as a polynomial in model time, as tables.

`deis_edm` follows zju-pi/diff-sampler (Apache-2.0), the source of ComfyUI's samplers; rewritten.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..grids import checked_levels
from ..schedules import Noise, VPNoise
from ..table import SolverTable
from .adams import adams_bashforth, check_order, derivative_table, euler_end

__all__ = ["deis", "deis_edm"]


def deis(sigmas: Tensor, order: int, noise: Noise | None = None) -> SolverTable:
    """DEIS (tAB, arXiv 2204.13902) of order 1 ... 3: eps is extrapolated as a polynomial in model time.

    Args:
        sigmas: Noise levels, descending, shape [N + 1].
        order: Number of history entries in a row.
        noise: The schedule that maps sigma to time. With None, flow and EDM schedules time is sigma, and tAB equals
            Adams-Bashforth.
    """
    check_order("deis", order, 3)
    if noise is None or noise.time_is_sigma:
        return adams_bashforth(sigmas, order)
    return derivative_table(sigmas, order, lambda s, nodes, i: _time_weights(s[nodes], s[i], s[i + 1], noise))


def deis_edm(sigmas: Tensor, order: int = 3) -> SolverTable:
    """DEIS of order 1 ... 3 as in diff-sampler and ComfyUI; a last step to 0 is an Euler step.

    On every model, time is that of the linear VP SDE with sigma 0.002 at time 1e-3 and sigma 80 at time 1; the
    integrals are sums over 10,000 times, both ends included.
    """
    check_order("deis_edm", order, 3)
    low, high, first = math.log1p(0.002**2), math.log1p(80.0**2), 1e-3
    slope = 2 * (low / first - high) / (first - 1)
    beta = high - slope / 2, high + slope / 2
    levels = checked_levels(sigmas)
    inner = levels.where(levels > 0, levels[-2] / 2)  # time has no slope at sigma 0; that row becomes Euler's
    table = derivative_table(levels, order, lambda _, nodes, i: _summed_weights(inner[nodes], inner[i : i + 2], *beta))
    return euler_end(table)


def _summed_weights(nodes: Tensor, step: Tensor, beta_0: float, beta_1: float) -> Tensor:
    """Sums over 10,000 times of L_j(time) dsigma/dtime dtime, L_j through the nodes; `step` is (start, end)."""
    if len(nodes) == 1:
        return step.diff()
    noise, count = VPNoise.linear_beta(beta_0, beta_1), 10_000
    knots, (start, end) = noise.time_at(nodes), noise.time_at(step)
    times = torch.linspace(float(start), float(end), count, dtype=torch.float64)
    beta = beta_0 + times * (beta_1 - beta_0)
    square = torch.expm1(times * (beta_0 + beta) / 2)  # sigma^2; `sigma_at` would stop at 0.002 and 80
    slope = beta * (1 + square) / (2 * square.sqrt())
    return _bases(times, knots) @ slope * (end - start) / count


def _bases(x: Tensor, nodes: Tensor) -> Tensor:
    """The Lagrange polynomials through the nodes [K] at x [M], shape [K, M]."""
    others = [torch.cat([nodes[:j], nodes[j + 1 :]]) for j in range(len(nodes))]
    return torch.stack([((x[:, None] - o) / (nodes[j] - o)).prod(1) for j, o in enumerate(others)])


def _time_weights(nodes: Tensor, start: Tensor, end: Tensor, noise: Noise) -> Tensor:
    """Weights w_j = integral over sigma from start to end of the Lagrange basis L_j(time(sigma)) through the nodes."""
    # The midpoint rule: the schedule has 1000 kinks, so quadrature of a higher order gains nothing.
    cells = 4096
    sigma = start + (end - start) * (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    return _bases(noise.time_at(sigma), noise.time_at(nodes)).mean(1) * (end - start)
