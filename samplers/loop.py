"""The loop: applies a table to a denoiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm.auto import trange

from .table import SolverTable

__all__ = ["Callback", "Denoiser", "next_state", "sample_table"]

Callback = Callable[[dict[str, Any]], None]


class Denoiser(Protocol):
    """A model with k-diffusion's interface."""

    def __call__(self, x: Tensor, sigma: Tensor, /, **extra_args: Any) -> Tensor:
        """Denoises x [B, ...] at noise levels sigma [B], which are float32 or wider."""
        ...


def sample_table(
    model: Denoiser,
    x: Tensor,
    table: SolverTable,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    start: int = 0,
    history: Mapping[int, Tensor] | None = None,
) -> Tensor:
    """Runs a table: the state at `table.sigma_end`, after exactly `table.nfe` model calls.

    Half-precision states are kept and combined in float32; the model sees them in their own dtype. Gradients are
    recorded as usual in torch: call this under `torch.no_grad()`, as `sample_solver` does. A state that the model, a
    callback or the caller has seen is never modified in place.

    Args:
        model: k-diffusion denoiser, `model(x, sigma, **extra_args) -> denoised`. A half-precision network must cast
            its embedding of sigma.
        x: Start state at noise level `table.levels[start]`, shape [B, ...], any rank.
        table: The solver.
        extra_args: Passed to the model.
        callback: Called in every step, before the update, with its x, i, sigma, sigma_hat and denoised.
        disable: Hides the progress bar; None hides it without a terminal.
        start: The first step to run, to continue an earlier run.
        history: Entries h_j of earlier steps. If it has h_start, step `start` makes no call and no callback.

    Raises:
        ValueError: x is not a floating-point tensor with a batch dimension.
    """
    if not x.is_floating_point() or x.ndim == 0:
        raise ValueError(f"x must be a floating-point state [B, ...], got {x.dtype} of shape {list(x.shape)}")
    extra_args = {} if extra_args is None else extra_args
    dtype = x.dtype
    x = x.to(torch.promote_types(dtype, torch.float32))
    s_in = x.new_ones([x.shape[0]])
    sigmas = table.sigmas.to(x.dtype).to(x.device)  # in this order: not every device has float64
    divisors, scale, coeffs = _rows(table, x)
    entries = dict(history or {})
    for i in trange(start, table.steps, disable=disable):
        if i not in entries:
            if i == 0 and table.analytic_first:
                # The derivative for pure noise, whose denoised prediction is almost 0.
                entries[i] = x / (1 + table.sigma_start**2) ** 0.5
                denoised = x - divisors[i] * entries[i]
            else:
                denoised = model(x.to(dtype), sigmas[i] * s_in, **extra_args).to(x.dtype)
                entries[i] = denoised if table.entry == "denoised" else (x - denoised).div_(divisors[i])
            if callback is not None:
                callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        x = next_state(x, scale[i], coeffs[i][: i + 1], entries)
        for j in [j for j in entries if not any(_is_used(row[j]) for row in coeffs[i + 1 :])]:
            del entries[j]
    return x.to(dtype)


def _rows(table: SolverTable, x: Tensor) -> tuple[Sequence[Any], Sequence[Any], Sequence[Sequence[Any]]]:
    """Sigmas, scale and coeffs as Python floats, to avoid device syncs, or as 0-d tensors if one carries a gradient."""
    if not table.requires_grad:
        return table.sigmas.tolist(), table.scale.tolist(), table.coeffs.tolist()
    sigmas, scale, coeffs = (t.to(x.dtype).to(x.device) for t in (table.sigmas, table.scale, table.coeffs))
    return sigmas.unbind(), scale.unbind(), [row.unbind() for row in coeffs]


def _is_used(coeff: float | Tensor) -> bool:
    return isinstance(coeff, Tensor) or coeff != 0


def next_state(
    x: Tensor, scale: float | Tensor, coeffs: Sequence[float | Tensor], entries: Mapping[int, Tensor]
) -> Tensor:
    """x_{i+1} = scale_i * x_i + sum_{j<=i} coeffs_ij * h_j, with one new tensor and one pass over it per term.

    Args:
        x: The state x_i, shape [B, ...].
        scale: The table's scale_i.
        coeffs: The table's row i up to its diagonal; entries of factor 0 are not read.
        entries: The history h_j by j.
    """
    total = x if isinstance(scale, float) and scale == 1 else scale * x
    for j, coeff in enumerate(coeffs):
        if not _is_used(coeff):
            continue
        if isinstance(coeff, Tensor):
            total = total + coeff * entries[j]
        elif total is x:
            total = torch.add(x, entries[j], alpha=coeff)
        else:
            total.add_(entries[j], alpha=coeff)
    return total
