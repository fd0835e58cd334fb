"""Noise schedules of models. All results are float64 on the CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["USUAL_TOKENS", "EDMNoise", "FlowNoise", "Noise", "VPNoise", "check_noise", "sized"]

USUAL_TOKENS = 4096  # latent tokens of a 1024x1024 picture


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
        sigmas = torch.as_tensor(sigmas, device="cpu").detach().double()
        if sigmas.ndim != 1 or len(sigmas) < 2 or not bool(torch.isfinite(sigmas).all()) or float(sigmas[0]) <= 0:
            raise ValueError(
                f"a model's sigmas must be at least two positive finite levels, got shape {list(sigmas.shape)}"
            )
        if bool((sigmas.diff() <= 0).any()):
            raise ValueError("a model's sigmas must ascend (entry 0 is the cleanest): flip the table if it descends")
        times = torch.arange(1, len(sigmas) + 1, dtype=torch.float64, device="cpu") / len(sigmas)
        return cls(times, -0.5 * torch.log1p(sigmas.square()))

    @classmethod
    def scaled_linear(cls, beta_start: float, beta_end: float, timesteps: int = 1000) -> VPNoise:
        """Latent diffusion's schedule: the square roots of beta are linear (arXiv 2112.10752)."""
        roots = torch.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=torch.float64, device="cpu")
        betas = roots.square()
        products = torch.cumprod(1 - betas, 0)
        return cls.from_sigmas(((1 - products) / products).sqrt())

    @classmethod
    def stable_diffusion(cls) -> VPNoise:
        """SD 1.x, 2.x and SDXL: betas 0.00085 to 0.012, sigmas 0.0292 to 14.61."""
        return cls.scaled_linear(0.00085, 0.012)

    @classmethod
    def linear_beta(cls, beta_0: float = 0.1, beta_1: float = 20.0) -> VPNoise:
        """The continuous VP SDE with linear beta, clamped to model times [1e-3, 1] (arXiv 2011.13456).

        Raises:
            ValueError: beta does not rise.
        """
        if not beta_0 < beta_1:
            raise ValueError(f"beta must rise, got {beta_0:g} to {beta_1:g}: the paper has 0.1 to 20")
        times = torch.tensor([1e-3, 1.0], dtype=torch.float64, device="cpu")
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


def check_noise(noise: object) -> None:
    """Refuses what is no noise schedule.

    Raises:
        TypeError: It is of another kind.
    """
    if not isinstance(noise, Noise):
        raise TypeError(f"noise must be FlowNoise(), VPNoise or EDMNoise, got {type(noise).__name__}")


def sized(noise: Noise) -> Noise:
    """Returns the schedule, with the usual tokens where a flow model's are not known: to show or to judge by."""
    return FlowNoise(USUAL_TOKENS) if isinstance(noise, FlowNoise) and noise.tokens is None else noise


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Returns piecewise-linear y(x) through ascending points, clamped at both ends; differentiable in x."""
    x = x.clamp(float(xs[0]), float(xs[-1]))
    high = torch.searchsorted(xs, x.detach().contiguous()).clamp(1, len(xs) - 1)
    low = high - 1
    return ys[low] + (x - xs[low]) * (ys[high] - ys[low]) / (xs[high] - xs[low])
