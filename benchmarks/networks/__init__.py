"""Small networks that the benchmarks measure on, beside the bundled digits: trained here, weights in this folder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["guided"]


def guided(
    denoised: Callable[..., Tensor], x: Tensor, sigma: Tensor, tokens: Tensor, guidance: float | Tensor
) -> Tensor:
    """Returns the denoised picture with classifier-free guidance: one evaluation at guidance 1, else two in a batch.

    guidance may be one number per row, shape [B].
    """
    if isinstance(guidance, Tensor):
        guidance = guidance.to(x).view(-1, 1, 1, 1)
    elif guidance == 1.0:
        return denoised(x, sigma, tokens)
    both = torch.cat([tokens, torch.zeros_like(tokens)])
    conditional, null = denoised(x.repeat(2, 1, 1, 1), sigma.repeat(2), both).chunk(2)
    return null + guidance * (conditional - null)
