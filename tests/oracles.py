"""Denoisers in closed form, most with their exact solution path, and the helpers that tests share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType

import numpy as np
import pytest
import torch
from learned_solvers.samplers import Grid, Guidance, Solver, SolverTable, sample_table
from learned_solvers.samplers.files.card import Card, StepCard
from torch import Tensor

IPNDM = ([1.0], [-1 / 2, 3 / 2], [5 / 12, -16 / 12, 23 / 12], [-9 / 24, 37 / 24, -59 / 24, 55 / 24])
"""Weights of iPNDM by order, oldest entry first (Adams-Bashforth's)."""


def f64(*values: float) -> Tensor:
    """A float64 tensor, shape [len(values)]."""
    return torch.tensor(values, dtype=torch.float64)


def start(sigma: float = 1.0, *shape: int) -> Tensor:
    """Seeded noise at a noise level, in float64, of shape [2, 3] by default."""
    return sigma * torch.randn(shape or (2, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def run(model: Callable[..., Tensor], x: Tensor, table: SolverTable) -> Tensor:
    """The result of a table, without a progress bar."""
    return sample_table(model, x, table, disable=True)


def assert_same_table(table: SolverTable, expected: SolverTable, rtol: float = 0) -> None:
    """All fields are equal, the numbers to a relative and absolute tolerance."""
    numbers, expected_numbers = ((t.levels, t.sigmas, t.scale, t.coeffs) for t in (table, expected))
    torch.testing.assert_close(numbers, expected_numbers, rtol=rtol, atol=rtol)
    assert (table.entry, table.analytic_first) == (expected.entry, expected.analytic_first)


def append_dims(sigma: Tensor, ndim: int) -> Tensor:
    """Sigma [B] as [B, 1, ..., 1] with `ndim` dimensions."""
    return sigma.reshape(sigma.shape + (1,) * (ndim - sigma.ndim))


def curved(x: Tensor, sigma: Tensor, shift: Tensor | None = None) -> Tensor:
    """A smooth nonlinear denoiser: two attractors, whose pull decreases with the noise level."""
    sigma = append_dims(sigma, x.ndim)
    pull = torch.tanh(2 * x / (0.3 + sigma)) / (1 + sigma)
    return pull if shift is None else pull + 0.2 * append_dims(shift, x.ndim)


def sd_sigmas(beta_start: float = 0.00085, beta_end: float = 0.012) -> Tensor:
    """Ascending noise levels as in Stable Diffusion's own code: the square roots of the betas are linear."""
    betas = np.linspace(beta_start**0.5, beta_end**0.5, 1000) ** 2
    alphas = torch.from_numpy(np.cumprod(1 - betas))
    return ((1 - alphas) / alphas).sqrt()


def smooth(x: Tensor, sigma: Tensor, guidance: float = 1.0) -> Tensor:
    """The exact flow denoiser of two Gaussians that overlap in every number: near starts have near ends.

    Guidance moves their means, +-0.7, apart.
    """
    sigma, mean = append_dims(sigma, x.ndim), 0.7 * guidance
    signal, square = 1 - sigma, sigma.square()
    variance = 0.25 * signal.square() + square
    return (0.25 * signal * x + square * mean * torch.tanh(signal * mean * x / variance)) / variance


@dataclass(frozen=True)
class GaussianVE:
    """Data N(mean, variance) in every element, x = x0 + sigma * noise."""

    mean: float = 0.5
    variance: float = 0.25

    def signal(self, sigma: Tensor | float) -> Tensor | float:
        """The factor of x0 in a state."""
        return sigma**0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x]."""
        sigma = append_dims(sigma, x.ndim)
        signal, square = self.signal(sigma), sigma.square()
        total = signal**2 * self.variance + square
        return ((signal * self.variance * x + square * self.mean) / total).to(x.dtype)

    def path(self, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        """The exact state at `sigma_next` on the path through x at `sigma`."""
        square, square_next = (self.signal(s) ** 2 * self.variance + s**2 for s in (sigma, sigma_next))
        noise = x - self.signal(sigma) * self.mean
        return self.signal(sigma_next) * self.mean + noise * (square_next / square) ** 0.5


class GaussianFlow(GaussianVE):
    """The same data, x = (1 - sigma) * x0 + sigma * noise."""

    def signal(self, sigma: Tensor | float) -> Tensor | float:
        return 1 - sigma


Constant = partial(GaussianVE, 0.75, 0.0)  # always predicts the same picture; its paths are straight lines


@dataclass(frozen=True)
class Mixture:
    """The golden files' isotropic Gaussian mixture over the flattened state (tests/data/golden/README.md)."""

    mean: Tensor  # [K, n]
    std: Tensor  # [K]
    logw: Tensor  # logarithms of the weights, [K]
    flow: bool = False  # alpha = 1 - sigma instead of 1

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x]."""
        state, sigma = x.flatten(1)[:, None, :], sigma[:, None]
        alpha = 1 - sigma if self.flow else torch.ones_like(sigma)
        variance = alpha.square() * self.std.square() + sigma.square()
        distance = (state - alpha[..., None] * self.mean).square().sum(-1)
        log_density = self.logw - distance / (2 * variance) - x[0].numel() / 2 * variance.log()
        gain, square = (alpha * self.std.square() / variance)[..., None], (sigma.square() / variance)[..., None]
        means = gain * state + square * self.mean
        return (log_density.softmax(1)[..., None] * means).sum(1).reshape(x.shape)


def mixture(flow: bool = False) -> Mixture:
    """A mixture of two Gaussians over three numbers."""
    return Mixture(f64(1, -0.5, 0.3, -0.8, 0.6, -1).reshape(2, 3), f64(0.3, 0.5), f64(0.1, -0.1), flow)


@dataclass
class Recorder:
    """A denoiser that records the arguments of each call of `model`."""

    model: Callable[..., Tensor]
    x: list[Tensor] = field(default_factory=list)
    sigma: list[Tensor] = field(default_factory=list)
    extra_args: list[dict] = field(default_factory=list)

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: object) -> Tensor:
        self.x.append(x)
        self.sigma.append(sigma)
        self.extra_args.append(extra_args)
        return self.model(x, sigma, **extra_args)

    @property
    def sigmas(self) -> Tensor:
        """Noise levels of the calls, shape [calls, B]."""
        return torch.stack(self.sigma)


@dataclass
class Steps:
    """A callback that records every step."""

    calls: list[dict] = field(default_factory=list)

    def __call__(self, info: dict) -> None:
        self.calls.append(info)

    def trajectory(self, result: Tensor) -> Tensor:
        """All states from the start to the result, shape [N + 1, B, ...]."""
        return torch.stack([*(call["x"] for call in self.calls), result])


def _solver(family: str, name: str, step: StepCard, tensors: dict[int, tuple[Tensor, ...]], card: dict) -> Solver:
    """A solver of the same `step` at each count, with the family's two parameters."""
    names = ("timedeltas", "coeffs") if family == "ds" else ("t_scale", "weights")
    parameters = {n: {k: tensor.double() for k, tensor in zip(names, tensors[n], strict=True)} for n in tensors}
    facts = {"architecture": "Test", "checkpoint": "test", "steps": dict.fromkeys(tensors, step), **card}
    return Solver(name, Card(family=family, **facts), parameters)


def ds_solver(*steps: int, name: str = "ds_test", **card: object) -> Solver:
    """A DS solver whose coefficients differ between step counts, for flow models by default."""
    tensors = {n: (torch.full((1, n), 1 / n), torch.full((1, n, n), -0.1 / n).tril(-1)) for n in steps}
    return _solver("ds", name, StepCard(), tensors, {"prediction": "flow", **card})


def knotted_solver(knots: tuple[float, ...] = (2.0, 8.0), kind: str = "cfg", name: str = "knotted") -> Solver:
    """A DS flow solver of two steps, whose first time step is 0.3 at the first guidance knot and 0.5 at the last.

    The usual guidance is the last knot; an embedded guidance has CFG 1.
    """
    first = torch.linspace(0.3, 0.5, len(knots), dtype=torch.float64)
    coeffs = torch.linspace(-0.2, -0.6, len(knots)).double()[:, None, None] * f64(0, 0, 1, 0).reshape(2, 2)
    guidance = Guidance(kind, tuple(knots), usual=knots[-1], cfg=1 if kind == "embedded" else None)
    tensors = {2: (torch.stack([first, 1 - first], 1), coeffs)}
    return _solver("ds", name, StepCard(knots=knots), tensors, {"prediction": "flow", "guidance": guidance})


def dyweight_solver(*steps: int, name: str = "dyweight_test", **card: object) -> Solver:
    """A DyWeight solver, by default for EDM models and on EDM's grid."""
    flow = card.get("prediction") == "flow"
    step = StepCard(grid=Grid("flow_shift", {"shift": 1.0}) if flow else Grid("polynomial", {"rho": 7.0}))
    scales = {n: torch.linspace(0.9, 1.05, n)[None] for n in steps}
    tensors = {n: (scales[n], torch.eye(n)[None] - torch.full((1, n, n), 0.1 / n).tril(-1)) for n in steps}
    return _solver("dyweight", name, step, tensors, {"prediction": "edm", **card})


def k_diffusion_module(name: str) -> ModuleType:
    """k-diffusion's real module `name`; skips the test if k-diffusion is not installed."""
    from benchmarks import k_diffusion_modules

    try:
        return k_diffusion_modules.k_diffusion_module(name)
    except ImportError as error:
        pytest.skip(str(error))
