"""Grids that others published or that only the hosts have, as lists of noise levels: for peers, not for fits.

Align Your Steps (arXiv 2404.14507) and Optimal Steps (arXiv 2503.21774) are lists for one step count, interpolated
log-linearly to others; GITS (arXiv 2405.11326) is a list per step count. Numbers as in ComfyUI's nodes of these names;
like there, the last level is 0. GITS is zju-pi/diff-sampler's (Apache-2.0), at ComfyUI's default coefficient 1.20.
"beta" and a flow model's "karras 7" are ComfyUI's schedulers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ...samplers import EDMNoise, FlowNoise, Grid, VPNoise
from ...samplers.schedules import Noise

__all__ = ["Levels", "beta_levels", "log_linear", "published_grids"]

Levels = Callable[[int], Tensor | None]
"""Returns the noise levels of a number of steps, shape [steps + 1], or None where the grid has none."""

ALIGN_YOUR_STEPS = {
    "SD1": (14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092, 0.9642583904,
            0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582),
    "SDXL": (14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141, 0.5550693289,
             0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582),
    "SVD": (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}  # fmt: skip
OPTIMAL_STEPS = {
    "FLUX": (0.9968, 0.9886, 0.9819, 0.975, 0.966, 0.9471, 0.9158, 0.8287, 0.5512, 0.2808, 0.001),
    "Wan": (1.0, 0.997, 0.995, 0.993, 0.991, 0.989, 0.987, 0.985, 0.98, 0.975, 0.973, 0.968, 0.96, 0.946, 0.927, 0.902,
            0.864, 0.776, 0.539, 0.208, 0.001),
    "Chroma": (0.992, 0.99, 0.988, 0.985, 0.982, 0.978, 0.973, 0.968, 0.961, 0.953, 0.943, 0.931, 0.917, 0.9, 0.881,
               0.858, 0.832, 0.802, 0.769, 0.731, 0.69, 0.646, 0.599, 0.55, 0.501, 0.451, 0.402, 0.355, 0.311, 0.27,
               0.232, 0.199, 0.169, 0.143, 0.12, 0.101, 0.084, 0.07, 0.058, 0.048, 0.001),
}  # fmt: skip
GITS = (  # the inner levels for 2, 3, ... 20 steps
    (0.803307,),
    (1.56271636, 0.52423614),
    (2.36326075, 0.92192322, 0.36617002),
    (2.84484982, 1.24153244, 0.59516323, 0.25053367),
    (5.85520077, 2.05039096, 0.95350921, 0.45573691, 0.17026083),
    (5.85520077, 2.45070267, 1.24153244, 0.64427125, 0.29807833, 0.09824532),
    (5.85520077, 2.45070267, 1.36964464, 0.803307, 0.45573691, 0.25053367, 0.09824532),
    (5.85520077, 2.84484982, 1.61558151, 0.95350921, 0.59516323, 0.36617002, 0.19894916, 0.09824532),
    (5.85520077, 2.84484982, 1.67050016, 1.08895338, 0.74807048, 0.50118381, 0.32104823, 0.19894916, 0.09824532),
    (5.85520077, 2.95596409, 1.84880662, 1.24153244, 0.83188516, 0.59516323, 0.41087446, 0.27464288, 0.17026083,
     0.09824532),
    (5.85520077, 3.07277966, 1.98035145, 1.36964464, 0.95350921, 0.69515091, 0.50118381, 0.36617002, 0.25053367,
     0.17026083, 0.09824532),
    (6.77309084, 3.46139455, 2.36326075, 1.56271636, 1.08895338, 0.803307, 0.59516323, 0.45573691, 0.34370604,
     0.25053367, 0.17026083, 0.09824532),
    (6.77309084, 3.46139455, 2.45070267, 1.61558151, 1.162866, 0.86115354, 0.64427125, 0.50118381, 0.38853383,
     0.29807833, 0.22545385, 0.17026083, 0.09824532),
    (7.49001646, 4.65472794, 3.07277966, 2.12350607, 1.51179266, 1.08895338, 0.83188516, 0.64427125, 0.50118381,
     0.38853383, 0.29807833, 0.22545385, 0.17026083, 0.09824532),
    (7.49001646, 4.65472794, 3.07277966, 2.12350607, 1.51179266, 1.08895338, 0.83188516, 0.64427125, 0.50118381,
     0.41087446, 0.32104823, 0.25053367, 0.19894916, 0.13792117, 0.09824532),
    (7.49001646, 4.65472794, 3.07277966, 2.12350607, 1.51179266, 1.08895338, 0.83188516, 0.64427125, 0.50118381,
     0.41087446, 0.34370604, 0.27464288, 0.22545385, 0.17026083, 0.13792117, 0.09824532),
    (7.49001646, 4.65472794, 3.07277966, 2.19988537, 1.61558151, 1.20157266, 0.92192322, 0.72133851, 0.57119018,
     0.45573691, 0.36617002, 0.29807833, 0.25053367, 0.19894916, 0.17026083, 0.13792117, 0.09824532),
    (7.49001646, 4.65472794, 3.07277966, 2.19988537, 1.61558151, 1.24153244, 0.95350921, 0.74807048, 0.59516323,
     0.4783645, 0.38853383, 0.32104823, 0.27464288, 0.22545385, 0.19894916, 0.17026083, 0.13792117, 0.09824532),
    (7.49001646, 4.65472794, 3.07277966, 2.19988537, 1.61558151, 1.24153244, 0.95350921, 0.74807048, 0.59516323,
     0.50118381, 0.41087446, 0.34370604, 0.29807833, 0.25053367, 0.22545385, 0.19894916, 0.17026083, 0.13792117,
     0.09824532),
)  # fmt: skip


def published_grids(noise: Noise) -> dict[str, Levels]:
    """Returns the lists that are defined on a kind of noise: those that start where the model does.

    A list for flow models that starts a little below 1 is made to start at 1, where the sample does.
    """
    if isinstance(noise, FlowNoise):
        grids: dict[str, Levels] = {f"beta, shift {s:g}": _beta(noise, s) for s in (1.0, 3.0)}
        grids["karras 7"] = lambda steps: torch.cat([_to_a_thousandth(steps - 1), torch.zeros(1, dtype=torch.float64)])
        return grids | {f"OSS {name}": _oss(levels) for name, levels in OPTIMAL_STEPS.items()}
    grids = {"beta": _beta(noise, 1.0)}
    for name, levels in ALIGN_YOUR_STEPS.items():
        if abs(levels[0] / noise.sigma_max - 1) < 1e-3:
            grids[f"AYS {name}"] = lambda steps, levels=levels: log_linear(levels, steps)
    if isinstance(noise, VPNoise) and abs(14.61464119 / noise.sigma_max - 1) < 1e-3:
        grids["GITS"] = _gits
    return grids


def log_linear(levels: Sequence[float], steps: int) -> Tensor:
    """Returns a list interpolated to a step count, even in the index and linear in log sigma; its last level is 0."""
    own = np.array(levels)
    if steps + 1 != len(own):
        places = np.linspace(0, 1, steps + 1)
        own = np.exp(np.interp(places, np.linspace(0, 1, len(own)), np.log(own)))
    own[-1] = 0
    return torch.from_numpy(own)


def beta_levels(steps: int, sigma_at: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns ComfyUI's `beta` grid: timesteps at the quantiles of the distribution Beta(0.6, 0.6), then 0.

    Args:
        steps: Number of steps; below 250, so that no two timesteps are the same.
        sigma_at: Noise levels of whole timesteps 0 ... 999.
    """
    quantiles = np.sin(np.interp(1 - np.linspace(0, 1, steps, endpoint=False), *_beta_distribution())) ** 2
    timesteps = torch.from_numpy(np.rint(quantiles * 999))
    return torch.cat([sigma_at(timesteps), torch.zeros(1, dtype=torch.float64)])


@cache
def _beta_distribution() -> tuple[np.ndarray, np.ndarray]:
    """Returns the distribution function of Beta(0.6, 0.6) at angles a, x = sin^2(a): (values, angles)."""
    # In a the density is proportional to (sin a cos a)^0.2, which has no pole: summed over a fine grid.
    angle = (np.arange(1 << 16) + 0.5) * (np.pi / 2 / (1 << 16))
    below = np.cumsum((np.sin(angle) * np.cos(angle)) ** 0.2)
    return below / below[-1], angle + angle[0]


def _beta(noise: Noise, shift: float) -> Levels:
    def sigma_at(timestep: Tensor) -> Tensor:
        if isinstance(noise, VPNoise):
            return noise.sigma_at_index(timestep)
        if isinstance(noise, EDMNoise):  # ComfyUI's table of such a model is even in log sigma
            return noise.sigma_min * (noise.sigma_max / noise.sigma_min) ** (timestep / 999)
        t = (timestep + 1) / 1000
        return shift * t / (1 + (shift - 1) * t)

    return lambda steps: beta_levels(steps, sigma_at)


def _oss(levels: Sequence[float]) -> Levels:
    def of(steps: int) -> Tensor | None:
        if steps < 3:  # as few as the node takes
            return None
        own = log_linear(levels, steps)
        own[0] = 1.0
        return own

    return of


def _gits(steps: int) -> Tensor | None:
    if not 2 <= steps <= len(GITS) + 1:
        return None
    return torch.tensor([14.61464119, *GITS[steps - 2], 0.0], dtype=torch.float64)


def _to_a_thousandth(steps: int) -> Tensor:
    return Grid("polynomial", {"rho": 7.0}).levels(steps, EDMNoise(1e-3, 1.0)) if steps else torch.ones(1).double()
