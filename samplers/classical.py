"""The classical multistep methods as tables: initial values for fitting, baselines for comparing.

Each function takes `sigmas`: noise levels, descending, shape [N + 1], the last may be 0, and calls the model at the
first N of them. Derivative methods integrate dx/dsigma = (x - D) / sigma, which holds in VE and flow coordinates.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .schedules import VPNoise
from .table import SolverTable

__all__ = ["adams_bashforth", "deis", "dpmpp_2m", "euler", "ipndm"]

_IPNDM = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def euler(sigmas: Tensor) -> SolverTable:
    """Returns Euler's method; for VP models this is DDIM (arXiv 2010.02502)."""
    return adams_bashforth(sigmas, 1)


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


def deis(sigmas: Tensor, order: int, noise: VPNoise | None = None) -> SolverTable:
    """Returns DEIS (tAB, arXiv 2204.13902) of order 1 ... 3: eps is extrapolated as a polynomial in model time.

    Args:
        sigmas: Noise levels, descending, shape [N + 1].
        order: History entries that a row uses.
        noise: The VP schedule that maps sigma to time. None: time is sigma itself, as in flow and EDM models, where
            tAB equals Adams-Bashforth; that is also what ComfyUI's `deis` does on every model.
    """
    _check_order("deis", order, 3)
    if noise is None:
        return adams_bashforth(sigmas, order)
    return _derivative_table(sigmas, order, lambda s, nodes, i: _time_weights(s[nodes], s[i], s[i + 1], noise))


def dpmpp_2m(sigmas: Tensor) -> SolverTable:
    """Returns DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2) in k-diffusion's form.

    With l = -log sigma, h_i = l_{i+1} - l_i and r = h_{i-1} / h_i:
    x_{i+1} = sigma_{i+1} / sigma_i * x_i + (1 - sigma_{i+1} / sigma_i) * ((1 + 1 / 2r) D_i - 1 / 2r D_{i-1});
    first order in the first step and in a last step to 0.
    """
    sigmas = _check_sigmas(sigmas)
    n = len(sigmas) - 1
    ratio = sigmas[1:] / sigmas[:-1]
    coeffs = torch.diag(1 - ratio)
    for i in range(1, n):
        if sigmas[i + 1] > 0:
            back = 0.5 * (sigmas[i] / sigmas[i + 1]).log() / (sigmas[i - 1] / sigmas[i]).log()
            coeffs[i, i - 1 : i + 1] = (1 - ratio[i]) * torch.stack([-back, 1 + back])
    return SolverTable(sigmas, sigmas[:-1], ratio, coeffs, "denoised")


def _check_sigmas(sigmas: Tensor) -> Tensor:
    sigmas = torch.as_tensor(sigmas).detach().cpu().double()
    if sigmas.ndim != 1 or len(sigmas) < 2 or bool((sigmas.diff() >= 0).any()) or float(sigmas[-1]) < 0:
        raise ValueError(f"sigmas must be at least two descending levels, the last 0 or above, got {sigmas.tolist()}")
    return sigmas


def _check_order(method: str, order: int, highest: int) -> None:
    if order not in range(1, highest + 1):
        raise ValueError(f"{method} has orders 1 to {highest}, got {order}")


def _derivative_table(sigmas: Tensor, order: int, row: Callable[[Tensor, Tensor, int], Tensor]) -> SolverTable:
    """Returns the table whose row i is `row(sigmas, nodes, i)` over the newest `order` nodes."""
    sigmas = _check_sigmas(sigmas)
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


def _time_weights(nodes: Tensor, start: Tensor, end: Tensor, noise: VPNoise) -> Tensor:
    """Returns w_j = integral over sigma from start to end of the Lagrange basis L_j(time(sigma)) through the nodes."""
    # Midpoints of 4096 cells: the schedule is a table with 1000 kinks, no quadrature of higher order sees it smooth.
    cells = 4096
    sigma = start + (end - start) * (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    time, knots = noise.time_at(sigma), noise.time_at(nodes)
    weights = []
    for j in range(len(nodes)):
        others = torch.cat([knots[:j], knots[j + 1 :]])
        basis = ((time[:, None] - others) / (knots[j] - others)).prod(1)
        weights.append(basis.mean() * (end - start))
    return torch.stack(weights)
