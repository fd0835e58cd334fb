"""Classical methods that integrate dx/dsigma = (x - D) / sigma, as tables: starts of fits, baselines for comparing.

Each function takes `sigmas`: noise levels, descending, shape [N + 1], the last may be 0, and calls the model at the
first N of them (`heun` at the inner ones twice). The equation holds in VE and in flow coordinates.

`ipndm_v` and `deis_edm` follow zju-pi/diff-sampler (Apache-2.0), the source of ComfyUI's samplers; rewritten.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .levels import checked_levels
from .schedules import VPNoise
from .table import SolverTable

__all__ = ["adams_bashforth", "deis", "deis_edm", "euler", "euler_end", "heun", "ipndm", "ipndm_v"]

_IPNDM = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def euler(sigmas: Tensor) -> SolverTable:
    """Returns Euler's method; for VP models this is DDIM (arXiv 2010.02502)."""
    return adams_bashforth(sigmas, 1)


def heun(sigmas: Tensor) -> SolverTable:
    """Returns Heun's method (arXiv 2206.00364, algorithm 1): two calls a step, one in a last step to 0.

    Its stages are rows of their own: to sigma_{i+1} with h_0, then, from there and at the same level, by half a step
    times h_1 - h_0. The table of M steps has 2 M rows, or 2 M - 1 where the last level is 0.
    """
    sigmas = checked_levels(sigmas)
    steps = sigmas.diff()
    twice = len(steps) - (sigmas[-1] == 0).int().item()
    levels = torch.cat([sigmas[:1], sigmas[1 : twice + 1].repeat_interleave(2), sigmas[twice + 1 :]])
    coeffs = torch.zeros(len(levels) - 1, len(levels) - 1, dtype=torch.float64)
    for i, step in enumerate(steps.tolist()):
        coeffs[2 * i, 2 * i] = step
        if i < twice:
            coeffs[2 * i + 1, 2 * i], coeffs[2 * i + 1, 2 * i + 1] = -step / 2, step / 2
    return SolverTable(levels, levels[:-1], torch.ones(len(levels) - 1, dtype=torch.float64), coeffs, "derivative")


def adams_bashforth(sigmas: Tensor, order: int) -> SolverTable:
    """Returns Adams-Bashforth of order 1 ... 4 on an uneven grid, exact; the first steps run at the order they can.

    The derivative is extrapolated as a polynomial in sigma, which is what k-diffusion's `lms` integrates numerically.
    Row i solves sum_j w_j (s_j - s_i)^m = integral over the step of (s - s_i)^m, m = 0 ... order - 1.
    """
    _check_order("adams_bashforth", order, 4)
    return _derivative_table(sigmas, order, lambda s, nodes, i: _polynomial_weights(s[nodes], s[i], s[i + 1]))


def ipndm(sigmas: Tensor, order: int) -> SolverTable:
    """Returns iPNDM of order 1 ... 4 (arXiv 2202.09778): even-grid Adams-Bashforth weights on whatever grid."""
    _check_order("ipndm", order, 4)
    weights = torch.tensor([row + (0.0,) * (4 - len(row)) for row in _IPNDM], dtype=torch.float64)
    return _derivative_table(
        sigmas, order, lambda s, nodes, i: (s[i + 1] - s[i]) * weights[len(nodes) - 1, : len(nodes)].flip(0)
    )


def ipndm_v(sigmas: Tensor, order: int = 4) -> SolverTable:
    """Returns iPNDM with variable steps, of order 1 ... 4, as diff-sampler and ComfyUI run it.

    Meant as Adams-Bashforth on an uneven grid, and equal to it at order 2. At order 3 a bracket of the source is
    misplaced: order 2 where steps alternate. At order 4 the rows do not even sum to the step where steps are uneven.
    """
    _check_order("ipndm_v", order, 4)
    return _derivative_table(sigmas, order, _variable_weights)


def deis(sigmas: Tensor, order: int, noise: VPNoise | None = None) -> SolverTable:
    """Returns DEIS (tAB, arXiv 2204.13902) of order 1 ... 3: eps is extrapolated as a polynomial in model time.

    Args:
        sigmas: Noise levels, descending, shape [N + 1].
        order: History entries that a row uses.
        noise: The VP schedule that maps sigma to time. None: time is sigma itself, as in flow and EDM models, where
            tAB equals Adams-Bashforth.
    """
    _check_order("deis", order, 3)
    if noise is None:
        return adams_bashforth(sigmas, order)
    return _derivative_table(sigmas, order, lambda s, nodes, i: _time_weights(s[nodes], s[i], s[i + 1], noise))


def deis_edm(sigmas: Tensor, order: int = 3) -> SolverTable:
    """Returns DEIS of order 1 ... 3 as diff-sampler and ComfyUI run it on every model; Euler in a last step to 0.

    Time is that of the linear VP SDE that has sigma 0.002 at time 1e-3 and sigma 80 at time 1, whatever the model's
    own; the integrals are sums over 10,000 times, both ends included.
    """
    _check_order("deis_edm", order, 3)
    low, high, first = math.log1p(0.002**2), math.log1p(80.0**2), 1e-3
    slope = 2 * (low / first - high) / (first - 1)
    beta = high - slope / 2, high + slope / 2
    levels = checked_levels(sigmas)
    inner = levels.where(levels > 0, levels[-2] / 2)  # time has no slope at sigma 0, where the rule is Euler's anyway
    table = _derivative_table(levels, order, lambda _, nodes, i: _summed_weights(inner[nodes], inner[i : i + 2], *beta))
    return euler_end(table)


def euler_end(table: SolverTable) -> SolverTable:
    """Returns a derivative table with Euler's rule in a last step to 0, where the result is the last picture D.

    That is how ComfyUI ends `ipndm`, `ipndm_v`, `deis` and `lms` (its lms is `euler_end(adams_bashforth(sigmas, 4))`).
    """
    if table.sigma_end > 0:
        return table
    coeffs = table.coeffs.clone()
    coeffs[-1] = 0
    coeffs[-1, -1] = -table.levels[-2]
    return replace(table, coeffs=coeffs)


def _check_order(method: str, order: int, highest: int) -> None:
    if order not in range(1, highest + 1):
        raise ValueError(f"{method} has orders 1 to {highest}, got {order}")


def _derivative_table(sigmas: Tensor, order: int, row: Callable[[Tensor, Tensor, int], Tensor]) -> SolverTable:
    """Returns the table whose row i is `row(sigmas, nodes, i)` over the newest `order` nodes."""
    sigmas = checked_levels(sigmas)
    n = len(sigmas) - 1
    coeffs = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        nodes = torch.arange(max(0, i - order + 1), i + 1)
        coeffs[i, nodes] = row(sigmas, nodes, i)
    return SolverTable(sigmas, sigmas[:-1], torch.ones(n, dtype=torch.float64), coeffs, "derivative")


def _polynomial_weights(nodes: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Returns w with sum_j w_j p(nodes_j) = integral of p from start to end for all p of degree < len(nodes)."""
    step = end - start
    power = torch.arange(len(nodes), dtype=torch.float64)
    # In units of the step, so that the Vandermonde system is well-conditioned.
    vandermonde = ((nodes - start) / step)[None, :] ** power[:, None]
    return step * torch.linalg.solve(vandermonde, 1 / (power + 1))


def _variable_weights(sigmas: Tensor, nodes: Tensor, i: int) -> Tensor:
    """Returns the row of `ipndm_v`, oldest entry first, shape [len(nodes)]."""
    # In the source's letters: h is the step to come, a, b, c the ones before it, newest first.
    steps = sigmas.diff()[: i + 1].flip(0).tolist()
    h, (a, b, c) = steps[0], [*steps[1:4], 1.0, 1.0, 1.0][:3]
    parts: list[tuple[float, ...]] = [(1.0,)]
    if len(nodes) > 1:
        parts.append((h / a / 2, -h / a / 2))
    if len(nodes) > 2:
        second = (1 - h / (3 * (h + a)) * (h * (h + a)) / (a * (a + b))) / 2
        parts.append((second, -(1 + a / b) * second, a / b * second))
    if len(nodes) > 3:
        third = (1 - h / (3 * (h + a))) / 2 + (1 - h / (2 * (h + a))) * h / (6 * (h + a + b))
        third *= h * (h + a) * (h + a + b) / (a * (a + b) * (a + b + c))
        far = a * (a + b) / (b * (b + c))
        parts.append((third, -(1 + a / b + far) * third, (a / b + far * (1 + b / c)) * third, -far * a / b * third))
    weights = torch.zeros(len(nodes), dtype=torch.float64)
    for part in parts:
        weights[: len(part)] += torch.tensor(part, dtype=torch.float64)
    return h * weights.flip(0)


def _summed_weights(nodes: Tensor, step: Tensor, beta_0: float, beta_1: float) -> Tensor:
    """Returns the sums over 10,000 times of L_j(time) dsigma/dtime dtime through the nodes; `step` is (start, end)."""
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
    """Returns the Lagrange polynomials through the nodes [K] at x [M], shape [K, M]."""
    others = [torch.cat([nodes[:j], nodes[j + 1 :]]) for j in range(len(nodes))]
    return torch.stack([((x[:, None] - o) / (nodes[j] - o)).prod(1) for j, o in enumerate(others)])


def _time_weights(nodes: Tensor, start: Tensor, end: Tensor, noise: VPNoise) -> Tensor:
    """Returns w_j = integral over sigma from start to end of the Lagrange basis L_j(time(sigma)) through the nodes."""
    # Midpoints of 4096 cells: the schedule is a table with 1000 kinks, no quadrature of higher order sees it smooth.
    cells = 4096
    sigma = start + (end - start) * (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    return _bases(noise.time_at(sigma), noise.time_at(nodes)).mean(1) * (end - start)
