"""Linear multistep methods on dx/dsigma = (x - D) / sigma, as tables: Euler, Adams-Bashforth, iPNDM.

Each function takes `sigmas`: noise levels, descending, shape [N + 1], the last may be 0, and calls the model at the
first N of them. The equation is the same in VE and in flow coordinates.

`ipndm_v` follows zju-pi/diff-sampler (Apache-2.0), the source of ComfyUI's samplers; rewritten.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..grids import checked_levels
from ..table import SolverTable

__all__ = [
    "adams_bashforth",
    "check_order",
    "derivative_table",
    "euler",
    "euler_end",
    "ipndm",
    "ipndm_v",
    "polynomial_weights",
]

_IPNDM = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def euler(sigmas: Tensor) -> SolverTable:
    """Euler's method; on VP models this is DDIM (arXiv 2010.02502)."""
    return adams_bashforth(sigmas, 1)


def adams_bashforth(sigmas: Tensor, order: int) -> SolverTable:
    """Adams-Bashforth of order 1 ... 4, exact on uneven grids; the first steps have the order their history allows.

    The derivative is extrapolated as a polynomial in sigma, which k-diffusion's `lms` integrates numerically.
    Row i solves sum_j w_j (s_j - s_i)^m = integral over the step of (s - s_i)^m, m = 0 ... order - 1.
    """
    check_order("adams_bashforth", order, 4)
    return derivative_table(sigmas, order, lambda s, nodes, i: polynomial_weights(s[nodes], s[i], s[i + 1]))


def ipndm(sigmas: Tensor, order: int) -> SolverTable:
    """The method iPNDM of order 1 ... 4 (arXiv 2202.09778): Adams-Bashforth weights of an even grid on any grid."""
    check_order("ipndm", order, 4)
    weights = torch.tensor([row + (0.0,) * (4 - len(row)) for row in _IPNDM], dtype=torch.float64)
    return derivative_table(
        sigmas, order, lambda s, nodes, i: (s[i + 1] - s[i]) * weights[len(nodes) - 1, : len(nodes)].flip(0)
    )


def ipndm_v(sigmas: Tensor, order: int = 4) -> SolverTable:
    """The variable-step iPNDM of diff-sampler and ComfyUI, of order 1 ... 4.

    Intended as Adams-Bashforth on an uneven grid, and equal to it at order 2. At order 3 a bracket in the source is
    misplaced, which reduces the order to 2 on alternating steps. At order 4 the rows do not sum to the step on uneven
    grids.
    """
    check_order("ipndm_v", order, 4)
    return derivative_table(sigmas, order, _variable_weights)


def euler_end(table: SolverTable) -> SolverTable:
    """The derivative table; if it ends at 0, with a last Euler step, whose result is the last denoised prediction D.

    ComfyUI ends `ipndm`, `ipndm_v`, `deis` and `lms` in this way (its lms is `euler_end(adams_bashforth(sigmas, 4))`).
    """
    if table.sigma_end > 0:
        return table
    coeffs = table.coeffs.clone()
    coeffs[-1] = 0
    coeffs[-1, -1] = -table.levels[-2]
    return replace(table, coeffs=coeffs)


def check_order(method: str, order: int, highest: int) -> None:
    """Raises ValueError for an order that a method does not have."""
    if order not in range(1, highest + 1):
        raise ValueError(f"{method} has orders 1 to {highest}, got {order}")


def derivative_table(sigmas: Tensor, order: int, row: Callable[[Tensor, Tensor, int], Tensor]) -> SolverTable:
    """The table whose row i is `row(sigmas, nodes, i)`, where `nodes` are the indices of the newest `order` entries."""
    sigmas = checked_levels(sigmas)
    n = len(sigmas) - 1
    coeffs = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        nodes = torch.arange(max(0, i - order + 1), i + 1)
        coeffs[i, nodes] = row(sigmas, nodes, i)
    return SolverTable(sigmas, sigmas[:-1], torch.ones(n, dtype=torch.float64), coeffs, "derivative")


def polynomial_weights(nodes: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Weights w: sum_j w_j p(nodes_j) = integral of p from start to end, for polynomials p of degree < len(nodes)."""
    step = end - start
    power = torch.arange(len(nodes), dtype=torch.float64)
    # In units of the step, so that the Vandermonde system is well-conditioned.
    vandermonde = ((nodes - start) / step)[None, :] ** power[:, None]
    return step * torch.linalg.solve(vandermonde, 1 / (power + 1))


def _variable_weights(sigmas: Tensor, nodes: Tensor, i: int) -> Tensor:
    """The row of `ipndm_v`, oldest entry first, shape [len(nodes)]."""
    # With the source's letters: h is the next step; a, b, c are the previous steps, newest first.
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
