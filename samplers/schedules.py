"""Noise schedules of models and the grids that solvers put on them.

A solver file stores no sigmas: it stores the rule of its grid. The host's noise schedule turns the rule into noise
levels, so that one file serves every model of its kind. All results are float64 on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["FLUX_GRID", "USUAL_TOKENS", "EDMNoise", "FlowNoise", "Grid", "Noise", "VPNoise", "sized"]

USUAL_TOKENS = 4096  # latent tokens of a 1024x1024 picture
_LARGEST = 1e9  # of a grid's parameters: all of them are numbers around 1 to 10000


@dataclass(frozen=True)
class FlowNoise:
    """Rectified flow, x = (1 - sigma) * x0 + sigma * noise, sigma from 1 to 0 (SD3, FLUX, Wan, ...).

    Args:
        tokens: Number of latent tokens of the picture, H/16 * W/16 in pixels; needed by grids that shift with
            resolution.
    """

    kind = "flow"
    tokens: int | None = None

    def __post_init__(self) -> None:
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"tokens must be at least 1 (H/16 * W/16 of the picture), got {self.tokens}")


@dataclass(frozen=True)
class EDMNoise:
    """EDM, x = x0 + sigma * noise with sigma from `sigma_max` to `sigma_min` (arXiv 2206.00364)."""

    kind = "edm"
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"0 < sigma_min < sigma_max must hold, got {self.sigma_min} and {self.sigma_max}")


@dataclass(frozen=True, eq=False)
class VPNoise:
    """Variance-preserving models (SD 1.x, 2.x, SDXL; eps and v prediction) in VE coordinates x = x0 + sigma * noise.

    Args:
        times: Model times in (0, 1], ascending, shape [T].
        log_alphas: log alpha at these times, shape [T]; sigma = sqrt(exp(-2 log_alpha) - 1).
        beta: (beta_0, beta_1) of a continuous linear SDE, which then takes the place of interpolation.

    Build one with `from_sigmas`, `stable_diffusion`, `scaled_linear` or `linear_beta`.
    """

    kind = "vp"
    times: Tensor
    log_alphas: Tensor
    beta: tuple[float, float] | None = None

    @classmethod
    def from_sigmas(cls, sigmas: Tensor) -> VPNoise:
        """The model's own table of noise levels, ascending, shape [T]; entry n stands at model time (n + 1) / T.

        Raises:
            ValueError: Not an ascending table of positive finite levels.
        """
        sigmas = torch.as_tensor(sigmas).detach().cpu().double()
        if sigmas.ndim != 1 or len(sigmas) < 2 or not bool(torch.isfinite(sigmas).all()) or float(sigmas[0]) <= 0:
            raise ValueError(
                f"a model's sigmas must be at least two positive finite levels, got shape {list(sigmas.shape)}"
            )
        if bool((sigmas.diff() <= 0).any()):
            raise ValueError("a model's sigmas must ascend (entry 0 is the cleanest): flip the table if it descends")
        times = torch.arange(1, len(sigmas) + 1, dtype=torch.float64) / len(sigmas)
        return cls(times, -0.5 * torch.log1p(sigmas.square()))

    @classmethod
    def scaled_linear(cls, beta_start: float, beta_end: float, timesteps: int = 1000) -> VPNoise:
        """Latent diffusion's schedule: the square roots of beta are linear (arXiv 2112.10752)."""
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=torch.float64).square()
        products = torch.cumprod(1 - betas, 0)
        return cls.from_sigmas(((1 - products) / products).sqrt())

    @classmethod
    def stable_diffusion(cls) -> VPNoise:
        """SD 1.x, 2.x and SDXL: betas 0.00085 to 0.012, sigmas 0.0292 to 14.61."""
        return cls.scaled_linear(0.00085, 0.012)

    @classmethod
    def linear_beta(cls, beta_0: float = 0.1, beta_1: float = 20.0) -> VPNoise:
        """The continuous VP SDE with linear beta, clamped to model times [1e-3, 1] (arXiv 2011.13456)."""
        times = torch.tensor([1e-3, 1.0], dtype=torch.float64)
        return cls(times, -(beta_1 - beta_0) / 4 * times.square() - beta_0 / 2 * times, (beta_0, beta_1))

    @property
    def sigma_min(self) -> float:
        """Noise level at the first model time."""
        return float(self.sigma_at(self.times[:1]))

    @property
    def sigma_max(self) -> float:
        """Noise level at model time 1."""
        return float(self.sigma_at(self.times[-1:]))

    def sigma_at(self, time: Tensor) -> Tensor:
        """Returns the noise levels at model times (0, 1], any shape; differentiable. log alpha is interpolated."""
        time = time.double().clamp(float(self.times[0]), float(self.times[-1]))
        if self.beta:
            beta_0, beta_1 = self.beta
            log_alpha = -(beta_1 - beta_0) / 4 * time.square() - beta_0 / 2 * time
        else:
            log_alpha = _interpolate(time, self.times, self.log_alphas)
        return torch.expm1(-2 * log_alpha).sqrt()

    def sigma_at_index(self, index: Tensor) -> Tensor:
        """Returns the noise levels at (fractional) network timesteps 0 ... 999 of a 1000-step model.

        In a table of 1000, index n is entry n, which stands at model time (n + 1) / 1000; a table of another length is
        stretched to it. On the continuous SDE index n is time n / 1000.
        """
        return self.sigma_at(index / 1000 if self.beta else (index + 1) / 1000)

    def index_at(self, sigma: Tensor) -> Tensor:
        """Returns the (fractional) network timesteps of noise levels: the inverse of `sigma_at_index`."""
        return 1000 * self.time_at(sigma) - (0 if self.beta else 1)

    def time_at(self, sigma: Tensor) -> Tensor:
        """Returns the model times of noise levels, any shape: the inverse of `sigma_at`."""
        log_alpha = -0.5 * torch.log1p(sigma.double().square())
        if self.beta:
            beta_0, slope = self.beta[0], self.beta[1] - self.beta[0]
            return ((beta_0**2 - 4 * slope * log_alpha).sqrt() - beta_0) / slope
        return _interpolate(log_alpha, self.log_alphas.flip(0), self.times.flip(0))


Noise = FlowNoise | VPNoise | EDMNoise


def sized(noise: Noise) -> Noise:
    """Returns the schedule, with the usual tokens where a flow model's are not known: to show or to judge by."""
    return FlowNoise(USUAL_TOKENS) if isinstance(noise, FlowNoise) and noise.tokens is None else noise


@dataclass(frozen=True)
class Grid:
    """The rule of a solver's grid, as the card stores it.

    Rules and their parameters:
        polynomial: rho. EDM's grid from sigma_max to sigma_min (arXiv 2206.00364, eq. 5). VP and EDM models.
        karras: rho. The same with one level less, then 0: what the hosts call Karras.
        uniform_time: end. Model times from 1 to `end`, evenly spaced. VP models.
        sgm_uniform: end. The same with 0 in the last level's place: with end 1e-3 what the hosts call SGM uniform, and
            ComfyUI's simple but for its rounding to whole timesteps.
        normal: end. uniform_time with one level less, then 0: ComfyUI's normal, with end 1e-3.
        flow_shift: shift. linspace(1, 0) = t moved to shift * t / (1 + (shift - 1) * t). Flow models.
        flux_shift: base_tokens, base_mu, max_tokens, max_mu. flow_shift with shift = e^mu, mu linear in the number
            of latent tokens. Flow models.
    """

    rule: str
    parameters: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.rule, str) or self.rule not in _RULES:
            raise ValueError(f"grid rule must be one of {', '.join(_RULES)}, got {self.rule!r}: update Learned Solvers")
        _, names, _ = _RULES[self.rule]
        if set(self.parameters) != set(names):
            raise ValueError(
                f"grid rule {self.rule} needs {', '.join(names)}, got {', '.join(self.parameters) or 'none'}"
            )
        for name, value in self.parameters.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LARGEST:
                # Of anything else the kind alone: the text of a list of lists may have no end.
                got = f"{value!r:.40}" if isinstance(value, int | float | str) else type(value).__name__
                raise ValueError(f"grid parameter {name} must be a positive finite number, got {got}")

    def levels(self, steps: int, noise: Noise) -> Tensor:
        """Returns steps + 1 descending noise levels on `noise`, shape [steps + 1].

        Raises:
            ValueError: The rule is not defined on this kind of noise, or needs the number of latent tokens.
        """
        kinds, _, points = _RULES[self.rule]
        if noise.kind not in kinds:
            raise ValueError(f"grid rule {self.rule} is defined on {' and '.join(kinds)} noise, got {noise.kind}")
        try:
            levels = points(steps, noise, **self.parameters)
        except (OverflowError, ZeroDivisionError):
            levels = torch.full((1,), math.nan)
        if not bool(torch.isfinite(levels).all()) or not bool((levels.diff() < 0).all()):
            raise ValueError(
                f"grid rule {self.rule} with {dict(self.parameters)} makes no descending grid: change them"
            )
        return levels

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of noise that the rule is defined on."""
        return _RULES[self.rule][0]

    @property
    def shape_parameter(self) -> str | None:
        """Name of the one number that bends the grid, or None: what a joint fit may learn."""
        names = _RULES[self.rule][1]
        return names[0] if names in (("rho",), ("shift",)) else None

    def bent(self, steps: int, noise: Noise, value: Tensor) -> Tensor:
        """Returns the levels with `value` (0-d, may carry a gradient) in the shape parameter's place."""
        return _RULES[self.rule][2](steps, noise, value)


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
            "this solver's grid shifts with resolution: give the number of latent tokens, FlowNoise(tokens=H/16 * W/16)"
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
"""FLUX's own, as its samplers shift it: by e^0.5 at 256 latent tokens (256x256 pixels), e^1.15 at 4096 (1024x1024)."""


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Returns piecewise-linear y(x) through ascending points, clamped at both ends; differentiable in x."""
    x = x.clamp(float(xs[0]), float(xs[-1]))
    high = torch.searchsorted(xs, x.detach().contiguous()).clamp(1, len(xs) - 1)
    low = high - 1
    return ys[low] + (x - xs[low]) * (ys[high] - ys[low]) / (xs[high] - xs[low])
