"""Grids: the noise levels of a solver on a model's noise schedule.

A solver file stores the rule of its grid instead of sigmas; the host's noise schedule turns the rule into noise levels.
All results are float64 on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:  # schedules imports this module
    from .schedules import EDMNoise, FlowNoise, Noise, VPNoise

__all__ = ["FLUX_GRID", "Grid", "checked_levels", "interpolate"]

_LARGEST_PARAMETER = 1e9  # a limit for parameters, whose usual values are below 10000


@dataclass(frozen=True)
class Grid:
    """The rule of a solver's grid, as the card stores it.

    Rules and their parameters:
        polynomial: rho. EDM's grid from sigma_max to sigma_min (arXiv 2206.00364, eq. 5). VP and EDM models.
        karras: rho. polynomial with one level fewer, then 0; the hosts' Karras. VP and EDM models.
        uniform_time: end. Model times from 1 to `end`, evenly spaced. VP models.
        sgm_uniform: end. uniform_time with 0 as its last level. With end 1e-3 the hosts' SGM uniform, and ComfyUI's
            simple except for its rounding to whole timesteps. VP models.
        normal: end. uniform_time with one level fewer, then 0; with end 1e-3 ComfyUI's normal. VP models.
        flow_shift: shift. t = linspace(1, 0), moved to shift * t / (1 + (shift - 1) * t). Flow models.
        flux_shift: base_tokens, base_mu, max_tokens, max_mu. flow_shift with shift = e^mu, where mu is linear in the
            number of latent tokens. Flow models.
    """

    rule: str
    parameters: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.rule, str) or self.rule not in _RULES:
            raise ValueError(f"grid rule must be one of {', '.join(_RULES)}, got {self.rule!r}; update Learned Solvers")
        _, names, _ = _RULES[self.rule]
        if set(self.parameters) != set(names):
            raise ValueError(
                f"grid rule {self.rule} needs {', '.join(names)}, got {', '.join(self.parameters) or 'none'}"
            )
        for name, value in self.parameters.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LARGEST_PARAMETER:
                # Only the type of other values: the text of nested lists can be arbitrarily long.
                got = f"{value!r:.40}" if isinstance(value, int | float | str) else type(value).__name__
                raise ValueError(f"grid parameter {name} must be a positive finite number, got {got}")

    def levels(self, steps: int, noise: Noise) -> Tensor:
        """Descending noise levels of `steps` steps on `noise`, shape [steps + 1].

        Raises:
            ValueError: The rule is not defined on this kind of noise or needs the number of latent tokens, or the
                parameters give no descending grid.
        """
        kinds, _, points = _RULES[self.rule]
        if noise.kind not in kinds:
            raise ValueError(f"grid rule {self.rule} is defined on {' and '.join(kinds)} noise, got {noise.kind}")
        with torch.device("cpu"):  # regardless of the default device
            try:
                levels = points(steps, noise, **self.parameters)
            except (OverflowError, ZeroDivisionError):
                levels = torch.full((1,), math.nan)
        if not bool(torch.isfinite(levels).all()) or not bool((levels.diff() < 0).all()):
            raise ValueError(
                f"grid rule {self.rule} with {dict(self.parameters)} does not give a descending grid; change "
                "the parameters"
            )
        return levels

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of noise schedule that the rule is defined on."""
        return _RULES[self.rule][0]

    @property
    def needs_tokens(self) -> bool:
        """Whether the grid depends on the resolution, so that a flow schedule must know its number of latent tokens."""
        return self.rule == "flux_shift"


def checked_levels(sigmas: Tensor) -> Tensor:
    """Noise levels as float64 on the CPU, without gradients, shape [N + 1]; ValueError unless they descend."""
    sigmas = torch.as_tensor(sigmas, device="cpu").detach().double()
    if sigmas.ndim != 1 or len(sigmas) < 2 or bool((sigmas.diff() >= 0).any()) or float(sigmas[-1]) < 0:
        raise ValueError(f"sigmas must be at least two descending levels, the last 0 or above, got {sigmas.tolist()}")
    return sigmas


def _polynomial(steps: int, noise: VPNoise | EDMNoise, rho: float) -> Tensor:
    ramp = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    first, last = noise.sigma_max ** (1 / rho), noise.sigma_min ** (1 / rho)
    return (first + ramp * (last - first)) ** rho


def _karras(steps: int, noise: VPNoise | EDMNoise, rho: float) -> Tensor:
    return torch.nn.functional.pad(_polynomial(steps - 1, noise, rho), (0, 1))


def _uniform_time(steps: int, noise: VPNoise, end: float) -> Tensor:
    return noise.sigma_at(torch.linspace(1, end, steps + 1, dtype=torch.float64))


def _sgm_uniform(steps: int, noise: VPNoise, end: float) -> Tensor:
    return torch.nn.functional.pad(_uniform_time(steps, noise, end)[:-1], (0, 1))


def _normal(steps: int, noise: VPNoise, end: float) -> Tensor:
    return torch.nn.functional.pad(_uniform_time(steps - 1, noise, end), (0, 1))


def _flow_shift(steps: int, noise: FlowNoise, shift: float) -> Tensor:
    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return shift * t / (1 + (shift - 1) * t)


def _flux_shift(
    steps: int, noise: FlowNoise, base_tokens: float, base_mu: float, max_tokens: float, max_mu: float
) -> Tensor:
    if noise.tokens is None:
        raise ValueError(
            "this solver's grid depends on the resolution; pass the number of latent tokens, "
            "FlowNoise(tokens=H/16 * W/16)"
        )
    mu = base_mu + (noise.tokens - base_tokens) * (max_mu - base_mu) / (max_tokens - base_tokens)
    return _flow_shift(steps, noise, math.exp(mu))


_RULES = {
    "polynomial": (("vp", "edm"), ("rho",), _polynomial),
    "karras": (("vp", "edm"), ("rho",), _karras),
    "uniform_time": (("vp",), ("end",), _uniform_time),
    "sgm_uniform": (("vp",), ("end",), _sgm_uniform),
    "normal": (("vp",), ("end",), _normal),
    "flow_shift": (("flow",), ("shift",), _flow_shift),
    "flux_shift": (("flow",), ("base_tokens", "base_mu", "max_tokens", "max_mu"), _flux_shift),
}

FLUX_GRID = Grid("flux_shift", {"base_tokens": 256, "base_mu": 0.5, "max_tokens": 4096, "max_mu": 1.15})
"""FLUX's grid: a shift of e^0.5 at 256 latent tokens (256x256 pixels) and of e^1.15 at 4096 (1024x1024)."""


def interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Piecewise-linear y(x) through points with ascending xs [T], clamped at both ends; differentiable in x."""
    x = x.clamp(float(xs[0]), float(xs[-1]))
    high = torch.searchsorted(xs, x.detach().contiguous()).clamp(1, len(xs) - 1)
    low = high - 1
    return ys[low] + (x - xs[low]) * (ys[high] - ys[low]) / (xs[high] - xs[low])
