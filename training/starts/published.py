"""Published grids and grids of the hosts, as lists of noise levels: for peers, not for fits.

published.json holds Align Your Steps and Optimal Steps (a list for one step count, interpolated to others) and GITS (a
list per step count), with the numbers of ComfyUI's nodes of these names. Each entry names its source, its kinds of
noise and its first level. "beta" and a flow model's "karras 7" are ComfyUI's schedulers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...samplers import EDMNoise, Grid
from ...samplers.schedules import Noise

__all__ = ["Levels", "beta_levels", "log_linear", "published_grids", "published_lists"]

Levels = Callable[[int], Tensor | None]
"""Noise levels for a number of steps, shape [steps + 1], or None if the grid has none."""


def published_grids(noise: Noise) -> dict[str, Levels]:
    """Lists and schedulers, by name, that are defined on a kind of noise and start at the model's highest level."""
    computed = {name: partial(levels, noise) for name, (kinds, levels) in _COMPUTED.items() if noise.kind in kinds}
    stored = {
        name: partial(_stored_levels, entry)
        for name, entry in published_lists().items()
        if noise.kind in entry["kinds"] and abs(entry["sigma_max"] / noise.sigma_max - 1) < 1e-3
    }
    return {**computed, **stored}


@cache
def published_lists() -> Mapping[str, Mapping[str, Any]]:
    """The content of published.json."""
    return json.loads(Path(__file__).with_name("published.json").read_text("utf-8"))


def log_linear(levels: Sequence[float], steps: int) -> Tensor:
    """A list interpolated to a step count, uniform in the index and linear in log sigma; its last level is 0."""
    result = np.array(levels)
    if steps + 1 != len(result):
        positions = np.linspace(0, 1, steps + 1)
        result = np.exp(np.interp(positions, np.linspace(0, 1, len(result)), np.log(result)))
    result[-1] = 0
    return torch.from_numpy(result)


def beta_levels(steps: int, sigma_at: Callable[[Tensor], Tensor]) -> Tensor:
    """ComfyUI's `beta` grid: timesteps at the quantiles of the distribution Beta(0.6, 0.6), then 0.

    Below 250 steps all timesteps differ. `sigma_at` returns the noise levels of whole timesteps 0 ... 999.
    """
    quantiles = np.sin(np.interp(1 - np.linspace(0, 1, steps, endpoint=False), *_beta_distribution())) ** 2
    timesteps = torch.from_numpy(np.rint(quantiles * 999))
    return torch.cat([sigma_at(timesteps), torch.zeros(1, dtype=torch.float64)])


@cache
def _beta_distribution() -> tuple[np.ndarray, np.ndarray]:
    """Distribution function of Beta(0.6, 0.6) at angles a, x = sin^2(a): (values, angles)."""
    # As a function of a the density is proportional to (sin a cos a)^0.2, which has no pole.
    angle = (np.arange(1 << 16) + 0.5) * (np.pi / 2 / (1 << 16))
    below = np.cumsum((np.sin(angle) * np.cos(angle)) ** 0.2)
    return below / below[-1], angle + angle[0]


def _beta(noise: Noise, steps: int, shift: float = 1.0) -> Tensor:
    levels = beta_levels(steps, noise.sigma_at_index)
    return levels if shift == 1 else shift * levels / (1 + (shift - 1) * levels)


def _karras_to_a_thousandth(noise: Noise, steps: int) -> Tensor:
    """ComfyUI's `karras` on a flow model, whose table ends at 1/1000."""
    return Grid("karras", {"rho": 7.0}).levels(steps, EDMNoise(sigma_min=1e-3, sigma_max=1.0))


_COMPUTED: Mapping[str, tuple[tuple[str, ...], Callable[[Noise, int], Tensor]]] = {
    "beta": (("vp", "edm"), _beta),
    "beta, shift 1": (("flow",), _beta),
    "beta, shift 3": (("flow",), partial(_beta, shift=3.0)),
    "karras 7": (("flow",), _karras_to_a_thousandth),
}


def _stored_levels(entry: Mapping[str, Any], steps: int) -> Tensor | None:
    lists = entry["levels"]  # by step count; a single list is interpolated to other counts
    if steps < entry["fewest_steps"] or (len(lists) > 1 and str(steps) not in lists):
        return None
    levels = log_linear(lists.get(str(steps)) or next(iter(lists.values())), steps)
    levels[0] = entry["sigma_max"]  # lists for flow models start slightly below 1, but sampling starts at 1
    return levels
