"""What Forge must produce with the tiny models, by hand: noise from the seed, the models' answers, the table's rows.

Written out from Forge's conventions and the tables' numbers; of Learned Solvers only the table itself is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from learned_solvers.samplers import SolverTable
from oracles import sd_sigmas
from torch import Tensor

MEAN, REFINED_MEAN, VARIANCE, GUIDES = 0.3, -0.5, 0.7**2, 5.0  # of tiny_engine.py

SIGMAS = sd_sigmas()

Answer = Callable[[Tensor, float, float], Tensor]  # (x, sigma, mean of the data) -> denoised
Denoise = Callable[[Tensor, float], Tensor]


def noise(seeds: Sequence[int], channels: int = 4, height: int = 64, width: int = 64) -> Tensor:
    """Returns the start noise of pictures of height x width pixels, as Forge draws it on the CPU."""
    shape = (channels, height // 8, width // 8)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]).double()


def discrete(x: Tensor, sigma: float, mean: float, *, v: bool = False, table: Tensor = SIGMAS) -> Tensor:
    """Returns what Forge makes of an eps or v network: it asks at the nearest timestep of the model's table."""
    t = int((math.log(sigma) - table.log()).abs().argmin())
    asked = float(table[t])
    inside = x / math.sqrt(sigma**2 + 1) * math.sqrt(asked**2 + 1)
    x0 = (VARIANCE * inside + asked**2 * mean) / (VARIANCE + asked**2)
    if v:
        answer = (inside / (asked**2 + 1) - x0) * math.sqrt(asked**2 + 1) / asked
        return x / (sigma**2 + 1) - answer * sigma / math.sqrt(sigma**2 + 1)
    return x - (inside - x0) / asked * sigma


def flow(x: Tensor, sigma: float, mean: float) -> Tensor:
    """Returns what Forge makes of a flow network: it asks at sigma itself."""
    kept = 1 - sigma
    return mean + kept * VARIANCE / (kept**2 * VARIANCE + sigma**2) * (x - kept * mean)


def edm(x: Tensor, sigma: float, mean: float) -> Tensor:
    """Returns what Forge makes of an EDM network, whose time is exact."""
    return (VARIANCE * x + sigma**2 * mean) / (VARIANCE + sigma**2)


def guided(answer: Answer, prompt: str, scale: float, mean: float = MEAN) -> Denoise:
    """Returns the denoiser under classifier-free guidance; the data's mean moves with the prompt's length."""

    def denoise(x: Tensor, sigma: float) -> Tensor:
        without, with_prompt = answer(x, sigma, mean), answer(x, sigma, mean + GUIDES * len(prompt) / 100)
        return without + scale * (with_prompt - without)

    return denoise


def by_hand(
    table: SolverTable, x: Tensor, denoisers: Sequence[Callable[[Tensor, float], Tensor]], start: int = 0
) -> Tensor:
    """Returns the end state of the rows from `start` on, of which the first that remains takes what lost ones had.

    Where model calls stand at other levels than the states, a derivative has levels_j / sigmas_j of the noise, and
    coefficients change hands at that ratio.

    Args:
        table: The solver's whole grid.
        x: State at the noise level of row `start`.
        denoisers: One per row that is run, or one for all.
        start: The row to begin with.
    """
    entries: list[Tensor] = []
    for i in range(start, table.steps):
        sigma = float(table.sigmas[i])
        if i == 0 and table.analytic_first:
            entries.append(x / math.sqrt(1 + table.sigma_start**2))
        else:
            denoised = denoisers[(i - start) % len(denoisers)](x, sigma)
            entries.append(denoised if table.entry == "denoised" else (x - denoised) / sigma)
        row = table.coeffs[i].tolist()
        seen = [1.0] * (i + 1)  # what an entry has of the noise on a straight path
        if table.entry == "derivative":
            seen = (table.levels[: i + 1] / table.sigmas[: i + 1]).tolist()
        row[start] += sum(c * s / seen[start] for c, s in zip(row[:start], seen, strict=False))
        x = float(table.scale[i]) * x + sum(c * h for c, h in zip(row[start : i + 1], entries, strict=True))
    return x
