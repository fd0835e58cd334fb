"""Noise schedules and the grids on them, against independent formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from learned_solvers.samplers import EDMNoise, FlowNoise, Grid, VPNoise
from oracles import f64, k_diffusion_module, sd_sigmas
from torch import Tensor

TIMES = np.array([1e-3, 0.00175, 0.0123, 0.1, 0.2505, 0.5, 0.7777, 0.999, 0.99983, 1.0])
FLUX = {"base_tokens": 256, "base_mu": 0.5, "max_tokens": 4096, "max_mu": 1.15}
SD, LINEAR_BETA = VPNoise.stable_diffusion(), VPNoise.linear_beta()
CUBIC = VPNoise.from_sigmas(torch.linspace(0.05, 3, 40) ** 3)
SCHEDULES = {"stable_diffusion": SD, "from_sigmas": CUBIC, "linear_beta": LINEAR_BETA}
each_schedule = pytest.mark.parametrize("noise", SCHEDULES.values(), ids=SCHEDULES)


def interpolated(sigmas: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The levels of a table with entry n at time (n + 1) / T, log alpha interpolated."""
    log_alphas = -0.5 * np.log(1 + sigmas**2)
    log_alpha = np.interp(times, np.arange(1, len(sigmas) + 1) / len(sigmas), log_alphas)
    return np.sqrt(np.exp(-2 * log_alpha) - 1)


def linear_beta_sigma(times: np.ndarray, beta_0: float = 0.1, beta_1: float = 20.0) -> np.ndarray:
    """Levels sigma / alpha of the VP SDE: alpha = exp(-1/2 integral of beta), sigma^2 = 1 - alpha^2."""
    integral = beta_0 * times + (beta_1 - beta_0) * times**2 / 2
    alpha = np.exp(-integral / 2)
    return np.sqrt(1 - alpha**2) / alpha


def assert_close(levels: Tensor, expected: np.ndarray | Tensor, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(levels, torch.as_tensor(expected), rtol=rtol, atol=0)


@pytest.mark.parametrize(("start", "end"), [(0.00085, 0.012), (0.0015, 0.0195)])
def test_the_scaled_linear_schedule_is_latent_diffusions(start, end):
    noise = VPNoise.scaled_linear(start, end)
    assert_close(noise.sigma_at(torch.from_numpy(TIMES)), interpolated(sd_sigmas(start, end).numpy(), TIMES))


@pytest.mark.parametrize("sigmas", [torch.linspace(0.01, 20, 2), torch.linspace(0.01, 20, 50), sd_sigmas()], ids=len)
def test_entry_n_of_a_models_table_is_at_time_n_plus_1_and_index_times_are_thousandths(sigmas):
    times = np.append(np.arange(1, len(sigmas) + 1), [1.3, len(sigmas) - 0.1]) / len(sigmas)
    noise, expected = VPNoise.from_sigmas(sigmas), interpolated(sigmas.double().numpy(), times)
    assert_close(noise.sigma_at(torch.from_numpy(times)), expected)
    assert_close(noise.sigma_at_index(torch.from_numpy(1000 * times - 1)), expected)
    assert_close(noise.index_at(noise.sigma_at(torch.from_numpy(times[1:]))), 1000 * times[1:] - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_a_models_table_of_any_dtype_becomes_float64_without_gradients(dtype):
    noise = VPNoise.from_sigmas(torch.linspace(0.1, 10, 20, dtype=dtype).requires_grad_())
    levels = noise.sigma_at(torch.tensor([0.5, 1.0], dtype=dtype))
    assert (levels.dtype, levels.device.type, levels.requires_grad) == (torch.float64, "cpu", False)


@pytest.mark.parametrize("betas", [(0.1, 20.0), (0.1, 10.0), (0.5, 5.0)])
def test_the_continuous_schedule_follows_its_closed_form(betas):
    noise, times = VPNoise.linear_beta(*betas), torch.from_numpy(TIMES)
    assert_close(noise.sigma_at(times), linear_beta_sigma(TIMES, *betas), rtol=1e-7)
    assert_close(noise.sigma_at_index(1000 * times), linear_beta_sigma(TIMES, *betas), rtol=1e-7)
    assert_close(noise.index_at(noise.sigma_at(times)), 1000 * TIMES)


@each_schedule
def test_times_are_limited_to_those_of_the_schedule_and_inverse_to_levels(noise):
    levels = noise.sigma_at(torch.tensor([-1.0, 0.0, 1.5]))
    assert_close(levels, f64(noise.sigma_min, noise.sigma_min, noise.sigma_max))
    assert_close(levels[1:], noise.sigma_at(f64(noise.times[0], 1.0)))
    times = torch.linspace(float(noise.times[0]), 1, 333, dtype=torch.float64)
    torch.testing.assert_close(noise.time_at(noise.sigma_at(times)), times, rtol=1e-9, atol=1e-12)
    sigmas = torch.linspace(noise.sigma_min, noise.sigma_max, 333, dtype=torch.float64)
    assert_close(noise.sigma_at(noise.time_at(sigmas)), sigmas)
    for values in (torch.tensor(0.5), torch.full((3,), 0.5), torch.full((2, 3), 0.5)):
        shapes = {f(values).shape for f in (noise.sigma_at, noise.time_at, noise.sigma_at_index)}
        assert shapes == {values.shape}


@each_schedule
@pytest.mark.parametrize(
    ("function", "points"), [("sigma_at", (0.0413, 0.2503, 0.5007, 0.9004)), ("time_at", (0.3111, 1.0222, 5.0333))]
)
def test_gradients_are_finite_differences(noise, function, points):
    assert torch.autograd.gradcheck(getattr(noise, function), f64(*points).requires_grad_(), atol=0, rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "arguments", "message"),
    [
        *((VPNoise.from_sigmas, [torch.ones(*s)], rf"at least two .*, got shape \[{s[0]}") for s in ((2, 2), (1,))),
        *((VPNoise.from_sigmas, [f64(*ends)], "two positive finite levels") for ends in ((0, 1), (1, math.inf))),
        *((VPNoise.from_sigmas, [f64(*levels)], "must ascend") for levels in ((3, 2, 1), (1, 2, 2))),
        (VPNoise.linear_beta, [20.0, 20.0], "beta_0 must be below beta_1 .*, got 20 and 20"),
        (FlowNoise, [0], "tokens must be at least 1 .*, got 0"),
        *((EDMNoise, ends, "0 < sigma_min < sigma_max must hold, got") for ends in ([0, 80], [1, 1])),
        *((EDMNoise, ends, "sigma_max must hold, got") for ends in ([0.002, math.inf], [math.nan, 80])),
    ],
)
def test_an_invalid_schedule_is_refused(schedule, arguments, message):
    with pytest.raises(ValueError, match=message):
        schedule(*arguments)


def karras_levels(steps: int, noise: EDMNoise | VPNoise, rho: float) -> Tensor:
    """k-diffusion's levels, in float64."""
    get_sigmas_karras = k_diffusion_module("sampling").get_sigmas_karras
    torch.set_default_dtype(torch.float64)
    try:
        return get_sigmas_karras(steps, noise.sigma_min, noise.sigma_max, rho)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("rho", [1, 3.0, 7.0])
@pytest.mark.parametrize("noise", [EDMNoise(), EDMNoise(0.03, 15.0), SD], ids=["edm", "edm, narrow", "vp"])
def test_the_polynomial_and_karras_grids_are_k_diffusions(steps, rho, noise):
    levels = Grid("polynomial", {"rho": rho}).levels(steps, noise)
    assert_close(levels, karras_levels(steps + 1, noise, rho)[:-1])
    assert_close(Grid("karras", {"rho": rho}).levels(steps, noise), karras_levels(steps, noise, rho))


@pytest.mark.parametrize("steps", [1, 4, 10])
@pytest.mark.parametrize("end", [1e-3, 0.05])
def test_the_uniform_time_grid_is_even_in_model_time(steps, end):
    grid, times = Grid("uniform_time", {"end": end}), np.linspace(1, end, steps + 1)
    assert_close(grid.levels(steps, SD), interpolated(sd_sigmas().numpy(), times))
    assert_close(grid.levels(steps, LINEAR_BETA), linear_beta_sigma(times), rtol=1e-7)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_the_hosts_even_timesteps_end_at_0(steps):
    """Of `steps` + 1 even timesteps 999 ... 0, ComfyUI's sgm_uniform omits the last; its normal has `steps`."""
    for rule, count in (("sgm_uniform", steps + 1), ("normal", steps)):
        timesteps = torch.linspace(999, 0, count, dtype=torch.float64)[:steps]
        levels = Grid(rule, {"end": 1e-3}).levels(steps, SD)
        torch.testing.assert_close(levels, torch.cat([SD.sigma_at_index(timesteps), f64(0)]))


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("shift", [1, 3.0, 0.5])
def test_the_shifted_flow_grid_divides_signal_by_the_shift(steps, shift):
    levels = Grid("flow_shift", {"shift": shift}).levels(steps, FlowNoise()).numpy()
    t = np.linspace(1, 0, steps + 1)
    assert (levels[0], levels[-1]) == (1, 0)
    np.testing.assert_allclose(levels[1:-1] / (1 - levels[1:-1]), shift * t[1:-1] / (1 - t[1:-1]), rtol=1e-12)


@pytest.mark.parametrize(("tokens", "mu"), [(1, 0.4568359375), (256, 0.5), (4096, 1.15), (8192, 1.8433333333333333)])
def test_the_flux_grid_shifts_with_the_number_of_tokens(tokens, mu):
    t = np.array([1, 0.75, 0.5, 0.25])
    expected = np.append(math.exp(mu) / (math.exp(mu) + (1 / t - 1)), 0.0)
    assert_close(Grid("flux_shift", FLUX).levels(4, FlowNoise(tokens=tokens)), expected)
    assert_close(FlowNoise(tokens=tokens).teacher_grid(4), expected)


@pytest.mark.parametrize(
    ("rule", "parameters", "noise", "message"),
    [
        ("polynomial", {"rho": 1e-9}, EDMNoise(), "polynomial .* not give a descending grid"),
        ("uniform_time", {"end": 1.5}, SD, "uniform_time .* not give a descending grid"),
        ("flux_shift", {**FLUX, "max_tokens": 256}, FlowNoise(1024), "flux_shift .* not give a descending grid"),
        ("flux_shift", {**FLUX, "max_mu": 1e5}, FlowNoise(4096), "flux_shift .* not give a descending grid"),
        ("flux_shift", FLUX, FlowNoise(), r"number of latent tokens, FlowNoise\(tokens=H/16 \* W/16\)"),
        ("polynomial", {"rho": 7}, FlowNoise(), "polynomial is defined on vp and edm noise, got flow"),
        ("uniform_time", {"end": 1e-3}, EDMNoise(), "uniform_time is defined on vp noise, got edm"),
        ("flow_shift", {"shift": 3}, LINEAR_BETA, "flow_shift is defined on flow noise, got vp"),
        ("flux_shift", FLUX, EDMNoise(), "flux_shift is defined on flow noise, got edm"),
    ],
)
def test_a_rule_that_gives_no_grid_on_a_schedule_is_refused(rule, parameters, noise, message):
    with pytest.raises(ValueError, match=message):
        Grid(rule, parameters).levels(4, noise)
