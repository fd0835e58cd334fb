"""ComfyUI's deterministic samplers and schedulers that a fit does not compare with, as tables.

Written like ComfyUI's own functions (0.33.0, comfy/k_diffusion/sampling.py and comfy/samplers.py), which the tests
compare them with. Left out is what does not solve the guided equation from a given start in a given number of calls:
stochastic samplers, the `_cfg_pp` variants, `dpm_adaptive`, `dpm_fast` (which stops above 0), and the scheduler
`ddim_uniform` (which starts below the highest level). `ddim` is Euler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise

import torch
from learned_solvers.samplers import SolverTable
from learned_solvers.samplers.schedules import Noise
from learned_solvers.training.starts.candidates import Candidate, levels_at
from learned_solvers.training.starts.published import Levels, beta_levels
from torch import Tensor

__all__ = ["RECIPE", "host_candidates", "host_grids", "methods", "table_of"]

RECIPE = {"flow": "euler, shift 1", "vp": "euler, sgm_uniform", "edm": "euler, simple"}
"""The sampler and scheduler of most of ComfyUI's templates, "euler" and "simple", by the name of the nearest peer."""

FLOW_START = 1 - 1e-4  # the first level of exp_heun_2_x0 on flow models, whose log-SNR is infinite at 1
Model = Callable[..., Tensor]
Sampler = Callable[[Model, Tensor, Tensor], Tensor]


def table_of(sample: Sampler, sigmas: Tensor) -> SolverTable:
    """The table of a sampler that combines its start and its denoised states linearly.

    It is run on vectors [1, K] of the coefficients of the start and of every denoised state; the model returns the unit
    vector of the next one.
    """
    unit = torch.eye(3 * len(sigmas) + 1, dtype=torch.float64)
    states, levels = list[Tensor](), list[float]()

    def model(x: Tensor, sigma: Tensor, **_: object) -> Tensor:
        states.append(x[0])
        levels.append(float(sigma.flatten()[0]))
        return unit[None, len(states)]

    end = sample(model, unit[None, 0], sigmas)[0]
    calls, at = len(states), torch.stack([*states, end])
    scale = at[1:, 0] / at[:-1, 0]
    coeffs = (at[1:] - scale[:, None] * at[:-1])[:, 1 : calls + 1]
    ends = torch.tensor([*levels, float(sigmas[-1])], dtype=torch.float64)
    return SolverTable(ends, ends[:-1], scale, coeffs.tril(), "denoised")


def _slope(x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
    return (x - denoised) / sigma


def gradient_estimation(model: Model, x: Tensor, sigmas: Tensor) -> Tensor:
    """Euler with twice the newest slope less the one before (openreview.net/pdf?id=o2ND9v0CeK)."""
    before = None
    for sigma, sigma_next in pairwise(sigmas):
        denoised = model(x, sigma * x.new_ones([len(x)]))
        d = _slope(x, sigma, denoised)
        change = d if before is None else 2 * d - before
        x = denoised if sigma_next == 0 else x + change * (sigma_next - sigma)
        before = d
    return x


def dpm_2(model: Model, x: Tensor, sigmas: Tensor) -> Tensor:
    """The midpoint method in log sigma (arXiv 2206.00364, algorithm 2); Euler in a last step to 0."""
    for sigma, sigma_next in pairwise(sigmas):
        d = _slope(x, sigma, model(x, sigma * x.new_ones([len(x)])))
        if sigma_next > 0:
            middle = (sigma * sigma_next).sqrt()
            x_middle = x + d * (middle - sigma)
            d = _slope(x_middle, middle, model(x_middle, middle * x.new_ones([len(x)])))
        x = x + d * (sigma_next - sigma)
    return x


def heunpp2(model: Model, x: Tensor, sigmas: Tensor) -> Tensor:
    """Heun++ of Carzit's sd-webui-samplers-scheduler: three slopes per step, two and one in the last steps."""
    for i in range(len(sigmas) - 1):
        ahead = sigmas[i : min(i + 3, len(sigmas) - 1)]  # the levels of this step's calls
        slopes, state = [], x
        for sigma, sigma_next in zip(ahead, sigmas[i + 1 :], strict=False):
            slopes.append(_slope(state, sigma, model(state, sigma * x.new_ones([len(x)]))))
            state = state + slopes[-1] * (sigma_next - sigma)
        weights = ahead[1:] / (len(ahead) * sigmas[0])
        change = (1 - weights.sum()) * slopes[0]
        for weight, slope in zip(weights, slopes[1:], strict=True):
            change = change + weight * slope
        x = x + change * (sigmas[i + 1] - sigmas[i])
    return x


def exp_heun_2_x0(model: Model, x: Tensor, sigmas: Tensor, flow: bool = False) -> Tensor:
    """The exponential Heun method in log-SNR (arXiv 2305.14267), on the denoised state; Euler in a last step to 0."""
    if flow and sigmas[0] >= 1:
        sigmas = torch.cat([sigmas.new_tensor([FLOW_START]), sigmas[1:]])
    for sigma, sigma_next in pairwise(sigmas):
        denoised = model(x, sigma * x.new_ones([len(x)]))
        if sigma_next == 0:
            return denoised
        signal, signal_next = (1 - sigma, 1 - sigma_next) if flow else (sigma / sigma, sigma / sigma)
        h = (signal_next / sigma_next).log() - (signal / sigma).log()
        ratio, phi_1 = sigma_next / sigma, -torch.expm1(-h)  # h phi_1(-h), h phi_2(-h)
        phi_2 = 1 - phi_1 / h
        x_next = ratio * x + signal_next * phi_1 * denoised
        after = model(x_next, sigma_next * x.new_ones([len(x)]))
        x = ratio * x + signal_next * ((phi_1 - phi_2) * denoised + phi_2 * after)
    return x


def methods(noise: Noise) -> dict[str, tuple[Sampler, Callable[[int], int]]]:
    """The samplers, with the steps to a last level of 0 that a number of calls allows."""
    return {
        "gradient_estimation": (gradient_estimation, lambda calls: calls),
        "dpm_2": (dpm_2, lambda calls: (calls + 1) // 2),
        "heunpp2": (heunpp2, lambda calls: calls // 3 + 1),
        "exp_heun_2_x0": (partial(exp_heun_2_x0, flow=noise.kind == "flow"), lambda calls: (calls + 1) // 2),
    }


def host_grids(noise: Noise) -> dict[str, Levels]:
    """ComfyUI's schedulers by name; on flow models also with the shifts of its templates."""
    flow = noise.kind == "flow"
    low, high = (1e-3 if flow else noise.sigma_min), noise.sigma_max
    grids: dict[str, Levels] = {
        "exponential": lambda n: _to_0(torch.linspace(math.log(high), math.log(low), n, dtype=torch.float64).exp()),
        "kl_optimal": lambda n: _to_0(torch.linspace(math.atan(high), math.atan(low), n, dtype=torch.float64).tan()),
        "linear_quadratic": lambda n: high * _linear_quadratic(n),
    }
    for shift in (1.0, 3.0, 5.0, 8.0) if flow else (1.0,):
        named = {
            "simple": lambda n: _to_0(noise.sigma_at_index(999 - (torch.arange(n) * 1000 / n).floor())),
            "normal": lambda n, shift=shift: _to_0(_even_times(noise, n, shift)),
            "sgm_uniform": lambda n, shift=shift: _to_0(_even_times(noise, n + 1, shift)[:-1]),
            "beta": lambda n: beta_levels(n, noise.sigma_at_index),
        }
        for name, levels in named.items():
            if shift in (1.0, 3.0) or name == "simple":
                grids[f"{name}, shift {shift:g}" if flow else name] = partial(_shifted, levels, shift)
    return grids


def _to_0(levels: Tensor) -> Tensor:
    return torch.nn.functional.pad(levels, (0, 1))


def _shifted(levels: Levels, shift: float, steps: int) -> Tensor | None:
    unshifted = levels(steps)
    return None if unshifted is None else shift * unshifted / (1 + (shift - 1) * unshifted)


def _even_times(noise: Noise, count: int, shift: float) -> Tensor:
    """Levels, before the shift, at evenly spaced timesteps; an EDM model's are even in log sigma.

    ComfyUI takes the shifted lowest level as the last time, and shifts it again.
    """
    return noise.sigma_at_index(torch.linspace(999, 1000 * shift / (999 + shift) - 1, count, dtype=torch.float64))


def _linear_quadratic(steps: int, threshold: float = 0.025) -> Tensor:
    """Mochi's grid: half of the steps to 1 - threshold evenly, then a parabola (ComfyUI's linear_quadratic)."""
    linear = steps // 2
    rest, excess = steps - linear, linear - threshold * steps
    quadratic = excess / (linear * rest**2)
    slope = threshold / linear - 2 * excess / rest**2
    i = torch.arange(steps, dtype=torch.float64)
    falls = torch.where(i < linear, i * threshold / linear, quadratic * i**2 + slope * i + quadratic * linear**2)
    return _to_0(1 - falls)


def host_candidates(steps: int, noise: Noise, grids: Mapping[str, Levels]) -> Iterator[Candidate]:
    """Yields the samplers of `methods` on grids that end at 0, with at most `steps` calls."""
    for grid_name, levels_of in grids.items():
        for name, (sample, steps_for) in methods(noise).items():
            fewer = steps_for(steps)
            levels = levels_at(levels_of, fewer) if fewer > 1 else None
            if levels is not None and levels[-1] == 0:
                yield Candidate(name, grid_name, None, table_of(sample, levels))
