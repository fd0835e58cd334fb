"""The WebUI's results with the tiny models, by hand: noise from the seed, the models' answers, the table's rows.

Written out from the hosts' conventions and the tables' numbers; only the table comes from Learned Solvers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from learned_solvers.samplers import EDMNoise, FlowNoise, SolverTable, VPNoise
from oracles import sd_sigmas
from torch import Tensor
from torch.testing import assert_close

MEAN, VARIANCE, GUIDES = 0.3, 0.7**2, 5.0  # of tiny_engine.py and tiny_a1111/run.py
SIGMAS = sd_sigmas()
SD = VPNoise.from_sigmas(SIGMAS.float())  # in float32, as in the hosts
SHADE = 200  # of the grey picture from which image-to-image starts
PICTURE = torch.full((1, 4, 8, 8), SHADE / 255 * 2 - 1, dtype=torch.float64)

Answer = Callable[[Tensor, float, float], Tensor]  # (x, sigma, mean of the data) -> denoised
Denoiser = Callable[[Tensor, float], Tensor]


def noise(seeds: Sequence[int] = (1,), channels: int = 4, height: int = 64, width: int = 64, ratio: int = 8) -> Tensor:
    """The initial noise of pictures of height x width pixels, as the WebUI draws it on the CPU."""
    shape = (channels, height // ratio, width // ratio)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]).double()


def discrete(x: Tensor, sigma: float, mean: float, *, v: bool = False, table: Tensor = SIGMAS) -> Tensor:
    """Forge's denoised state from an eps or v network, which it calls at the nearest timestep of the model's table."""
    level = float(table[int((math.log(sigma) - table.log()).abs().argmin())])
    inside = x / math.sqrt(sigma**2 + 1) * math.sqrt(level**2 + 1)
    x0 = edm(inside, level, mean)
    if v:
        answer = (inside / (level**2 + 1) - x0) * math.sqrt(level**2 + 1) / level
        return x / (sigma**2 + 1) - answer * sigma / math.sqrt(sigma**2 + 1)
    return x - (inside - x0) / level * sigma


def flow(x: Tensor, sigma: float, mean: float) -> Tensor:
    """Forge's denoised state from a flow network, which it calls at sigma."""
    kept = 1 - sigma
    return mean + kept * VARIANCE / (kept**2 * VARIANCE + sigma**2) * (x - kept * mean)


def edm(x: Tensor, sigma: float, mean: float) -> Tensor:
    """The exact denoised state: of Forge's EDM networks, and of k-diffusion, which uses fractional timesteps."""
    return (VARIANCE * x + sigma**2 * mean) / (VARIANCE + sigma**2)


MODELS = {  # a model's answer, schedule, channels, architecture in Forge and in Forge Neo
    "eps": (discrete, SD, 4, "SD15", "SD15"),
    "v": (partial(discrete, v=True), SD, 4, "SD20", "SDXL"),
    "flux": (flow, FlowNoise(), 16, "Flux", "Flux"),
    "edm": (edm, EDMNoise(0.002, 120.0), 4, "SDXL", None),
    "sdxl": (discrete, SD, 4, None, "SDXL"),
    "klein": (flow, FlowNoise(), 128, None, "Flux2"),
    "zimage": (flow, FlowNoise(), 16, None, "ZImage"),
    "qwen": (flow, FlowNoise(), 16, None, "QwenImage"),
    "wan": (flow, FlowNoise(), 16, None, "WAN21_T2V"),
}


def guided(answer: Answer, scale: float = 3.0, mean: float = MEAN, prompt: str = "a cat") -> Denoiser:
    """The denoiser under classifier-free guidance; the data's mean moves with the prompt's length."""

    def denoise(x: Tensor, sigma: float) -> Tensor:
        negative, positive = answer(x, sigma, mean), answer(x, sigma, mean + GUIDES * len(prompt) / 100)
        return negative + scale * (positive - negative)

    return denoise


def by_hand(table: SolverTable, x: Tensor, denoisers: Denoiser | Sequence[Denoiser], start: int = 0) -> Tensor:
    """The end state of the rows from `start` on, for the state x at the noise level of row `start`.

    `denoisers` is one for all rows, or one for each. The first remaining entry gets the weight of those before it:
    a derivative has levels_j / sigmas_j of the noise, and coefficients are converted by that ratio.
    """
    entries: list[Tensor] = []
    for i in range(start, table.steps):
        sigma = float(table.sigmas[i])
        if i == 0 and table.analytic_first:
            entries.append(x / math.sqrt(1 + table.sigma_start**2))
        else:
            denoised = (denoisers if callable(denoisers) else denoisers[i - start])(x, sigma)
            entries.append(denoised if table.entry == "denoised" else (x - denoised) / sigma)
        row = table.coeffs[i].tolist()
        parts = [1.0] * (i + 1)  # an entry's part of the noise on a straight path
        if table.entry == "derivative":
            parts = (table.levels[: i + 1] / table.sigmas[: i + 1]).tolist()
        row[start] += sum(c * part / parts[start] for c, part in zip(row[:start], parts, strict=False))
        x = float(table.scale[i]) * x + sum(c * h for c, h in zip(row[start : i + 1], entries, strict=True))
    return x


def from_noise(table: SolverTable, denoisers: Denoiser | Sequence[Denoiser], *seeds: int, **size: int) -> Tensor:
    """The latents of text-to-image."""
    return by_hand(table, noise(seeds or (1,), **size) * table.sigma_start, denoisers)


def from_picture(table: SolverTable, denoiser: Denoiser, start: int, flux: bool = False) -> Tensor:
    """The latent of image-to-image from the grey picture: noise is added to it, for FLUX to (1 - sigma) of it."""
    sigma, channels = float(table.levels[start]), 16 if flux else 4
    picture = (1 - sigma if flux else 1) * PICTURE[:, :1]
    return by_hand(table, picture + sigma * noise(channels=channels), denoiser, start)


def from_first(table: SolverTable, first: Tensor, denoiser: Denoiser, start: int) -> Tensor:
    """The latent of hires fix from the first pass's, enlarged twofold."""
    upscaled = torch.nn.functional.interpolate(first, size=(16, 16), mode="bilinear", antialias=False)
    return by_hand(table, upscaled + noise(height=128, width=128) * float(table.levels[start]), denoiser, start)


def close(latent: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    latent = latent.squeeze(2) if latent.ndim == 5 else latent  # a video of one frame
    assert_close(latent.double(), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
