"""Part of a table: both ends are exact, straight paths stay straight, and invalid parts are refused."""

from __future__ import annotations

import math

import pytest
import torch
from learned_solvers.samplers import FlowNoise, SolverTable, VPNoise, load_solver, part_of_table, sample_table
from learned_solvers.samplers.classical import adams_bashforth, euler, ipndm
from learned_solvers.samplers.classical.exponential import dpmpp_2m
from learned_solvers.samplers.conversion import with_denoised, with_derivatives
from learned_solvers.samplers.families.ds import ds_flow_table
from learned_solvers.samplers.families.dyweight import dyweight_table
from oracles import Constant, GaussianFlow, GaussianVE, Recorder, Steps, assert_same_table, f64, mixture, run, start
from torch.testing import assert_close

LEVELS = f64(10, 6, 3, 1.5, 0.5, 0.1)
TO_ZERO = f64(1, 0.8, 0.6, 0.4, 0.2, 0)
FINE = torch.linspace(10 ** (1 / 3), 0.1 ** (1 / 3), 101, dtype=torch.float64) ** 3
FLOW_FINE = torch.linspace(1, 0, 101, dtype=torch.float64)


def learned(*, analytic_first: bool = False) -> SolverTable:
    """A DyWeight table whose rows do not sum to 1 and whose calls are not at its levels."""
    newest, previous, oldest = f64(1.05, 1.5, 1.8, 2.0, 1.7), f64(-0.6, -1.2, -1.3, -1.2), f64(0.3, 0.4, 0.4)
    weights = torch.diag(newest) + torch.diag(previous, -1) + torch.diag(oldest, -2)
    t_scale = f64(0.9, 1.0, 1.02, 0.95, 0.9)[int(analytic_first) :]
    return dyweight_table(weights, t_scale, LEVELS, analytic_first=analytic_first)


TABLES = {
    "euler to 0": euler(TO_ZERO),
    "adams_bashforth": adams_bashforth(LEVELS, 3),
    "dpmpp_2m": dpmpp_2m(LEVELS),
    "dpmpp_2m to 0": dpmpp_2m(TO_ZERO),
    "dyweight": learned(),
    "dyweight, analytic": learned(analytic_first=True),
    "ds, flow": load_solver("ds_flow-sit").table(6, FlowNoise()),
    "ds, vp": load_solver("ds_vp-dit").table(6, VPNoise.stable_diffusion()),
}
CONSISTENT = {name: table for name, table in TABLES.items() if "dyweight" not in name}
each_table = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)


@each_table
def test_the_whole_grid_is_the_table_itself(table):
    in_float32 = (torch.tensor(sigma).item() for sigma in (table.sigma_start, table.sigma_end))
    assert_same_table(part_of_table(table, *in_float32), table)
    assert_same_table(part_of_table(table, table.sigma_start, table.sigma_end / 2), table)


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
@pytest.mark.parametrize(("levels", "flow"), [(LEVELS, False), (TO_ZERO, True)], ids=["VE", "flow"])
@pytest.mark.parametrize("conversion", [with_derivatives, with_denoised])
def test_two_parts_of_a_one_step_method_make_the_whole(conversion, levels, flow, cut):
    table, sigma = conversion(euler(levels)), levels[cut].item()
    model, x = mixture(flow), start(table.sigma_start)
    between = run(model, x, part_of_table(table, table.sigma_start, sigma))
    result = run(model, between, part_of_table(table, sigma, table.sigma_end))
    assert_close(result, run(model, x, table), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cut", [1, 4])
@each_table
def test_the_first_part_of_any_method_is_the_beginning_of_the_whole(table, cut):
    part = part_of_table(table, table.sigma_start, table.levels[cut].item())
    beginning = (table.levels[: cut + 1], table.sigmas[:cut], table.scale[:cut], table.coeffs[:cut, :cut])
    assert_same_table(part, SolverTable(*beginning, table.entry, table.analytic_first))


VE_ENDS = [(10, 0.1), (4.2, 0.1), (10, 0.9), (4.2, 0.9), (2.0, 1.9), (0.3, 0.2)]
FLOW_ENDS = [(1.0, 0.0), (0.73, 0.0), (1.0, 0.155), (0.73, 0.155), (0.5, 0.49)]
VE_METHODS = [euler(FINE), adams_bashforth(FINE, 2), dpmpp_2m(FINE)]
EVEN_DS = ds_flow_table(torch.full((100,), 0.01), torch.zeros(100, 100))
FLOW_METHODS = [adams_bashforth(FLOW_FINE, 2), EVEN_DS, dpmpp_2m(FLOW_FINE)]


@pytest.mark.parametrize(
    ("oracle", "table", "ends"),
    [
        *((GaussianVE(), table, ends) for table in VE_METHODS for ends in VE_ENDS),
        *((GaussianFlow(), table, ends) for table in FLOW_METHODS for ends in FLOW_ENDS),
    ],
)
def test_both_ends_are_met_on_the_exact_path(oracle, table, ends):
    part, x = part_of_table(table, *ends), start(ends[0])
    assert (part.sigma_start, part.sigma_end) == pytest.approx(ends)
    assert_close(run(oracle, x, part), oracle.path(x, *ends), rtol=0, atol=0.02)


@pytest.mark.parametrize("first", [1.0, 0.9, 0.55, 0.3])
@pytest.mark.parametrize("last", [0.0, 0.02, 0.2, 0.5])
@pytest.mark.parametrize("table", CONSISTENT.values(), ids=CONSISTENT)
def test_a_constant_picture_is_approached_exactly_from_any_cut(table, first, last):
    """`first` is a fraction of the table's first level, `last` one of the part's."""
    sigma = first * table.sigma_start
    sigma_last = max(last * sigma, table.sigma_end)
    result = run(Constant(), start(sigma), part_of_table(table, sigma, sigma_last))
    expected = Constant().path(start(sigma), sigma, sigma_last)
    assert_close(result, expected, rtol=1e-9, atol=1e-9 * table.sigma_start)


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
@each_table
def test_a_straight_path_stays_at_the_levels_when_history_is_cut(table, cut):
    part = part_of_table(table, table.levels[cut].item(), table.sigma_end)
    x, steps = start(part.sigma_start), Steps()
    states = steps.trajectory(sample_table(Constant(), x, part, {}, steps, True))
    # All but the last state: a learned last row need not lead to the grid's end.
    for state, level in zip(states[:-1], table.levels[cut:-1].tolist(), strict=True):
        expected = Constant().path(x, part.sigma_start, level)
        assert_close(state, expected, rtol=1e-9, atol=1e-9 * part.sigma_start)
    assert_close((part.scale, part.sigmas), (table.scale[cut:], table.sigmas[cut:]), rtol=0, atol=0)


def test_the_lost_coefficients_go_to_the_oldest_entry_that_remains():
    table = ipndm(LEVELS, 4)
    part = part_of_table(table, 3.0, 0.1)
    assert part.coeffs[1, 0] == table.coeffs[3, :3].sum()
    assert_close(part.coeffs[:, 1:], table.coeffs[2:, 3:], rtol=0, atol=0)


def test_a_stretched_row_keeps_a_straight_path_and_the_factor_or_level_of_its_call():
    table, x, steps, recorder = learned(), start(5.0), Steps(), Recorder(Constant())
    states = steps.trajectory(sample_table(recorder, x, part_of_table(table, 5.0, 0.1), {}, steps, True))
    assert_close(states[1], Constant().path(x, 5.0, table.levels[2].item()), rtol=1e-9, atol=1e-9)
    expected = torch.cat([5.0 * table.sigmas[1:2] / table.levels[1], table.sigmas[2:]])
    assert_close(recorder.sigmas[:, 0], expected)
    until = part_of_table(table, 10.0, 0.8)
    assert_close(until.sigmas, table.sigmas[: until.steps], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("first", "calls"),
    [(10.0, 5), (50.0, 5), (7.75, 5), (7.74, 4), (6.0, 4), (4.25, 4), (4.24, 3), (0.87, 2), (0.86, 1), (0.2, 1)],
)
def test_the_part_starts_with_the_row_whose_start_is_nearest_by_ratio(first, calls):
    part = part_of_table(euler(LEVELS), first, 0.1)
    assert_close(part.sigmas, torch.cat([f64(first), LEVELS[:-1][6 - calls :]]))


@pytest.mark.parametrize(
    ("grid", "last", "calls"),
    [
        *((LEVELS, last, calls) for last, calls in ((6.5, 1), (6.0, 1), (4.25, 1), (4.24, 2), (0.87, 3), (0.86, 4))),
        *((LEVELS, last, calls) for last, calls in ((0.225, 4), (0.22, 5), (0, 5))),
        # A last level of 0 counts as a quarter of the level before it.
        *((TO_ZERO, 0.11, 4), (TO_ZERO, 0.099, 5), (f64(1, 0.5, 0), 0.24, 2)),
    ],
)
def test_the_part_ends_with_the_row_whose_end_is_nearest_by_ratio(grid, last, calls):
    part = part_of_table(euler(grid), float(grid[0]), last)
    assert (part.nfe, part.sigma_end) == (calls, max(last, float(grid[-1])))
    assert_close(part.levels[:-1], grid[:calls], rtol=0, atol=0)


@pytest.mark.parametrize("last", [1e-3, 1e-6])
@pytest.mark.parametrize("name", ["euler to 0", "dpmpp_2m to 0", "ds, flow"])
def test_an_end_just_above_0_costs_a_table_that_ends_at_0_no_row(name, last):
    table = TABLES[name]
    part = part_of_table(table, 1.0, last)
    assert (part.nfe, part.sigma_end) == (table.nfe, last)
    result, whole = (run(GaussianFlow(), start(), t) for t in (part, table))
    assert_close(result, whole, rtol=0, atol=2 * last)


@pytest.mark.parametrize(
    ("first", "last", "steps"),
    [
        *((10.0, 0.5, 4), (9.0, 0.0, 5), (11.0, 0.0, 5), (3.0, 0.0, 3), (9.0, 8.5, 1), (0.12, 0.11, 1)),
        (learned().levels[2].item(), 0, 3),
    ],
)
def test_an_analytic_first_step_is_a_call_unless_the_part_starts_at_the_tables_start(first, last, steps):
    recorder, part = Recorder(GaussianVE()), part_of_table(learned(analytic_first=True), first, last)
    run(recorder, start(first), part)
    assert (part.steps, part.analytic_first, part.sigma_start) == (steps, first == 10, first)
    assert part.sigma_end == max(last, 0.1)
    assert len(recorder.sigma) == part.nfe == steps - (first == 10)


def test_an_analytic_first_step_alone_is_stretched_to_the_end():
    part, x = part_of_table(learned(analytic_first=True), 10.0, 8.0), start(10.0)
    assert (part.steps, part.nfe, part.sigma_end) == (1, 0, 8.0)
    assert_close(run(GaussianVE(), x, part), x + part.coeffs[0, 0] * x / math.sqrt(101))


def test_gradients_reach_the_parameters_through_a_part_and_the_table_is_not_modified():
    weights = torch.eye(5, dtype=torch.float64, requires_grad=True)
    table = dyweight_table(weights, torch.ones(5), LEVELS)
    run(GaussianVE(), start(5.0), part_of_table(table, 5.0, 0.8)).sum().backward()
    assert bool((weights.grad.diagonal()[1:3] != 0).all())
    assert_same_table(table, dyweight_table(weights, torch.ones(5), LEVELS))


@pytest.mark.parametrize(
    ("first", "last", "message"),
    [
        (1.0, 2.0, "must descend from a finite level to 0 or above, got 1.0 -> 2.0"),
        *((*ends, "must descend") for ends in ((2, 2), (2, -0.1), (math.inf, 0), (math.nan, 0), (2, math.nan))),
        *((first, 0.0, f"{first}, is not above the solver's last noise level, 0.1") for first in (0.1, 0.05)),
    ],
)
def test_an_invalid_part_is_refused(first, last, message):
    with pytest.raises(ValueError, match=message):
        part_of_table(euler(LEVELS), first, last)


@pytest.mark.parametrize("levels", [f64(3, 3, 1, 0), f64(3, 4, 1, 0), f64(3, 2, -1, 0)])
def test_a_grid_that_does_not_descend_has_no_parts(levels):
    table = SolverTable(levels, f64(3, 2, 1), torch.ones(3).double(), -torch.eye(3).double(), "derivative")
    with pytest.raises(ValueError, match="not descending"):
        part_of_table(table, 2.5, 0.0)
    assert part_of_table(table, 3.0, 0.0) is table  # the whole table is not a part
