"""Noise schedules of models. All results are float64 on the CPU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .grids import FLUX_GRID, Grid, interpolate

__all__ = ["KINDS", "EDMNoise", "FlowNoise", "Noise", "VPNoise", "check_noise"]

DEFAULT_TOKENS = 4096  # latent tokens of a 1024x1024 image


class Noise:
    """A model's noise schedule; base class of the kinds.

    Attributes:
        kind: "flow", "vp" or "edm", as in cards.
        sigma_max: Noise level at which sampling starts.
        sigma_min: Lowest noise level of the model's training.
        time_is_sigma: Whether model time is sigma itself, so that DEIS is Adams-Bashforth.
        tokens: Number of latent tokens of the image, for flow models; None if unknown.
    """

    kind: str
    sigma_max: float
    sigma_min: float
    time_is_sigma: bool = True
    tokens: int | None = None

    @property
    def start_std(self) -> float | None:
        """Standard deviation of the initial noise; None if it depends on the model."""
        return self.sigma_max

    def usual_grids(self) -> dict[str, Grid]:
        """Commonly used grids on this kind of noise, by name."""
        return {
            **{f"karras {rho:g}": Grid("karras", {"rho": rho}) for rho in (2.0, 3.0, 5.0, 7.0)},
            **{f"polynomial {rho:g}": Grid("polynomial", {"rho": rho}) for rho in (3.0, 5.0, 7.0)},
        }

    def teacher_grid(self, steps: int) -> Tensor:
        """A dense grid for a many-step reference, ending at 0: Karras with rho 7, shape [steps + 1]."""
        return Grid("karras", {"rho": 7.0}).levels(steps, self)

    def sigma_at_index(self, index: Tensor) -> Tensor:
        """Noise levels at (fractional) timesteps 0 ... 999 of ComfyUI's table for such a model."""
        raise NotImplementedError

    def index_at(self, sigma: Tensor) -> Tensor:
        """(Fractional) timesteps of noise levels; the inverse of `sigma_at_index`."""
        raise NotImplementedError

    def time_at(self, sigma: Tensor) -> Tensor:
        """Model times of noise levels, any shape."""
        return sigma.double()

    def with_tokens(self, tokens: int | None = DEFAULT_TOKENS) -> Noise:
        """This schedule; a flow schedule without a number of latent tokens gets `tokens`."""
        return self


@dataclass(frozen=True)
class FlowNoise(Noise):
    """Rectified flow, x = (1 - sigma) * x0 + sigma * noise, sigma from 1 to 0 (SD3, FLUX, Wan, ...).

    Args:
        tokens: Number of latent tokens of the image, H/16 * W/16 in pixels; needed by grids that depend on the
            resolution.
    """

    kind = "flow"
    sigma_max = 1.0
    sigma_min = 0.0
    tokens: int | None = None

    def __post_init__(self) -> None:
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"tokens must be at least 1 (H/16 * W/16 of the image), got {self.tokens}")

    @property
    def start_std(self) -> None:  # noqa: D102 - see Noise
        return None

    def usual_grids(self) -> dict[str, Grid]:  # noqa: D102 - see Noise
        shifts = (0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)
        return {f"shift {shift:g}": Grid("flow_shift", {"shift": shift}) for shift in shifts}

    def teacher_grid(self, steps: int) -> Tensor:
        """Even flow time; with FLUX's shift if the number of latent tokens is known."""
        grid = Grid("flow_shift", {"shift": 1.0}) if self.tokens is None else FLUX_GRID
        return grid.levels(steps, self)

    def sigma_at_index(self, index: Tensor) -> Tensor:
        """Noise levels at timesteps 0 ... 999, without a shift."""
        return (index.double() + 1) / 1000

    def with_tokens(self, tokens: int | None = DEFAULT_TOKENS) -> FlowNoise:  # noqa: D102 - see Noise
        return FlowNoise(tokens) if self.tokens is None else self


@dataclass(frozen=True)
class EDMNoise(Noise):
    """EDM, x = x0 + sigma * noise with sigma from `sigma_max` to `sigma_min` (arXiv 2206.00364)."""

    kind = "edm"
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"0 < sigma_min < sigma_max must hold, got {self.sigma_min} and {self.sigma_max}")

    def sigma_at_index(self, index: Tensor) -> Tensor:
        """Noise levels at timesteps 0 ... 999: even in log sigma."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** (index.double() / 999)


@dataclass(frozen=True, eq=False)
class VPNoise(Noise):
    """Variance-preserving models (SD 1.x, 2.x, SDXL; eps and v prediction) in VE coordinates x = x0 + sigma * noise.

    Args:
        times: Model times in (0, 1], ascending, shape [T].
        log_alphas: log alpha at these times, shape [T]; sigma = sqrt(exp(-2 log_alpha) - 1).
        beta: (beta_0, beta_1) of a continuous linear SDE, which is then used instead of interpolation.

    Constructors: `from_sigmas`, `stable_diffusion`, `scaled_linear` or `linear_beta`.
    """

    kind = "vp"
    time_is_sigma = False
    times: Tensor
    log_alphas: Tensor
    beta: tuple[float, float] | None = None

    @classmethod
    def from_sigmas(cls, sigmas: Tensor) -> VPNoise:
        """The schedule of a model's table of noise levels, ascending, shape [T]; entry n is at model time (n + 1) / T.

        Raises:
            ValueError: The table is not ascending, positive and finite.
        """
        sigmas = torch.as_tensor(sigmas, device="cpu").detach().double()
        if sigmas.ndim != 1 or len(sigmas) < 2 or not bool(torch.isfinite(sigmas).all()) or float(sigmas[0]) <= 0:
            raise ValueError(
                f"a model's sigmas must be at least two positive finite levels, got shape {list(sigmas.shape)}"
            )
        if bool((sigmas.diff() <= 0).any()):
            raise ValueError("a model's sigmas must ascend, entry 0 being the cleanest; flip a descending table")
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
            ValueError: beta_0 is not below beta_1.
        """
        if not beta_0 < beta_1:
            raise ValueError(f"beta_0 must be below beta_1 (the paper uses 0.1 and 20), got {beta_0:g} and {beta_1:g}")
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

    def usual_grids(self) -> dict[str, Grid]:  # noqa: D102 - see Noise
        rules = {"uniform time": "uniform_time", "sgm_uniform": "sgm_uniform", "normal": "normal"}
        return {**super().usual_grids(), **{name: Grid(rule, {"end": 1e-3}) for name, rule in rules.items()}}

    def sigma_at(self, time: Tensor) -> Tensor:
        """Noise levels at model times (0, 1], any shape; differentiable. log alpha is interpolated linearly."""
        time = time.double().clamp(float(self.times[0]), float(self.times[-1]))
        if self.beta:
            beta_0, beta_1 = self.beta
            log_alpha = -(beta_1 - beta_0) / 4 * time.square() - beta_0 / 2 * time
        else:
            log_alpha = interpolate(time, self.times, self.log_alphas)
        return torch.expm1(-2 * log_alpha).sqrt()

    def sigma_at_index(self, index: Tensor) -> Tensor:
        """Noise levels at (fractional) network timesteps 0 ... 999 of a 1000-step model.

        In a table of 1000, index n is entry n, at model time (n + 1) / 1000; a table of another length is stretched to
        1000. On the continuous SDE, index n is time n / 1000.
        """
        return self.sigma_at(index / 1000 if self.beta else (index + 1) / 1000)

    def index_at(self, sigma: Tensor) -> Tensor:
        """(Fractional) network timesteps of noise levels; the inverse of `sigma_at_index`."""
        return 1000 * self.time_at(sigma) - (0 if self.beta else 1)

    def time_at(self, sigma: Tensor) -> Tensor:
        """Model times of noise levels, any shape; the inverse of `sigma_at`."""
        log_alpha = -0.5 * torch.log1p(sigma.double().square())
        if self.beta:
            beta_0, slope = self.beta[0], self.beta[1] - self.beta[0]
            return ((beta_0**2 - 4 * slope * log_alpha).sqrt() - beta_0) / slope
        return interpolate(log_alpha, self.log_alphas.flip(0), self.times.flip(0))


KINDS: Mapping[str, type[Noise]] = {schedule.kind: schedule for schedule in (FlowNoise, VPNoise, EDMNoise)}
"""The classes by `kind`."""


def check_noise(noise: object) -> None:
    """Raises TypeError for anything but a noise schedule."""
    if not isinstance(noise, Noise):
        raise TypeError(
            f"noise must be one of {', '.join(kind.__name__ for kind in KINDS.values())}, got {type(noise).__name__}"
        )
