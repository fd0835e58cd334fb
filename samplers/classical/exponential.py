"""Classical methods on the exponential form of the equation, x' = x - D in l = -log sigma, as tables.

Each function takes `sigmas`: noise levels, descending, shape [N + 1], the last may be 0. A step with a constant D is
exact: x_{i+1} = r x_i + (1 - r) D, r = sigma_{i+1} / sigma_i; the methods differ in how they extrapolate D in l.
ComfyUI uses this form, l = -log sigma, on VP, EDM and flow models.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..grids import checked_levels
from ..table import SolverTable

__all__ = ["UNIPC_END", "dpmpp_2m", "res_multistep", "uni_pc"]

UNIPC_END = 0.001


def dpmpp_2m(sigmas: Tensor) -> SolverTable:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2) in k-diffusion's form.

    With h_i = l_{i+1} - l_i and q = h_{i-1} / h_i: x_{i+1} = r x_i + (1 - r) ((1 + 1 / 2q) D_i - 1 / 2q D_{i-1});
    first order in the first step and in a last step to 0.
    """
    sigmas = checked_levels(sigmas)
    n = len(sigmas) - 1
    ratio = sigmas[1:] / sigmas[:-1]
    coeffs = torch.diag(1 - ratio)
    for i in range(1, n):
        if sigmas[i + 1] > 0:
            back = 0.5 * (sigmas[i] / sigmas[i + 1]).log() / (sigmas[i - 1] / sigmas[i]).log()
            coeffs[i, i - 1 : i + 1] = (1 - ratio[i]) * torch.stack([-back, 1 + back])
    return SolverTable(sigmas, sigmas[:-1], ratio, coeffs, "denoised")


def res_multistep(sigmas: Tensor) -> SolverTable:
    """The second-order exponential multistep method (arXiv 2308.02157) that ComfyUI calls `res_multistep`.

    x_{i+1} = r x_i + h (b1 D_i + b2 D_{i-1}), b2 = -phi_2(-h_i) h_i / h_{i-1}, b1 = phi_1(-h_i) - b2; first order in
    the first step and in a last step to 0. Here phi_1(z) = (e^z - 1) / z, phi_2(z) = (phi_1(z) - 1) / z.
    """
    sigmas = checked_levels(sigmas)
    ratio = sigmas[1:] / sigmas[:-1]
    coeffs = torch.diag(1 - ratio)
    for i in range(1, len(ratio)):
        if sigmas[i + 1] > 0:
            h, before = -ratio[i].log(), -ratio[i - 1].log()
            back = (1 - (1 - ratio[i]) / h) * h / before  # -h b2
            coeffs[i, i - 1 : i + 1] = torch.stack([-back, 1 - ratio[i] + back])
    return SolverTable(sigmas, sigmas[:-1], ratio, coeffs, "denoised")


def uni_pc(sigmas: Tensor, variant: str = "bh1") -> SolverTable:
    """UniPC (arXiv 2302.04867, algorithms 5 and 6) with data prediction, as in ComfyUI's `uni_pc` and `uni_pc_bh2`.

    The order is min(3, N - 1), lower in the first and in the last steps; a last level of 0 is replaced by 0.001. The
    corrector reuses the model call of the next predictor, so a step is one call. The states of the table are the
    predicted ones: with the predictor's weights p_i and the corrector's c_i of the step to sigma_i,
    x_{i+1} = r_i (x_i + (c_i - p_i) . D) + p_{i+1} . D.

    Args:
        sigmas: Noise levels, descending, shape [N + 1], N >= 2.
        variant: B(h) of the paper: "bh1" h, "bh2" e^h - 1.
    """
    if variant not in ("bh1", "bh2"):
        raise ValueError(f"variant must be bh1 or bh2, got {variant!r}")
    levels = checked_levels(sigmas).clone()
    if levels[-1] == 0:
        levels[-1] = UNIPC_END
    n = len(levels) - 1
    if n < 2 or levels[-1] >= levels[-2]:
        raise ValueError(f"uni_pc needs two steps above noise level {UNIPC_END}, got {levels.tolist()}")
    ratio, log_snr = levels[1:] / levels[:-1], -levels.log()
    coeffs = torch.zeros(n, n, dtype=torch.float64)
    correction = torch.zeros(n, dtype=torch.float64)  # the corrector's change of the state
    for i in range(n):
        order = min(i + 1, 3, n - 1, n - i)
        newest = torch.arange(i, i - order, -1)
        predicted, corrected = _unipc_weights(log_snr[newest], log_snr[i + 1], variant)
        coeffs[i] = ratio[i] * correction
        coeffs[i, newest] += predicted
        if i + 1 < n:
            correction = torch.zeros_like(correction)
            correction[i + 1] = corrected[0]
            correction[newest] = corrected[1:] - predicted
    return SolverTable(levels, levels[:-1], ratio, coeffs, "denoised")


def _unipc_weights(nodes: Tensor, end: Tensor, variant: str) -> tuple[Tensor, Tensor]:
    """The predictor's and the corrector's weights of the denoised predictions in the step to `end`, newest first.

    `nodes` are the log-SNRs l of the previous predictions, newest first, shape [K]. The corrector has K + 1 weights;
    the first is that of the prediction at `end`.
    """
    order, h = len(nodes), float(end - nodes[0])
    scale = -h if variant == "bh1" else math.expm1(-h)
    positions = torch.cat([(nodes[1:] - nodes[0]) / h, nodes.new_ones(1)])  # of the differences D_k - D_newest
    phi, moments = math.expm1(-h) / -h - 1, []
    for k in range(1, order + 1):  # the k-th moment is k! h phi_{k+1}(-h) / B(h)
        moments.append(phi * math.factorial(k) / scale)
        phi = phi / -h - 1 / math.factorial(k + 1)
    powers = positions ** torch.arange(order, dtype=torch.float64)[:, None]
    right = torch.tensor(moments, dtype=torch.float64)
    half = torch.full((1,), 0.5, dtype=torch.float64)  # the paper's simplified weight of a single difference
    predictor = half if order == 2 else torch.linalg.solve(powers[:-1, :-1], right[:-1])
    corrector = half if order == 1 else torch.linalg.solve(powers, right)
    predicted = _denoised_weights(predictor / positions[:-1], h, scale)
    return predicted, _denoised_weights(corrector / positions, h, scale).roll(1)


def _denoised_weights(differences: Tensor, h: float, scale: float) -> Tensor:
    """The weights of the newest prediction and of the others, from the factors of the others' differences from it."""
    return torch.cat([(-math.expm1(-h) + scale * differences.sum())[None], -scale * differences])
