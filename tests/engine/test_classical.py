"""Classical methods: orders of convergence, independent integrals, and the results of k-diffusion and ComfyUI."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from learned_solvers.samplers import SolverTable, VPNoise
from learned_solvers.samplers.classical import adams_bashforth, deis, deis_edm, euler, euler_end, heun, ipndm, ipndm_v
from learned_solvers.samplers.classical.exponential import dpmpp_2m, res_multistep, uni_pc
from learned_solvers.samplers.conversion import with_denoised, with_derivatives
from oracles import Constant, GaussianFlow, GaussianVE, Recorder, f64, k_diffusion_module, mixture, run, start
from torch import Tensor
from torch.testing import assert_close

UNEVEN = f64(14, 9, 5.5, 3.9, 1.7, 0.9, 0.35, 0.1)
UNEVEN_TO_ZERO = f64(1, 0.93, 0.7, 0.66, 0.4, 0.25, 0.1, 0)
LINEAR_BETA, STABLE_DIFFUSION = VPNoise.linear_beta(), VPNoise.stable_diffusion()


def even(first: float, last: float, steps: int) -> Tensor:
    return torch.linspace(first, last, steps + 1, dtype=torch.float64)


def polynomial(first: float, last: float, steps: int, rho: float = 3.0) -> Tensor:
    return even(first ** (1 / rho), last ** (1 / rho), steps) ** rho


def alternating(steps: int) -> Tensor:
    """A grid from 10 to 1 with short and long steps in turn, at every step count."""
    lengths = f64(1, 2).repeat(steps // 2)
    return 10 - 9 * torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]) / lengths.sum()


GRIDS = {  # for orders of convergence, by name: the grid of n steps, and the smaller of the two step counts
    "polynomial": (lambda n: polynomial(40, 0.5, n), 80),
    "steep": (lambda n: polynomial(40, 0.1, n, rho=7), 80),
    "even": (lambda n: even(10, 1, n), 80),
    "alternating": (alternating, 80),
    "alternating, few": (alternating, 20),
    "flow": (lambda n: even(0.99, 0.05, n), 80),
    "flow to 0": (lambda n: even(1, 0, n), 80),
    "linear beta": (lambda n: LINEAR_BETA.sigma_at(even(0.9, 0.1, n)), 8),
    "model's table": (lambda n: STABLE_DIFFUSION.sigma_at(even(0.9, 0.1, n)), 8),
}


def order_of(method, grid_name: str) -> float:
    """The slope of log error over log step between a step count and twice as many."""
    oracle = GaussianFlow() if grid_name.startswith("flow") else GaussianVE(mean=0.5, variance=1.0)
    grid, steps = GRIDS[grid_name]

    def error(n: int) -> float:
        table = method(grid(n))
        x = torch.full((1, 1), 1.3 * table.sigma_start + 0.1, dtype=torch.float64)
        return float((run(oracle, x, table) - oracle.path(x, table.sigma_start, table.sigma_end)).abs())

    return math.log2(error(steps) / error(2 * steps))


@pytest.mark.parametrize(
    ("method", "options", "grid", "order", "tolerance"),
    [
        *((euler, (), grid, 1, 0.15) for grid in ("polynomial", "flow to 0")),
        *((adams_bashforth, (k,), "polynomial", k, 0.15) for k in (1, 2, 3, 4)),
        *((adams_bashforth, (k,), "alternating", k, 0.2) for k in (2, 3)),
        *((ipndm, (k,), "even", k, 0.3) for k in (1, 2, 3, 4)),
        *((ipndm, (k,), "alternating", 1, 0.4) for k in (2, 3, 4)),
        # The factors of its source reduce the orders 3 and 4.
        *((ipndm_v, (k,), "alternating", order, 0.15) for k, order in {1: 1, 2: 2, 3: 2.3, 4: 0.1}.items()),
        *((deis, (k, LINEAR_BETA), "linear beta", k, 0.2) for k in (1, 2, 3)),
        *((deis, (k, STABLE_DIFFUSION), "model's table", k, 0.2) for k in (1, 2)),
        *((deis_edm, (k,), "alternating, few", k, 0.2) for k in (1, 2, 3)),
        *((dpmpp_2m, (), grid, 2, 0.15) for grid in ("steep", "flow")),
        *((res_multistep, (), "steep", 2, 0.15), (heun, (), "alternating", 2, 0.15)),
        *((uni_pc, (variant,), "alternating", 2, 0.15) for variant in ("bh1", "bh2")),  # the order of its last step
    ],
)
def test_a_method_has_its_order(method, options, grid, order, tolerance):
    assert order_of(lambda s: method(s, *options), grid) == pytest.approx(order, abs=tolerance)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_uni_pc_has_nearly_order_3_before_its_last_two_steps(variant):
    def beginning(sigmas: Tensor) -> SolverTable:
        table = uni_pc(torch.cat([sigmas, sigmas[-1:] * f64(0.9, 0.8)]), variant)
        k = len(sigmas) - 1
        return SolverTable(sigmas, sigmas[:-1], table.scale[:k], table.coeffs[:k, :k], "denoised")

    assert order_of(beginning, "polynomial") > 2.8


@pytest.mark.parametrize(
    ("sampler", "options", "method", "tolerance"),
    [
        *((f"sample_{method.__name__}", {}, method, 1e-10) for method in (euler, heun, dpmpp_2m)),
        # k-diffusion integrates numerically.
        *(("sample_lms", {"order": k}, partial(adams_bashforth, order=k), 1e-4) for k in (1, 2, 3, 4)),
    ],
)
@pytest.mark.parametrize(("sigmas", "flow"), [(UNEVEN, False), (UNEVEN_TO_ZERO, True)], ids=["VE", "flow to 0"])
def test_a_method_is_k_diffusions(sigmas, flow, sampler, options, method, tolerance):
    model, reference = Recorder(mixture(flow)), Recorder(mixture(flow))
    x, table = start(sigmas[0], 4, 3), method(sigmas)
    expected = getattr(k_diffusion_module("sampling"), sampler)(reference, x, sigmas, disable=True, **options)
    assert_close(run(model, x, table), expected, rtol=tolerance, atol=tolerance)
    assert len(model.x) == len(reference.x) == table.nfe
    assert_close(model.sigmas, reference.sigmas)


COMFYUIS = [  # method, order, and the weights recorded on the grid UNEVEN
    (ipndm_v, 3, -4.318937254902, -3.441731279178, -0.480280038331, -3.619602829768, -0.870466151833, -0.740671559343),
    (ipndm_v, 4, -4.229224316261, -4.004435242956, 0.565236044675, -4.157714637990, -0.857729636556, -0.771635079566),
    (deis_edm, 2, 0.0688459536, -0.3188461140),
    (deis_edm, 3, -0.0535285081, 0.1715361455, -0.3680077662),
]


@pytest.mark.parametrize("recorded", COMFYUIS)
def test_weights_are_comfyuis(recorded):
    """Of the derivatives in `sample_ipndm_v`'s result; of `get_deis_coeff_list` the last row, in float32."""
    method, order, *expected = recorded
    coeffs = method(UNEVEN, order).coeffs
    weights, tolerance = (coeffs.sum(0)[:-1], 1e-10) if method is ipndm_v else (coeffs[-1, -order:], 1e-6)
    assert_close(weights, f64(*expected), rtol=tolerance, atol=tolerance / 100)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_adams_bashforth_rows_are_the_integrals_of_lagrange_polynomials(order):
    row = adams_bashforth(UNEVEN, order).coeffs[5]
    nodes = UNEVEN[6 - order : 6].numpy()
    bases = [np.poly1d(np.poly(np.delete(nodes, j)) / np.prod(nodes[j] - np.delete(nodes, j))) for j in range(order)]
    integrals = [np.polyint(base)(UNEVEN[6].item()) - np.polyint(base)(UNEVEN[5].item()) for base in bases]
    expected = np.concatenate([np.zeros(6 - order), integrals, [0.0]])
    assert_close(row, torch.from_numpy(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("order", [2, 3])
def test_deis_rows_integrate_polynomials_of_model_time(order):
    """The integral over sigma of L_j(time(sigma)), by a fine trapezoid in time."""
    sigmas = LINEAR_BETA.sigma_at(torch.tensor([0.95, 0.8, 0.5, 0.3]))
    nodes = LINEAR_BETA.time_at(sigmas[3 - order : 3]).numpy()
    times = np.linspace(nodes[-1], 0.3, 20001)
    slope = np.gradient(LINEAR_BETA.sigma_at(torch.from_numpy(times)).numpy(), times)
    bases = [np.prod([(times - t) / (nodes[j] - t) for t in np.delete(nodes, j)], axis=0) for j in range(order)]
    expected = torch.trapezoid(torch.from_numpy(np.array(bases) * slope), torch.from_numpy(times))
    assert_close(deis(sigmas, order, LINEAR_BETA).coeffs[2, 3 - order :], expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("method", "other", "order", "sigmas", "tolerance"),
    [
        *((ipndm_v, adams_bashforth, order, UNEVEN, 1e-9) for order in (1, 2)),
        *((ipndm, adams_bashforth, order, even(12, 1, 9), 1e-10) for order in (1, 2, 3, 4)),
        *((deis, adams_bashforth, order, UNEVEN, 0) for order in (1, 2, 3)),
    ],
)
def test_two_methods_agree(method, other, order, sigmas, tolerance):
    assert_close(method(sigmas, order).coeffs, other(sigmas, order).coeffs, rtol=tolerance, atol=tolerance)


def test_an_euler_end_is_the_last_picture_and_changes_nothing_else():
    plain, model = ipndm(UNEVEN_TO_ZERO, 4), Recorder(mixture(flow=True))
    table = euler_end(plain)
    assert_close(table.coeffs[:-1], plain.coeffs[:-1], rtol=0, atol=0)
    result = run(model, start(), table)
    assert_close(result, model.model(model.x[-1], model.sigma[-1]), rtol=1e-12, atol=1e-12)
    assert euler_end(ipndm(UNEVEN, 4)).coeffs.equal(ipndm(UNEVEN, 4).coeffs)


METHODS = {
    **{"euler": euler, "dpmpp_2m": dpmpp_2m, "res_multistep": res_multistep, "deis in EDM's time": deis_edm},
    **{"adams_bashforth": partial(adams_bashforth, order=3), "ipndm": partial(ipndm, order=3)},
    **{"ipndm_v of order 3": partial(ipndm_v, order=3), "deis in time": lambda s: deis(s, 3, STABLE_DIFFUSION)},
    **{"uni_pc": uni_pc, "uni_pc bh2": lambda s: uni_pc(s, "bh2")},
}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@each_method
@pytest.mark.parametrize("sigmas", [UNEVEN, UNEVEN_TO_ZERO], ids=["VE", "flow to 0"])
def test_a_straight_path_is_followed_exactly_with_calls_at_the_states_levels(method, sigmas):
    table, x = method(sigmas), start(sigmas[0])
    assert_close(table.levels[:-1], sigmas[:-1], rtol=0, atol=0)
    assert table.sigma_end in (sigmas[-1], 0.001)  # uni_pc ends at 0.001 instead of 0
    assert_close(table.sigmas, sigmas[:-1], rtol=0, atol=0)
    tolerance = 1e-5 if method is deis_edm else 1e-9  # its source sums ten thousand values
    expected = Constant().path(x, table.sigma_start, table.sigma_end)
    assert_close(run(Constant(), x, table), expected, rtol=tolerance, atol=tolerance)


@each_method
@pytest.mark.parametrize("conversion", [with_denoised, with_derivatives])
def test_a_table_with_the_other_kind_of_entry_gives_the_same_result(conversion, method):
    table, x = method(UNEVEN), start(UNEVEN[0])
    assert_close(run(mixture(), x, conversion(table)), run(mixture(), x, table), rtol=1e-9, atol=1e-9)


@each_method
def test_sigmas_may_be_float32_with_gradients_and_must_be_finite_and_descending(method):
    table = method(UNEVEN.float().requires_grad_())
    assert (table.coeffs.dtype, table.requires_grad) == (torch.float64, False)
    with pytest.raises(ValueError, match="sigmas must be at least two descending levels"):
        method(f64(2, 2, 1))
    with pytest.raises(ValueError, match="levels must be finite"):
        method(f64(math.inf, 1, 0))


@pytest.mark.parametrize("sigmas", [[1.0], [], [[2.0, 1.0], [1.0, 0.0]], 1.0, [1.0, 2.0], [2.0, -1.0]], ids=str)
def test_anything_but_two_descending_levels_of_at_least_0_is_refused(sigmas):
    with pytest.raises(ValueError, match="sigmas must be at least two descending levels, the last 0 or above, got"):
        euler(torch.tensor(sigmas))


@pytest.mark.parametrize(
    ("method", "sigmas", "option", "message"),
    [
        (adams_bashforth, UNEVEN, 0, "adams_bashforth has orders 1 to 4, got 0"),
        *((m, UNEVEN, 5, f"{m.__name__} has orders 1 to 4, got 5") for m in (adams_bashforth, ipndm, ipndm_v)),
        *((m, UNEVEN, 4, f"{m.__name__} has orders 1 to 3, got 4") for m in (deis, deis_edm)),
        (uni_pc, UNEVEN, "bh3", "variant must be bh1 or bh2, got 'bh3'"),
        (uni_pc, f64(1, 0), "bh1", "uni_pc needs two steps above noise level 0.001, got"),
        (uni_pc, f64(1, 0.001, 0), "bh1", "uni_pc needs two steps above noise level 0.001, got"),
    ],
)
def test_an_order_variant_or_grid_that_a_method_does_not_have_is_refused(method, sigmas, option, message):
    with pytest.raises(ValueError, match=message):
        method(sigmas, option)
