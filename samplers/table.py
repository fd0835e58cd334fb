"""The solver table: a frozen record per solver, step count and noise schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["SolverTable"]

Entry = Literal["derivative", "denoised"]


@dataclass(frozen=True, eq=False)
class SolverTable:
    """The coefficients of a linear multistep solver with N steps; `sample_table` applies it.

        h_i     = (x_i - D(x_i, sigmas_i)) / sigmas_i        entry "derivative"
                = D(x_i, sigmas_i)                            entry "denoised"
        h_0     = x_0 / sqrt(1 + sigma_start^2)               analytic_first: no network call
        x_{i+1} = scale_i * x_i + sum_{j<=i} coeffs_ij * h_j

    Every method, classical or learned, is a table: Euler is scale 1, coeffs diag(levels_{i+1} - levels_i), entry
    "derivative". All tensors are float64 on the CPU and may carry gradients.

    Args:
        levels: Noise level of each state x_0 ... x_N, shape [N + 1]; the last may be 0.
        sigmas: Noise level at which the model is called in each step, shape [N]. Differs from `levels` where a solver
            has learned to call the model at a level other than the state's.
        scale: Factor of the state, shape [N].
        coeffs: Factors of the history entries, shape [N, N], lower-triangular.
        entry: What a history entry holds: "derivative" dx/dsigma, or "denoised".
        analytic_first: The first entry is x_0 / sqrt(1 + sigma_start^2) instead of a network call: pure noise is its
            own eps (AFS; GENIE, arXiv 2210.05475), in diff-sampler's form.

    Raises:
        ValueError: A shape, dtype, sign or finiteness rule is broken.
    """

    levels: Tensor
    sigmas: Tensor
    scale: Tensor
    coeffs: Tensor
    entry: Entry
    analytic_first: bool = False

    def __post_init__(self) -> None:
        n = self.sigmas.shape[0] if self.sigmas.ndim else 0
        if n == 0:
            raise ValueError("sigmas must have at least one entry, one per step")
        for name, shape in (("levels", (n + 1,)), ("sigmas", (n,)), ("scale", (n,)), ("coeffs", (n, n))):
            self._check_tensor(name, shape)
        if self.entry not in ("derivative", "denoised"):
            raise ValueError(f'entry must be "derivative" or "denoised", got {self.entry!r}')
        if self.analytic_first and self.entry != "derivative":
            raise ValueError('analytic_first needs entry "derivative"; call the model in the first step instead')
        if not bool((self.sigmas > 0).all()):
            raise ValueError(f"sigmas must be positive, got {self.sigmas.tolist()}; only the last of levels may be 0")
        if bool((self.coeffs.triu(1) != 0).any()):
            raise ValueError("coeffs must be lower-triangular: row i may only use history entries 0 ... i")
        if self.sigma_start <= 0 or self.sigma_end < 0:
            raise ValueError(f"levels must start above 0 and end at 0 or above, got {self.levels.tolist()}")

    def _check_tensor(self, name: str, shape: tuple[int, ...]) -> None:
        tensor = getattr(self, name)
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {list(shape)} for {self.steps} sigmas, got {list(tensor.shape)}")
        if tensor.dtype != torch.float64 or tensor.device.type != "cpu":
            raise ValueError(
                f"{name} must be float64 on the CPU, got {tensor.dtype} on {tensor.device}; use .double().cpu()"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} must be finite, got {tensor.tolist()}")

    @property
    def steps(self) -> int:
        """Number of updates of the state."""
        return self.sigmas.shape[0]

    @property
    def nfe(self) -> int:
        """Number of model calls (network function evaluations)."""
        return self.steps - self.analytic_first

    @property
    def sigma_start(self) -> float:
        """Noise level of the start."""
        return self.levels[0].item()

    @property
    def sigma_end(self) -> float:
        """Noise level of the result; 0 for a clean sample."""
        return self.levels[-1].item()

    @property
    def requires_grad(self) -> bool:
        """Whether any of its tensors carries a gradient."""
        return any(t.requires_grad for t in (self.levels, self.sigmas, self.scale, self.coeffs))
