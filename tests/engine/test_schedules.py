"""Noise schedules against independent formulas, and the grids on them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from learned_solvers.samplers import EDMNoise, FlowNoise, Grid, VPNoise
from oracles import k_diffusion_module, sd_sigmas
from torch import Tensor

TIMES = np.array([1e-3, 0.00175, 0.0123, 0.1, 0.2505, 0.5, 0.7777, 0.999, 0.99983, 1.0])
FLUX = {"base_tokens": 256, "base_mu": 0.5, "max_tokens": 4096, "max_mu": 1.15}


def interpolated(sigmas: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Returns the levels of a table with entry n at time (n + 1) / T, log alpha interpolated."""
    log_alphas = -0.5 * np.log(1 + sigmas**2)
    log_alpha = np.interp(times, np.arange(1, len(sigmas) + 1) / len(sigmas), log_alphas)
    return np.sqrt(np.exp(-2 * log_alpha) - 1)


def linear_beta_sigma(times: np.ndarray, beta_0: float = 0.1, beta_1: float = 20.0) -> np.ndarray:
    """Returns sigma / alpha of the VP SDE: alpha = exp(-1/2 integral of beta), sigma^2 = 1 - alpha^2."""
    integral = beta_0 * times + (beta_1 - beta_0) * times**2 / 2
    alpha = np.exp(-integral / 2)
    return np.sqrt(1 - alpha**2) / alpha


def close(levels: Tensor, expected: np.ndarray, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(levels, torch.from_numpy(np.asarray(expected)), rtol=rtol, atol=0)


SCHEDULES = {
    "stable_diffusion": VPNoise.stable_diffusion(),
    "from_sigmas": VPNoise.from_sigmas(torch.linspace(0.05, 3, 40) ** 3),
    "linear_beta": VPNoise.linear_beta(),
}


# VP models.


@pytest.mark.parametrize(("start", "end"), [(0.00085, 0.012), (0.0015, 0.0195)])
def test_the_scaled_linear_schedule_is_latent_diffusions(start, end):
    noise = VPNoise.scaled_linear(start, end)
    close(noise.sigma_at(torch.from_numpy(TIMES)), interpolated(sd_sigmas(start, end).numpy(), TIMES))


def test_stable_diffusion_spans_its_known_levels():
    noise = VPNoise.stable_diffusion()
    assert noise.sigma_min == pytest.approx(0.029167158, rel=1e-6)
    assert noise.sigma_max == pytest.approx(14.61464123, rel=1e-6)


@pytest.mark.parametrize("length", [2, 50, 1000])
def test_entry_n_of_a_models_table_stands_at_time_n_plus_1(length):
    sigmas = torch.linspace(0.01, 20, length, dtype=torch.float64)
    times = torch.arange(1, length + 1, dtype=torch.float64) / length
    torch.testing.assert_close(VPNoise.from_sigmas(sigmas).sigma_at(times), sigmas, rtol=1e-9, atol=0)


def test_a_models_table_is_read_by_index():
    sigmas = sd_sigmas().numpy()
    index = np.array([0.0, 1.0, 499.0, 998.0, 999.0, 12.25, 700.9])
    log_alphas = np.interp(index, np.arange(1000), -0.5 * np.log(1 + sigmas**2))
    close(
        VPNoise.from_sigmas(torch.from_numpy(sigmas)).sigma_at_index(torch.from_numpy(index)),
        np.sqrt(np.exp(-2 * log_alphas) - 1),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_a_models_table_may_have_any_dtype_and_comes_out_in_float64(dtype):
    noise = VPNoise.from_sigmas(torch.linspace(0.1, 10, 20, dtype=dtype))
    levels = noise.sigma_at(torch.tensor([0.5, 1.0], dtype=dtype))
    assert (levels.dtype, levels.device.type) == (torch.float64, "cpu")


def test_a_models_table_with_gradients_is_read_without_them():
    sigmas = torch.linspace(0.1, 10, 20).requires_grad_()
    assert not VPNoise.from_sigmas(sigmas).log_alphas.requires_grad


@pytest.mark.parametrize("betas", [(0.1, 20.0), (0.1, 10.0), (0.5, 5.0)])
def test_the_continuous_schedule_follows_its_closed_form(betas):
    noise = VPNoise.linear_beta(*betas)
    close(noise.sigma_at(torch.from_numpy(TIMES)), linear_beta_sigma(TIMES, *betas), rtol=1e-7)


def test_index_n_of_the_continuous_schedule_is_time_n_in_thousandths():
    close(VPNoise.linear_beta().sigma_at_index(torch.from_numpy(1000 * TIMES)), linear_beta_sigma(TIMES), rtol=1e-7)


def test_the_continuous_schedule_spans_times_of_one_thousandth_to_1():
    noise = VPNoise.linear_beta()
    assert noise.sigma_min == pytest.approx(linear_beta_sigma(np.array(1e-3)), rel=1e-6)
    assert noise.sigma_max == pytest.approx(linear_beta_sigma(np.array(1.0)), rel=1e-9)


@pytest.mark.parametrize("noise", SCHEDULES.values(), ids=SCHEDULES)
def test_times_outside_the_schedule_are_clamped(noise):
    levels = noise.sigma_at(torch.tensor([-1.0, 0.0, 1.5]))
    torch.testing.assert_close(levels, torch.tensor([noise.sigma_min, noise.sigma_min, noise.sigma_max]).double())


@pytest.mark.parametrize("noise", SCHEDULES.values(), ids=SCHEDULES)
def test_the_time_of_a_level_is_the_inverse_of_the_level_at_a_time(noise):
    times = torch.linspace(float(noise.times[0]), 1, 333, dtype=torch.float64)
    torch.testing.assert_close(noise.time_at(noise.sigma_at(times)), times, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("noise", SCHEDULES.values(), ids=SCHEDULES)
def test_the_level_at_a_time_is_the_inverse_of_the_time_of_a_level(noise):
    sigmas = torch.linspace(noise.sigma_min, noise.sigma_max, 333, dtype=torch.float64)
    torch.testing.assert_close(noise.sigma_at(noise.time_at(sigmas)), sigmas, rtol=1e-9, atol=0)


@pytest.mark.parametrize("noise", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_levels_have_the_shape_of_the_times(noise, shape):
    times = torch.full(shape, 0.5)
    assert noise.sigma_at(times).shape == noise.time_at(times).shape == noise.sigma_at_index(times).shape == shape


@pytest.mark.parametrize("noise", SCHEDULES.values(), ids=SCHEDULES)
def test_the_slope_over_time_is_the_finite_difference(noise):
    times = torch.tensor([0.0413, 0.2503, 0.5007, 0.9004], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(noise.sigma_at(times).sum(), times)
    step = 1e-6
    with torch.no_grad():
        difference = (noise.sigma_at(times + step) - noise.sigma_at(times - step)) / (2 * step)
    torch.testing.assert_close(slope, difference, rtol=1e-6, atol=0)


@pytest.mark.parametrize("noise", SCHEDULES.values(), ids=SCHEDULES)
def test_the_slope_over_sigma_is_the_finite_difference(noise):
    sigmas = torch.tensor([0.3111, 1.0222, 5.0333], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(noise.time_at(sigmas).sum(), sigmas)
    step = 1e-6
    with torch.no_grad():
        difference = (noise.time_at(sigmas + step) - noise.time_at(sigmas - step)) / (2 * step)
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        pytest.param(torch.ones(2, 2), r"at least two positive finite levels, got shape \[2, 2\]", id="2-d"),
        pytest.param(torch.tensor(1.0), r"at least two positive finite levels, got shape \[\]", id="0-d"),
        pytest.param(torch.tensor([1.0]), r"at least two positive finite levels, got shape \[1\]", id="one"),
        pytest.param(torch.tensor([]), r"at least two positive finite levels, got shape \[0\]", id="none"),
        pytest.param(torch.tensor([0.0, 1.0]), "at least two positive finite levels", id="zero"),
        pytest.param(torch.tensor([-1.0, 1.0]), "at least two positive finite levels", id="negative"),
        pytest.param(torch.tensor([1.0, math.nan]), "at least two positive finite levels", id="no number"),
        pytest.param(torch.tensor([1.0, math.inf]), "at least two positive finite levels", id="infinite"),
        pytest.param(torch.tensor([3.0, 2.0, 1.0]), "must ascend .*: flip the table", id="descending"),
        pytest.param(torch.tensor([1.0, 2.0, 2.0]), "must ascend", id="equal"),
    ],
)
def test_what_is_no_models_table_is_refused(sigmas, message):
    with pytest.raises(ValueError, match=message):
        VPNoise.from_sigmas(sigmas)


# Flow and EDM models.


@pytest.mark.parametrize("tokens", [0, -1])
def test_a_picture_has_at_least_one_token(tokens):
    with pytest.raises(ValueError, match=f"tokens must be at least 1 .*, got {tokens}"):
        FlowNoise(tokens=tokens)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 80), (-1, 80), (80, 0.002), (1, 1), (0.002, math.inf), (math.nan, 80), (0.002, math.nan)]
)
def test_edm_levels_must_ascend_from_above_0(low, high):
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max must hold, got"):
        EDMNoise(low, high)


@pytest.mark.parametrize(
    ("noise", "kind"), [(FlowNoise(), "flow"), (EDMNoise(), "edm"), (VPNoise.stable_diffusion(), "vp")]
)
def test_a_schedule_knows_its_kind(noise, kind):
    assert noise.kind == kind


# Grids.


def karras_levels(steps: int, noise: EDMNoise | VPNoise, rho: float) -> Tensor:
    """Returns k-diffusion's own levels, in float64."""
    get_sigmas_karras = k_diffusion_module("sampling").get_sigmas_karras
    torch.set_default_dtype(torch.float64)
    try:
        return get_sigmas_karras(steps, noise.sigma_min, noise.sigma_max, rho)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("rho", [1, 3.0, 7.0])
@pytest.mark.parametrize(
    "noise", [EDMNoise(), EDMNoise(0.03, 15.0), VPNoise.stable_diffusion()], ids=["edm", "edm, narrow", "vp"]
)
def test_the_polynomial_grid_is_k_diffusions_without_its_zero(steps, rho, noise):
    levels = Grid("polynomial", {"rho": rho}).levels(steps, noise)
    torch.testing.assert_close(levels, karras_levels(steps + 1, noise, rho)[:-1], rtol=1e-9, atol=0)


@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("noise", [EDMNoise(), VPNoise.stable_diffusion()], ids=["edm", "vp"])
def test_the_karras_grid_is_k_diffusions(steps, noise):
    levels = Grid("karras", {"rho": 7}).levels(steps, noise)
    torch.testing.assert_close(levels, karras_levels(steps, noise, 7.0), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("rule", "value", "noise"),
    [("polynomial", 7.0, EDMNoise()), ("karras", 5.0, VPNoise.stable_diffusion()), ("flow_shift", 3.0, FlowNoise())],
)
def test_a_grid_is_bent_by_its_one_parameter_with_a_gradient(rule, value, noise):
    name = {"flow_shift": "shift"}.get(rule, "rho")
    grid, parameter = Grid(rule, {name: 1.0}), torch.tensor(value, dtype=torch.float64, requires_grad=True)
    assert grid.shape_parameter == name
    torch.testing.assert_close(grid.bent(5, noise, parameter).detach(), Grid(rule, {name: value}).levels(5, noise))
    assert torch.autograd.gradcheck(lambda bend: grid.bent(5, noise, bend), parameter)


@pytest.mark.parametrize("grid", [Grid("uniform_time", {"end": 1e-3}), Grid("flux_shift", FLUX)])
def test_a_grid_of_times_or_of_the_pictures_size_has_no_parameter_to_bend(grid):
    assert grid.shape_parameter is None


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_the_polynomial_grid_is_even_in_the_root(steps):
    levels = Grid("polynomial", {"rho": 5.0}).levels(steps, EDMNoise(0.1, 30.0))
    close(levels ** (1 / 5), np.linspace(30 ** (1 / 5), 0.1 ** (1 / 5), steps + 1))


@pytest.mark.parametrize("steps", [1, 4, 10])
@pytest.mark.parametrize("end", [1e-3, 0.05])
def test_the_uniform_time_grid_is_even_in_model_time(steps, end):
    levels = Grid("uniform_time", {"end": end}).levels(steps, VPNoise.stable_diffusion())
    close(levels, interpolated(sd_sigmas().numpy(), np.linspace(1, end, steps + 1)))


@pytest.mark.parametrize("steps", [1, 4])
def test_the_uniform_time_grid_follows_the_continuous_schedule(steps):
    levels = Grid("uniform_time", {"end": 1e-3}).levels(steps, VPNoise.linear_beta())
    close(levels, linear_beta_sigma(np.linspace(1, 1e-3, steps + 1)), rtol=1e-7)


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("shift", [1, 3.0, 0.5])
def test_the_shifted_flow_grid_divides_signal_by_the_shift(steps, shift):
    levels = Grid("flow_shift", {"shift": shift}).levels(steps, FlowNoise()).numpy()
    t = np.linspace(1, 0, steps + 1)
    assert (levels[0], levels[-1]) == (1, 0)
    np.testing.assert_allclose(levels[1:-1] / (1 - levels[1:-1]), shift * t[1:-1] / (1 - t[1:-1]), rtol=1e-12)


@pytest.mark.parametrize(("tokens", "mu"), [(256, 0.5), (1024, 0.63), (4096, 1.15), (8192, 1.8433333333333333)])
def test_the_flux_grid_shifts_with_the_number_of_tokens(tokens, mu):
    levels = Grid("flux_shift", FLUX).levels(4, FlowNoise(tokens=tokens))
    t = np.array([1, 0.75, 0.5, 0.25])
    close(levels, np.append(math.exp(mu) / (math.exp(mu) + (1 / t - 1)), 0.0))


@pytest.mark.parametrize(
    ("grid", "noise"),
    [
        (Grid("polynomial", {"rho": 7}), EDMNoise()),
        (Grid("uniform_time", {"end": 0.001}), VPNoise.stable_diffusion()),
        (Grid("flow_shift", {"shift": 3}), FlowNoise()),
        (Grid("flux_shift", FLUX), FlowNoise(tokens=1024)),
    ],
    ids=lambda value: getattr(value, "rule", ""),
)
def test_levels_descend_in_float64(grid, noise):
    levels = grid.levels(9, noise)
    assert (levels.dtype, levels.shape) == (torch.float64, (10,))
    assert bool((levels.diff() < 0).all())


@pytest.mark.parametrize(
    ("rule", "parameters", "message"),
    [
        pytest.param("cosine", {"rho": 7}, "must be one of polynomial, .*, got 'cosine': update", id="rule"),
        pytest.param("polynomial", {}, "polynomial needs rho, got none", id="missing"),
        pytest.param("polynomial", {"rho": 7, "end": 1}, "polynomial needs rho, got rho, end", id="too many"),
        pytest.param("uniform_time", {"rho": 7}, "uniform_time needs end, got rho", id="other"),
        pytest.param("flux_shift", {"base_mu": 1}, "needs base_tokens, base_mu, max_tokens, max_mu", id="some"),
        pytest.param("polynomial", {"rho": 0}, "rho must be a positive finite number, got 0", id="zero"),
        pytest.param("polynomial", {"rho": -7.0}, "rho must be a positive finite number, got -7.0", id="negative"),
        pytest.param("polynomial", {"rho": math.inf}, "rho must be a positive finite number, got inf", id="infinite"),
        pytest.param("polynomial", {"rho": math.nan}, "rho must be a positive finite number, got nan", id="no number"),
        pytest.param("polynomial", {"rho": True}, "rho must be a positive finite number, got True", id="bool"),
        pytest.param("polynomial", {"rho": "7"}, "rho must be a positive finite number, got '7'", id="text"),
        pytest.param("polynomial", {"rho": None}, "rho must be a positive finite number, got None", id="null"),
    ],
)
def test_what_is_no_grid_is_refused(rule, parameters, message):
    with pytest.raises(ValueError, match=message):
        Grid(rule, parameters)


@pytest.mark.parametrize(
    ("rule", "parameters", "noise"),
    [
        pytest.param("polynomial", {"rho": 10**400}, EDMNoise(), id="rho beyond float"),
        pytest.param("polynomial", {"rho": 1e-9}, EDMNoise(), id="rho near 0"),
        pytest.param("uniform_time", {"end": 1.5}, VPNoise.stable_diffusion(), id="end beyond the start"),
        pytest.param("flow_shift", {"shift": 10**400}, FlowNoise(), id="shift beyond float"),
        pytest.param("flux_shift", {**FLUX, "max_tokens": 256}, FlowNoise(tokens=1024), id="a line through one point"),
        pytest.param("flux_shift", {**FLUX, "max_mu": 1e5}, FlowNoise(tokens=4096), id="shift overflows"),
    ],
)
def test_parameters_that_make_no_descending_grid_are_refused(rule, parameters, noise):
    with pytest.raises(ValueError, match=f"{rule}|{next(iter(parameters))}"):
        Grid(rule, parameters).levels(4, noise)


@pytest.mark.parametrize(
    ("grid", "noise", "message"),
    [
        (Grid("polynomial", {"rho": 7}), FlowNoise(), "polynomial is defined on vp and edm noise, got flow"),
        (Grid("uniform_time", {"end": 1e-3}), EDMNoise(), "uniform_time is defined on vp noise, got edm"),
        (Grid("uniform_time", {"end": 1e-3}), FlowNoise(), "uniform_time is defined on vp noise, got flow"),
        (Grid("flow_shift", {"shift": 3}), VPNoise.linear_beta(), "flow_shift is defined on flow noise, got vp"),
        (Grid("flux_shift", FLUX), EDMNoise(), "flux_shift is defined on flow noise, got edm"),
    ],
)
def test_a_grid_is_refused_on_another_kind_of_noise(grid, noise, message):
    with pytest.raises(ValueError, match=message):
        grid.levels(4, noise)


def test_a_grid_that_shifts_with_resolution_asks_for_the_tokens():
    with pytest.raises(ValueError, match=r"give the number of latent tokens, FlowNoise\(tokens=H/16 \* W/16\)"):
        Grid("flux_shift", FLUX).levels(4, FlowNoise())


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_the_hosts_even_timesteps_end_at_0(steps):
    """ComfyUI's sgm_uniform leaves the last of steps + 1 timesteps 999 ... 0 out, its normal has `steps` of them."""
    noise = VPNoise.stable_diffusion()
    last = torch.zeros(1, dtype=torch.float64)
    timesteps = torch.linspace(999, 0, steps + 1, dtype=torch.float64)[:-1]
    levels = Grid("sgm_uniform", {"end": 1e-3}).levels(steps, noise)
    torch.testing.assert_close(levels, torch.cat([noise.sigma_at_index(timesteps), last]))
    timesteps = torch.linspace(999, 0, steps, dtype=torch.float64)
    levels = Grid("normal", {"end": 1e-3}).levels(steps, noise)
    torch.testing.assert_close(levels, torch.cat([noise.sigma_at_index(timesteps), last]))
