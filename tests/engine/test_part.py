"""Part of a table: both ends are honoured, straight paths are kept, and what has no part is refused."""

from __future__ import annotations

import math

import pytest
import torch
from learned_solvers.samplers import (
    SolverTable,
    VPNoise,
    adams_bashforth,
    dpmpp_2m,
    euler,
    ipndm,
    load_solver,
    part_of_table,
    sample_table,
)
from learned_solvers.samplers.families.ds import ds_flow_table, ds_vp_table
from learned_solvers.samplers.families.dyweight import dyweight_table
from learned_solvers.samplers.schedules import FlowNoise
from oracles import Constant, GaussianFlow, GaussianVE, Mixture, Recorder, Steps
from torch import Tensor

LEVELS = torch.tensor([10.0, 6.0, 3.0, 1.5, 0.5, 0.1], dtype=torch.float64)
TO_ZERO = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.0], dtype=torch.float64)
FINE = torch.linspace(10 ** (1 / 3), 0.1 ** (1 / 3), 101, dtype=torch.float64) ** 3
FLOW_FINE = torch.linspace(1, 0, 101, dtype=torch.float64)


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def first_order_exponential(levels: Tensor) -> SolverTable:
    """Returns x_next = r x + (1 - r) D, first-order in denoised entries."""
    ratio = levels[1:] / levels[:-1]
    return SolverTable(levels, levels[:-1], ratio, torch.diag(1 - ratio), "denoised")


def learned(*, analytic_first: bool = False) -> SolverTable:
    """Returns a DyWeight table whose rows do not sum to 1 and whose calls stand beside its levels."""
    newest, before, oldest = f64(1.05, 1.5, 1.8, 2.0, 1.7), f64(-0.6, -1.2, -1.3, -1.2), f64(0.3, 0.4, 0.4)
    weights = torch.diag(newest) + torch.diag(before, -1) + torch.diag(oldest, -2)
    t_scale = f64(0.9, 1.0, 1.02, 0.95, 0.9)[int(analytic_first) :]
    return dyweight_table(weights, t_scale, LEVELS, analytic_first=analytic_first)


TABLES = {
    "euler": euler(LEVELS),
    "euler to 0": euler(TO_ZERO),
    "adams_bashforth": adams_bashforth(LEVELS, 3),
    "dpmpp_2m": dpmpp_2m(LEVELS),
    "dpmpp_2m to 0": dpmpp_2m(TO_ZERO),
    "dyweight": learned(),
    "dyweight, analytic": learned(analytic_first=True),
    "ds_flow-sit": load_solver("ds_flow-sit").table(6, FlowNoise()),
    "ds_flow-flowdcn": load_solver("ds_flow-flowdcn").table(6, FlowNoise()),
    "ds_vp-dit": load_solver("ds_vp-dit").table(6, VPNoise.stable_diffusion()),
}
CONSISTENT = {name: table for name, table in TABLES.items() if "dyweight" not in name}


def mixture(*, flow: bool = False) -> Mixture:
    return Mixture(f64(1, -0.5, 0.3, -0.8, 0.6, -1).reshape(2, 3), f64(0.3, 0.5), f64(0.1, -0.1), flow)


def start(table_or_sigma: SolverTable | float) -> Tensor:
    sigma = table_or_sigma.sigma_start if isinstance(table_or_sigma, SolverTable) else table_or_sigma
    return sigma * torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def run(model, x: Tensor, table: SolverTable) -> Tensor:
    return sample_table(model, x, table, disable=True)


def assert_same_table(table: SolverTable, other: SolverTable) -> None:
    torch.testing.assert_close(
        (table.levels, table.sigmas, table.scale, table.coeffs),
        (other.levels, other.sigmas, other.scale, other.coeffs),
        rtol=0,
        atol=0,
    )
    assert (table.entry, table.analytic_first) == (other.entry, other.analytic_first)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_the_whole_grid_is_the_table_itself(table):
    assert_same_table(part_of_table(table, table.sigma_start, table.sigma_end), table)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_the_whole_grid_in_a_hosts_float32_is_the_table_itself(table):
    first, last = (float(torch.tensor(sigma, dtype=torch.float32)) for sigma in (table.sigma_start, table.sigma_end))
    assert_same_table(part_of_table(table, first, last), table)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_host_that_wants_less_noise_than_the_solver_has_gets_the_solvers_own_end(table):
    assert_same_table(part_of_table(table, table.sigma_start, table.sigma_end / 2), table)


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("table", "model"),
    [
        pytest.param(euler(LEVELS), mixture(), id="derivative"),
        pytest.param(euler(TO_ZERO), mixture(flow=True), id="derivative, flow"),
        pytest.param(first_order_exponential(LEVELS), mixture(), id="denoised"),
        pytest.param(first_order_exponential(TO_ZERO), mixture(flow=True), id="denoised, flow"),
    ],
)
def test_two_parts_of_a_one_step_method_make_the_whole(table, model, cut):
    sigma = table.levels[cut].item()
    x = start(table)
    between = run(model, x, part_of_table(table, table.sigma_start, sigma))
    result = run(model, between, part_of_table(table, sigma, table.sigma_end))
    torch.testing.assert_close(result, run(model, x, table), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_the_first_part_of_any_method_is_the_beginning_of_the_whole(table, cut):
    part = part_of_table(table, table.sigma_start, table.levels[cut].item())
    assert part.steps == cut
    torch.testing.assert_close(part.coeffs, table.coeffs[:cut, :cut], rtol=0, atol=0)
    torch.testing.assert_close(part.sigmas, table.sigmas[:cut], rtol=0, atol=0)


@pytest.mark.parametrize(("first", "last"), [(10, 0.1), (4.2, 0.1), (10, 0.9), (4.2, 0.9), (2.0, 1.9), (0.3, 0.2)])
@pytest.mark.parametrize(
    "table",
    [
        pytest.param(euler(FINE), id="euler"),
        pytest.param(adams_bashforth(FINE, 2), id="adams_bashforth"),
        pytest.param(dpmpp_2m(FINE), id="dpmpp_2m"),
    ],
)
def test_both_ends_are_honoured_on_the_exact_path(table, first, last):
    oracle = GaussianVE()
    part = part_of_table(table, first, last)
    assert (part.sigma_start, part.sigma_end) == pytest.approx((first, last))
    x = start(first)
    torch.testing.assert_close(run(oracle, x, part), oracle.path(x, first, last), rtol=0, atol=0.02)


@pytest.mark.parametrize(("first", "last"), [(1.0, 0.0), (0.73, 0.0), (1.0, 0.155), (0.73, 0.155), (0.5, 0.49)])
@pytest.mark.parametrize(
    "table",
    [
        pytest.param(adams_bashforth(FLOW_FINE, 2), id="adams_bashforth"),
        pytest.param(ds_flow_table(torch.full((100,), 0.01), torch.zeros(100, 100)), id="ds"),
        pytest.param(dpmpp_2m(FLOW_FINE), id="dpmpp_2m"),
    ],
)
def test_both_ends_are_honoured_on_the_exact_flow_path(table, first, last):
    oracle = GaussianFlow()
    part = part_of_table(table, first, last)
    assert (part.sigma_start, part.sigma_end) == pytest.approx((first, last))
    x = start(first)
    torch.testing.assert_close(run(oracle, x, part), oracle.path(x, first, last), rtol=0, atol=0.02)


@pytest.mark.parametrize("table", CONSISTENT.values(), ids=CONSISTENT)
@pytest.mark.parametrize("first", [1.0, 0.9, 0.55, 0.3])
@pytest.mark.parametrize("last", [0.0, 0.02, 0.2, 0.5])
def test_a_constant_picture_is_approached_exactly_from_any_cut(table, first, last):
    """Both as fractions of the table's first level; below its own end the part ends there."""
    sigma, sigma_last = first * table.sigma_start, last * first * table.sigma_start
    if sigma_last < table.sigma_end:
        sigma_last = table.sigma_end
    x = start(sigma)
    part = part_of_table(table, sigma, sigma_last)
    torch.testing.assert_close(
        run(Constant(), x, part), Constant().path(x, sigma, sigma_last), rtol=1e-9, atol=1e-9 * table.sigma_start
    )


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_a_straight_path_stands_at_the_levels_when_a_history_is_cut(table, cut):
    part = part_of_table(table, table.levels[cut].item(), table.sigma_end)
    steps, x = Steps(), start(part.sigma_start)
    states = steps.trajectory(sample_table(Constant(), x, part, {}, steps, True))
    # But the last: a learned last row need not lead to the grid's end.
    for state, level in zip(states[:-1], table.levels[cut:-1].tolist(), strict=True):
        torch.testing.assert_close(
            state, Constant().path(x, part.sigma_start, level), rtol=1e-9, atol=1e-9 * part.sigma_start
        )
    torch.testing.assert_close(part.scale, table.scale[cut:], rtol=0, atol=0)
    torch.testing.assert_close(part.sigmas, table.sigmas[cut:], rtol=0, atol=0)


def test_the_lost_coefficients_go_to_the_oldest_entry_that_remains():
    table = ipndm(LEVELS, 4)
    part = part_of_table(table, 3.0, 0.1)
    assert part.coeffs[1, 0] == table.coeffs[3, :3].sum()
    torch.testing.assert_close(part.coeffs[:, 1:], table.coeffs[2:, 3:], rtol=0, atol=0)


def test_a_stretched_row_keeps_a_straight_path():
    table, x, steps = learned(), start(5.0), Steps()
    run_through = sample_table(Constant(), x, part_of_table(table, 5.0, table.sigma_end), {}, steps, True)
    second = steps.trajectory(run_through)[1]
    torch.testing.assert_close(second, Constant().path(x, 5.0, table.levels[2].item()), rtol=1e-9, atol=1e-9)


def test_a_stretched_first_row_calls_the_model_at_the_same_factor_of_its_level():
    table = learned()
    recorder = Recorder(GaussianVE())
    run(recorder, start(5.0), part_of_table(table, 5.0, table.sigma_end))
    expected = torch.cat([5.0 * table.sigmas[1:2] / table.levels[1], table.sigmas[2:]])
    torch.testing.assert_close(recorder.sigmas[:, 0], expected)


def test_a_stretched_last_row_calls_the_model_where_it_did():
    part = part_of_table(learned(), 10.0, 0.8)
    torch.testing.assert_close(part.sigmas, learned().sigmas[: part.steps], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("first", "calls"),
    [(10.0, 5), (50.0, 5), (7.75, 5), (7.74, 4), (6.0, 4), (4.25, 4), (4.24, 3), (0.87, 2), (0.86, 1), (0.2, 1)],
)
def test_the_part_starts_with_the_row_whose_start_is_nearest_by_ratio(first, calls):
    recorder = Recorder(GaussianVE())
    run(recorder, start(first), part_of_table(euler(LEVELS), first, 0.1))
    torch.testing.assert_close(recorder.sigmas[:, 0], torch.cat([f64(first), LEVELS[:-1][6 - calls :]]))


@pytest.mark.parametrize(
    ("last", "calls"), [(6.5, 1), (6.0, 1), (4.25, 1), (4.24, 2), (0.87, 3), (0.86, 4), (0.225, 4), (0.22, 5), (0, 5)]
)
def test_the_part_ends_with_the_row_whose_end_is_nearest_by_ratio(last, calls):
    part = part_of_table(euler(LEVELS), 10.0, last)
    assert part.nfe == calls
    assert part.sigma_end == max(last, 0.1)
    torch.testing.assert_close(part.levels[:-1], LEVELS[:calls], rtol=0, atol=0)


@pytest.mark.parametrize("last", [1e-3, 1e-6])
@pytest.mark.parametrize(
    "table",
    [
        pytest.param(euler(TO_ZERO), id="euler"),
        pytest.param(dpmpp_2m(TO_ZERO), id="dpmpp_2m"),
        pytest.param(load_solver("ds_flow-sit").table(5, FlowNoise()), id="ds_flow-sit"),
    ],
)
def test_an_end_just_above_0_costs_a_table_that_ends_at_0_no_row(table, last):
    part = part_of_table(table, 1.0, last)
    assert (part.nfe, part.sigma_end) == (5, last)
    x = start(1.0)
    torch.testing.assert_close(run(GaussianFlow(), x, part), run(GaussianFlow(), x, table), rtol=0, atol=2 * last)


@pytest.mark.parametrize(("first", "last"), [(2.0, 1.9), (9.0, 8.0), (0.12, 0.11), (5.0, 4.9)])
def test_a_part_between_two_close_levels_is_one_step(first, last):
    part = part_of_table(learned(), first, last)
    assert (part.steps, part.sigma_start, part.sigma_end) == (1, first, last)


def test_an_analytic_first_step_stays_at_the_tables_own_start():
    part = part_of_table(learned(analytic_first=True), 10.0, 0.5)
    assert part.analytic_first
    assert part.nfe == part.steps - 1


@pytest.mark.parametrize(
    ("first", "last", "calls"),
    [
        pytest.param(9.0, 0.0, 5, id="less noise, first row"),
        pytest.param(11.0, 0.0, 5, id="more noise, first row"),
        pytest.param(3.0, 0.0, 3, id="later row"),
        pytest.param(9.0, 8.5, 1, id="first row alone"),
    ],
)
def test_an_analytic_first_step_becomes_a_call_elsewhere(first, last, calls):
    recorder = Recorder(GaussianVE())
    part = part_of_table(learned(analytic_first=True), first, last)
    run(recorder, start(first), part)
    assert not part.analytic_first
    assert len(recorder.sigma) == part.nfe == calls


def test_an_analytic_first_step_is_none_of_a_part_that_starts_at_a_later_level():
    table = learned(analytic_first=True)
    recorder, first = Recorder(GaussianVE()), table.levels[2].item()
    part = part_of_table(table, first, 0.0)
    run(recorder, start(first), part)
    assert not part.analytic_first
    torch.testing.assert_close(recorder.sigmas[:, 0], table.sigmas[2:], rtol=0, atol=0)


def test_an_analytic_first_step_alone_is_stretched_to_the_end():
    part = part_of_table(learned(analytic_first=True), 10.0, 8.0)
    assert (part.steps, part.nfe, part.sigma_end) == (1, 0, 8.0)
    x = start(10.0)
    torch.testing.assert_close(run(Recorder(GaussianVE()), x, part), x + part.coeffs[0, 0] * x / math.sqrt(101))


def test_the_table_itself_is_left_alone():
    table = learned()
    part_of_table(table, 5.0, 0.8)
    assert_same_table(table, learned())


def test_gradients_reach_the_parameters_through_a_part():
    weights = torch.eye(5, dtype=torch.float64, requires_grad=True)
    part = part_of_table(dyweight_table(weights, torch.ones(5), LEVELS), 5.0, 0.8)
    run(GaussianVE(), start(5.0), part).sum().backward()
    assert bool((weights.grad.diagonal()[1:3] != 0).all())


@pytest.mark.parametrize(
    ("first", "last", "message"),
    [
        pytest.param(1.0, 2.0, "must descend from a finite level to 0 or above, got 1.0 -> 2.0", id="ascending"),
        pytest.param(2.0, 2.0, "must descend", id="equal"),
        pytest.param(2.0, -0.1, "must descend", id="below 0"),
        pytest.param(math.inf, 0.0, "must descend from a finite level", id="infinite"),
        pytest.param(math.nan, 0.0, "must descend from a finite level", id="no number"),
        pytest.param(2.0, math.nan, "must descend", id="end is no number"),
        pytest.param(0.1, 0.0, "noisier than the solver's own end, 0.1, got 0.1: raise denoise", id="at the end"),
        pytest.param(0.05, 0.0, "noisier than the solver's own end, 0.1, got 0.05: raise denoise", id="below the end"),
    ],
)
def test_what_is_no_part_is_refused(first, last, message):
    with pytest.raises(ValueError, match=message):
        part_of_table(euler(LEVELS), first, last)


@pytest.mark.parametrize("levels", [f64(3, 3, 1, 0), f64(3, 4, 1, 0), f64(3, 2, -1, 0)])
def test_a_grid_that_does_not_descend_has_no_parts(levels):
    table = SolverTable(levels, f64(3, 2, 1), torch.ones(3).double(), -torch.eye(3).double(), "derivative")
    with pytest.raises(ValueError, match="only a descending grid has parts"):
        part_of_table(table, 2.5, 0.0)
    assert part_of_table(table, 3.0, 0.0) is table  # the whole is no part


@pytest.mark.parametrize("first", [0.95, 0.6, 0.3])
def test_image_to_image_with_a_searched_vp_solver_stays_near_the_exact_path(first):
    """Fractions of model time."""
    noise, oracle = VPNoise.stable_diffusion(), GaussianVE()
    sigma = noise.sigma_at(f64(first)).item()
    table = ds_vp_table(torch.full((50,), 0.02), torch.zeros(50, 50), noise)
    x = start(sigma)
    result = run(oracle, x, part_of_table(table, sigma, 0.0))
    torch.testing.assert_close(result, oracle.path(x, sigma, table.sigma_end), rtol=0, atol=0.1)
