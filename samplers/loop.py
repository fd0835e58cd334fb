"""The loop: applies a table to a denoiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import trange

from .table import SolverTable

__all__ = ["Callback", "Denoiser", "continue_table", "sample_table"]

Denoiser = Callable[..., Tensor]
Callback = Callable[[dict[str, Any]], None]


class _Row(NamedTuple):
    """One step, ready for the device: numbers, or 0-d tensors where a gradient is wanted."""

    sigma: float | Tensor
    scale: float | Tensor
    terms: list[tuple[int, float | Tensor]]
    expired: list[int]


def sample_table(
    model: Denoiser,
    x: Tensor,
    table: SolverTable,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
) -> Tensor:
    """Returns the state at `table.sigma_end`, after exactly `table.nfe` calls of the model.

    Half-precision states are carried, combined and divided in float32, the model sees them in their own dtype. A graph
    is recorded as elsewhere in torch: call it under `torch.no_grad()`, as `sample_dyweight` does by itself.

    Args:
        model: k-diffusion denoiser, `model(x, sigma, **extra_args) -> denoised`, with sigma [B], float32 or wider: a
            network in half precision casts what it makes of it.
        x: Start state at noise level `table.sigma_start`, shape [B, ...], any rank.
        table: The solver.
        extra_args: Passed to the model.
        callback: Called every step, before the update, with x, i, sigma, sigma_hat and denoised of that step.
        disable: Hides the progress bar; None hides it where there is no terminal.

    Raises:
        ValueError: x is not a floating-point tensor with a batch dimension.
    """
    return continue_table(model, x, table, {}, 0, extra_args, callback, disable)


def continue_table(
    model: Denoiser,
    x: Tensor,
    table: SolverTable,
    history: Mapping[int, Tensor],
    start: int,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
) -> Tensor:
    """Returns the end state of a run that stands at the state x of step `start`; otherwise as `sample_table`.

    Args:
        model: As in `sample_table`.
        x: State x_start, at noise level `table.levels[start]`.
        table: The solver.
        history: Entries h_j that are known, of the steps before `start`; where h_start is among them, that step makes
            no model call (and no callback).
        start: The step to go on with.
        extra_args: As in `sample_table`.
        callback: As in `sample_table`.
        disable: As in `sample_table`.
    """
    if not x.is_floating_point() or x.ndim == 0:
        raise ValueError(f"x must be a floating-point state [B, ...], got {x.dtype} of shape {list(x.shape)}")
    extra_args = {} if extra_args is None else extra_args
    dtype = x.dtype
    x = x.to(torch.promote_types(dtype, torch.float32))
    s_in = x.new_ones([x.shape[0]])
    sigmas = table.sigmas.to(x.dtype).to(x.device)  # in this order: not every device has float64
    known = dict(history)
    rows = _rows(table, x)
    for i in trange(start, table.steps, disable=disable):
        row = rows[i]
        if i not in known:
            if i == 0 and table.analytic_first:
                # The derivative that pure noise has; the picture it predicts is the mean of nothing, almost 0.
                entry = x / (1 + table.sigma_start**2) ** 0.5
                denoised = x - row.sigma * entry
            else:
                denoised = model(x.to(dtype), sigmas[i] * s_in, **extra_args).to(x.dtype)
                entry = denoised if table.history == "denoised" else (x - denoised).div_(row.sigma)
            if callback is not None:
                callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
            known[i] = entry
        x = _combined(row, x, known)
        for j in row.expired:
            known.pop(j, None)
    return x.to(dtype)


def _combined(row: _Row, x: Tensor, known: Mapping[int, Tensor]) -> Tensor:
    """Returns scale * x plus the row's terms, in one new state and one pass over it per term.

    A state that has been handed out (to the model, a callback, the caller) is never written to.
    """
    new = x if isinstance(row.scale, float) and row.scale == 1 else row.scale * x
    for j, coeff in row.terms:
        if isinstance(coeff, Tensor):
            new = new + coeff * known[j]
        elif new is x:
            new = torch.add(x, known[j], alpha=coeff)
        else:
            new.add_(known[j], alpha=coeff)
    return new


def _rows(table: SolverTable, x: Tensor) -> list[_Row]:
    """Returns the table's rows as Python floats (nothing waits for the device) or, for a gradient, as 0-d tensors."""
    n = table.steps
    if table.requires_grad:
        used = [[j <= i for j in range(n)] for i in range(n)]
        cells = [t.to(x.dtype).to(x.device) for t in (table.sigmas, table.scale, table.coeffs)]
        sigmas, scale, coeffs = cells[0].unbind(), cells[1].unbind(), [row.unbind() for row in cells[2]]
    else:
        sigmas, scale, coeffs = table.sigmas.tolist(), table.scale.tolist(), table.coeffs.tolist()
        used = [[coeff != 0 for coeff in row] for row in coeffs]
    last_use = [max((i for i in range(n) if used[i][j]), default=j) for j in range(n)]
    return [
        _Row(
            sigmas[i],
            scale[i],
            [(j, coeffs[i][j]) for j in range(i + 1) if used[i][j]],
            [j for j in range(i + 1) if last_use[j] == i],
        )
        for i in range(n)
    ]
