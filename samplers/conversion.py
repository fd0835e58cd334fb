"""Conversion of a table to the other kind of history entry.

A consistent method (rows with scale + sum of coeffs = 1 for denoised entries, scale 1 for derivatives) has both forms:
x - D = sigma * h, and older states are sums of the start and the entries since.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .table import SolverTable

__all__ = ["with_denoised", "with_derivatives"]


def with_derivatives(table: SolverTable) -> SolverTable:
    """The table with entry "derivative" and the same states for every model."""
    if table.entry == "derivative":
        return table
    _check_sums(table.scale + table.coeffs.sum(1), "scale plus coeffs must sum to 1")
    n = table.steps
    states = torch.zeros(n + 1, n, dtype=torch.float64)  # x_i = x_0 + states_i . h
    for i in range(n):
        denoised = states[:n] - torch.diag(table.sigmas)  # D_j = x_j - sigma_j h_j
        states[i + 1] = table.scale[i] * states[i] + table.coeffs[i] @ denoised
    ones = torch.ones(n, dtype=torch.float64)
    return SolverTable(table.levels, table.sigmas, ones, states.diff(dim=0).tril(), "derivative")


def with_denoised(table: SolverTable) -> SolverTable:
    """The table with entry "denoised" and the same states for every model."""
    if table.entry == "denoised":
        return table
    _check_sums(table.scale, "scale must be 1")
    if table.analytic_first:
        raise ValueError("an analytic first step has no denoised entry; call the model in the first step instead")
    n = table.steps
    of_start = torch.zeros(n + 1, dtype=torch.float64)  # x_i = of_start_i * x_0 + states_i . D
    states = torch.zeros(n + 1, n, dtype=torch.float64)
    of_start[0] = 1
    for i in range(n):
        weights = table.coeffs[i, : i + 1] / table.sigmas[: i + 1]
        of_start[i + 1] = of_start[i] + weights @ of_start[: i + 1]
        states[i + 1] = states[i] + weights @ states[: i + 1]
        states[i + 1, : i + 1] -= weights
    if bool((of_start[:-1].abs() < 1e-12).any()):
        raise ValueError("a state before the last is independent of the start, so the table has no denoised form")
    scale = of_start[1:] / of_start[:-1]
    return SolverTable(
        table.levels, table.sigmas, scale, (states[1:] - scale[:, None] * states[:-1]).tril(), "denoised"
    )


def _check_sums(sums: Tensor, rule: str) -> None:
    if not bool(torch.isclose(sums, torch.ones_like(sums), atol=1e-9).all()):
        raise ValueError(f"{rule} in every row to convert the entries, got {sums.tolist()}")
