"""Each classical method has its order, and equals k-diffusion's own where k-diffusion has it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from learned_solvers.samplers import (
    SolverTable,
    VPNoise,
    adams_bashforth,
    deis,
    deis_edm,
    dpmpp_2m,
    euler,
    euler_end,
    heun,
    ipndm,
    ipndm_v,
    res_multistep,
    sample_table,
    uni_pc,
)
from oracles import Constant, GaussianFlow, GaussianVE, Mixture, Recorder, k_diffusion_module
from torch import Tensor

UNEVEN = torch.tensor([14.0, 9.0, 5.5, 3.9, 1.7, 0.9, 0.35, 0.1], dtype=torch.float64)
UNEVEN_TO_ZERO = torch.tensor([1.0, 0.93, 0.7, 0.66, 0.4, 0.25, 0.1, 0.0], dtype=torch.float64)
WIDE = GaussianVE(mean=0.5, variance=1.0)


def even(first: float, last: float, steps: int) -> Tensor:
    return torch.linspace(first, last, steps + 1, dtype=torch.float64)


def polynomial(first: float, last: float, steps: int, rho: float = 3.0) -> Tensor:
    return even(first ** (1 / rho), last ** (1 / rho), steps) ** rho


def alternating(first: float, last: float, steps: int) -> Tensor:
    """Returns a grid whose steps are short and long by turns, however many there are."""
    lengths = torch.tensor([1.0, 2.0], dtype=torch.float64).repeat(steps // 2)
    return first + (last - first) * torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]) / lengths.sum()


def order_of(method, grid, oracle=WIDE, steps: tuple[int, int] = (80, 160)) -> float:
    """Returns the slope of log error over log step between two step counts."""

    def error(n: int) -> float:
        table = method(grid(n))
        x = torch.full((1, 1), 1.3 * table.sigma_start + 0.1, dtype=torch.float64)
        exact = oracle.path(x, table.sigma_start, table.sigma_end)
        return float((sample_table(oracle, x, table, disable=True) - exact).abs())

    return math.log(error(steps[0]) / error(steps[1])) / math.log(steps[1] / steps[0])


def mixture(flow: bool = False) -> Mixture:
    mean = torch.tensor([[1.0, -0.5, 0.3], [-0.8, 0.6, -1.0]], dtype=torch.float64)
    std, logw = torch.tensor([0.3, 0.5], dtype=torch.float64), torch.tensor([0.1, -0.1], dtype=torch.float64)
    return Mixture(mean, std, logw, flow)


def start(sigmas: Tensor) -> Tensor:
    return sigmas[0] * torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


GRIDS = [pytest.param(UNEVEN, False, id="VE"), pytest.param(UNEVEN_TO_ZERO, True, id="flow to 0")]


# Order of convergence.


def test_euler_has_order_1():
    assert order_of(euler, lambda n: polynomial(40, 0.5, n)) == pytest.approx(1, abs=0.15)


def test_euler_has_order_1_on_flow_models():
    assert order_of(euler, lambda n: even(1, 0, n), GaussianFlow()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_adams_bashforth_has_its_order_on_an_uneven_grid(order):
    assert order_of(lambda s: adams_bashforth(s, order), lambda n: polynomial(40, 0.5, n)) == pytest.approx(
        order, abs=0.15
    )


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_has_its_order_on_an_even_grid(order):
    assert order_of(lambda s: ipndm(s, order), lambda n: even(10, 1, n)) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_ipndm_has_only_order_1_where_steps_alternate(order):
    assert order_of(lambda s: ipndm(s, order), lambda n: alternating(10, 1, n)) == pytest.approx(1, abs=0.4)


@pytest.mark.parametrize("order", [2, 3])
def test_adams_bashforth_keeps_its_order_where_steps_alternate(order):
    assert order_of(lambda s: adams_bashforth(s, order), lambda n: alternating(10, 1, n)) == pytest.approx(
        order, abs=0.2
    )


def test_dpmpp_2m_has_order_2():
    assert order_of(dpmpp_2m, lambda n: polynomial(40, 0.1, n, rho=7)) == pytest.approx(2, abs=0.15)


def test_dpmpp_2m_has_order_2_on_flow_models():
    assert order_of(dpmpp_2m, lambda n: even(0.99, 0.05, n), GaussianFlow()) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_has_its_order(order):
    assert order_of(lambda s: deis(s, order), lambda n: polynomial(40, 0.5, n)) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_has_its_order_in_model_time(order):
    noise = VPNoise.linear_beta()
    slope = order_of(lambda s: deis(s, order, noise), lambda n: noise.sigma_at(even(0.9, 0.1, n)), steps=(8, 16))
    assert slope == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("order", [1, 2])
def test_deis_has_its_order_on_a_models_table(order):
    noise = VPNoise.stable_diffusion()
    slope = order_of(lambda s: deis(s, order, noise), lambda n: noise.sigma_at(even(0.9, 0.1, n)), steps=(8, 16))
    assert slope == pytest.approx(order, abs=0.2)


def test_heun_has_order_2_where_steps_alternate():
    assert order_of(heun, lambda n: alternating(10, 1, n)) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_in_edms_time_has_its_order(order):
    slope = order_of(lambda s: deis_edm(s, order), lambda n: alternating(10, 1, n), steps=(20, 40))
    assert slope == pytest.approx(order, abs=0.2)


def test_res_multistep_has_order_2():
    assert order_of(res_multistep, lambda n: polynomial(40, 0.1, n, rho=7)) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_uni_pc_has_the_order_2_of_its_last_step(variant):
    assert order_of(lambda s: uni_pc(s, variant), lambda n: alternating(10, 1, n)) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_uni_pc_has_more_than_order_3_before_its_last_steps(variant):
    def all_but_two(sigmas: Tensor) -> SolverTable:
        table = uni_pc(sigmas, variant)
        k = table.steps - 2
        return SolverTable(table.levels[: k + 1], table.sigmas[:k], table.scale[:k], table.coeffs[:k, :k], "denoised")

    assert order_of(all_but_two, lambda n: polynomial(10, 1, n + 2), steps=(40, 80)) > 2.8


@pytest.mark.parametrize(("order", "slope"), [(1, 1), (2, 2), (3, 2.3), (4, 0.1)])
def test_ipndm_v_has_the_order_that_its_sources_factors_leave_where_steps_alternate(order, slope):
    assert order_of(lambda s: ipndm_v(s, order), lambda n: alternating(10, 1, n)) == pytest.approx(slope, abs=0.15)


# Equality with other implementations.


@pytest.mark.parametrize(("sigmas", "flow"), GRIDS)
def test_heun_is_k_diffusions_with_as_many_calls(sigmas, flow):
    model, theirs = Recorder(mixture(flow)), Recorder(mixture(flow))
    expected = k_diffusion_module("sampling").sample_heun(theirs, start(sigmas), sigmas, disable=True)
    result = sample_table(model, start(sigmas), heun(sigmas), disable=True)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)
    assert len(model.x) == len(theirs.x) == heun(sigmas).nfe
    torch.testing.assert_close(model.sigmas, theirs.sigmas)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_ipndm_v_is_ipndm_on_an_even_grid(order):
    sigmas = even(12, 1, 9)
    torch.testing.assert_close(ipndm_v(sigmas, order).coeffs, ipndm(sigmas, order).coeffs, rtol=1e-9, atol=1e-9)


def test_ipndm_v_of_order_4_sums_to_the_step_on_even_grids_only():
    even_steps, uneven = even(12, 1, 9), ipndm_v(UNEVEN)
    torch.testing.assert_close(ipndm_v(even_steps).coeffs.sum(1), even_steps.diff(), rtol=1e-9, atol=1e-9)
    assert float((uneven.coeffs.sum(1) - UNEVEN.diff()).abs().max()) > 0.05


def test_ipndm_v_of_order_2_is_adams_bashforth_on_every_grid():
    torch.testing.assert_close(ipndm_v(UNEVEN, 2).coeffs, adams_bashforth(UNEVEN, 2).coeffs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_in_edms_time_is_deis_on_edms_sde(order):
    """But for the quadrature of its source, whose error is one part in ten thousand."""
    log = [math.log1p(sigma**2) for sigma in (0.002, 80.0)]
    slope = 2 * (log[0] / 1e-3 - log[1]) / (1e-3 - 1)
    noise = VPNoise.linear_beta(log[1] - slope / 2, log[1] + slope / 2)
    assert (noise.sigma_min, noise.sigma_max) == (pytest.approx(0.002), pytest.approx(80))
    torch.testing.assert_close(deis_edm(UNEVEN, order).coeffs, deis(UNEVEN, order, noise).coeffs, rtol=2e-3, atol=1e-4)


def test_an_euler_end_is_the_last_picture_and_changes_nothing_else():
    table, plain = euler_end(ipndm(UNEVEN_TO_ZERO, 4)), ipndm(UNEVEN_TO_ZERO, 4)
    torch.testing.assert_close(table.coeffs[:-1], plain.coeffs[:-1], rtol=0, atol=0)
    x, model = start(UNEVEN_TO_ZERO), Recorder(mixture(flow=True))
    result = sample_table(model, x, table, disable=True)
    torch.testing.assert_close(result, model.model(model.x[-1], model.sigma[-1]), rtol=1e-12, atol=1e-12)
    assert euler_end(ipndm(UNEVEN, 4)).coeffs.equal(ipndm(UNEVEN, 4).coeffs)


def test_uni_pc_ends_at_a_thousandth_in_place_of_0():
    table = uni_pc(UNEVEN_TO_ZERO)
    assert table.sigma_end == 0.001
    torch.testing.assert_close(table.coeffs, uni_pc(torch.cat([UNEVEN_TO_ZERO[:-1], table.levels[-1:]])).coeffs)
    torch.testing.assert_close(table.scale + table.coeffs.sum(1), torch.ones(7).double(), rtol=1e-9, atol=1e-9)


def test_uni_pc_of_too_few_levels_is_refused():
    for sigmas in ([1.0, 0.0], [1.0, 0.001, 0.0]):
        with pytest.raises(ValueError, match=r"uni_pc needs two steps above noise level 0.001, got"):
            uni_pc(torch.tensor(sigmas, dtype=torch.float64))
    with pytest.raises(ValueError, match="variant must be bh1 or bh2, got 'bh3'"):
        uni_pc(UNEVEN, "bh3")


@pytest.mark.parametrize(("sigmas", "flow"), GRIDS)
def test_euler_is_k_diffusions(sigmas, flow):
    expected = k_diffusion_module("sampling").sample_euler(mixture(flow), start(sigmas), sigmas, disable=True)
    result = sample_table(mixture(flow), start(sigmas), euler(sigmas), disable=True)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("sigmas", "flow"), GRIDS)
def test_dpmpp_2m_is_k_diffusions(sigmas, flow):
    expected = k_diffusion_module("sampling").sample_dpmpp_2m(mixture(flow), start(sigmas), sigmas, disable=True)
    result = sample_table(mixture(flow), start(sigmas), dpmpp_2m(sigmas), disable=True)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize(("sigmas", "flow"), GRIDS)
def test_adams_bashforth_is_k_diffusions_lms(sigmas, flow, order):
    sample_lms = k_diffusion_module("sampling").sample_lms
    expected = sample_lms(mixture(flow), start(sigmas), sigmas, disable=True, order=order)
    result = sample_table(mixture(flow), start(sigmas), adams_bashforth(sigmas, order), disable=True)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_adams_bashforth_rows_are_the_integrals_of_lagrange_polynomials(order):
    row = adams_bashforth(UNEVEN, order).coeffs[5]
    nodes = UNEVEN[6 - order : 6].numpy()
    bases = [np.poly1d(np.poly(np.delete(nodes, j)) / np.prod(nodes[j] - np.delete(nodes, j))) for j in range(order)]
    integrals = [np.polyint(base)(UNEVEN[6].item()) - np.polyint(base)(UNEVEN[5].item()) for base in bases]
    expected = np.concatenate([np.zeros(6 - order), integrals, [0.0]])
    torch.testing.assert_close(row, torch.from_numpy(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_adams_bashforth_is_ipndm_on_an_even_grid(order):
    sigmas = even(12, 1, 9)
    torch.testing.assert_close(
        adams_bashforth(sigmas, order).coeffs, ipndm(sigmas, order).coeffs, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_without_a_schedule_is_adams_bashforth(order):
    torch.testing.assert_close(deis(UNEVEN, order).coeffs, adams_bashforth(UNEVEN, order).coeffs, rtol=0, atol=0)


def test_deis_of_order_1_is_euler_whatever_the_schedule():
    table = deis(UNEVEN, 1, VPNoise.stable_diffusion())
    torch.testing.assert_close(table.coeffs, euler(UNEVEN).coeffs)


@pytest.mark.parametrize("order", [2, 3])
def test_deis_rows_integrate_polynomials_of_model_time(order):
    """The integral over sigma of L_j(time(sigma)), by a fine trapezoid in time."""
    noise = VPNoise.linear_beta()
    sigmas = noise.sigma_at(torch.tensor([0.95, 0.8, 0.5, 0.3]))
    nodes = noise.time_at(sigmas[3 - order : 3]).numpy()
    times = np.linspace(nodes[-1], 0.3, 20001)
    slope = np.gradient(noise.sigma_at(torch.from_numpy(times)).numpy(), times)
    bases = [np.prod([(times - t) / (nodes[j] - t) for t in np.delete(nodes, j)], axis=0) for j in range(order)]
    expected = torch.trapezoid(torch.from_numpy(np.array(bases) * slope), torch.from_numpy(times))
    torch.testing.assert_close(deis(sigmas, order, noise).coeffs[2, 3 - order :], expected, rtol=1e-5, atol=1e-8)


# The tables.


METHODS = {
    "euler": euler,
    "adams_bashforth": lambda s: adams_bashforth(s, 3),
    "ipndm": lambda s: ipndm(s, 3),
    "dpmpp_2m": dpmpp_2m,
    "deis": lambda s: deis(s, 3),
    "deis in time": lambda s: deis(s, 3, VPNoise.stable_diffusion()),
    "deis in EDM's time": deis_edm,
    "ipndm_v of order 3": lambda s: ipndm_v(s, 3),
    "res_multistep": res_multistep,
    "uni_pc": uni_pc,
    "uni_pc bh2": lambda s: uni_pc(s, "bh2"),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("sigmas", [UNEVEN, UNEVEN_TO_ZERO], ids=["VE", "flow to 0"])
def test_the_model_is_called_at_the_states_own_levels(method, sigmas):
    table = method(sigmas)
    torch.testing.assert_close(table.levels, sigmas, rtol=0, atol=0.001)  # uni_pc ends at 0.001
    torch.testing.assert_close(table.sigmas, sigmas[:-1], rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("sigmas", [UNEVEN, UNEVEN_TO_ZERO], ids=["VE", "flow to 0"])
def test_a_straight_path_is_followed_exactly(method, sigmas):
    x = start(sigmas)
    table = method(sigmas)
    result = sample_table(Constant(), x, table, disable=True)
    expected = Constant().path(x, table.sigma_start, table.sigma_end)
    tolerance = 1e-5 if method is deis_edm else 1e-9  # its source sums ten thousand values
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


def test_a_last_step_of_dpmpp_2m_to_0_is_the_last_picture():
    table = dpmpp_2m(UNEVEN_TO_ZERO)
    torch.testing.assert_close(table.coeffs[-1], torch.tensor([0, 0, 0, 0, 0, 0, 1]).double())
    assert float(table.scale[-1]) == 0


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_sigmas_in_float32_with_gradients_are_accepted(method):
    table = method(UNEVEN.float().requires_grad_())
    assert (table.coeffs.dtype, table.requires_grad) == (torch.float64, False)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize(
    "sigmas",
    [
        pytest.param([1.0], id="one"),
        pytest.param([], id="none"),
        pytest.param([[2.0, 1.0], [1.0, 0.0]], id="2-d"),
        pytest.param(1.0, id="0-d"),
        pytest.param([1.0, 2.0], id="ascending"),
        pytest.param([2.0, 2.0, 1.0], id="equal"),
        pytest.param([2.0, -1.0], id="below 0"),
    ],
)
def test_levels_that_do_not_descend_are_refused(method, sigmas):
    with pytest.raises(ValueError, match=r"sigmas must be at least two descending levels, the last 0 or above, got"):
        method(torch.tensor(sigmas))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("sigma", [math.inf, math.nan])
def test_levels_that_are_no_numbers_are_refused(method, sigma):
    with pytest.raises(ValueError, match="levels must be finite"):
        method(torch.tensor([sigma, 1.0, 0.0]))


@pytest.mark.parametrize(
    ("method", "order", "message"),
    [
        (adams_bashforth, 0, "adams_bashforth has orders 1 to 4, got 0"),
        (adams_bashforth, 5, "adams_bashforth has orders 1 to 4, got 5"),
        (ipndm, 0, "ipndm has orders 1 to 4, got 0"),
        (ipndm, 5, "ipndm has orders 1 to 4, got 5"),
        (deis, 0, "deis has orders 1 to 3, got 0"),
        (deis, 4, "deis has orders 1 to 3, got 4"),
        (deis_edm, 4, "deis_edm has orders 1 to 3, got 4"),
        (ipndm_v, 5, "ipndm_v has orders 1 to 4, got 5"),
    ],
)
def test_an_order_that_a_method_does_not_have_is_refused(method, order, message):
    with pytest.raises(ValueError, match=message):
        method(UNEVEN, order)
