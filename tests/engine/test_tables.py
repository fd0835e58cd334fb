"""Tables: their validation, DyWeight's, and DS-Solver's on flow and VP models.

test_hostile_files.py tests their checks, test_golden.py DyWeight's divisors and analytic first steps.
"""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from learned_solvers.samplers import EDMNoise, FlowNoise, Grid, SolverTable, VPNoise, euler, ipndm
from learned_solvers.samplers.families import ds, dyweight
from learned_solvers.samplers.families.ds import ds_flow_table, ds_vp_table
from learned_solvers.samplers.families.dyweight import dyweight_table
from learned_solvers.samplers.files.card import StepCard
from oracles import IPNDM, Constant, GaussianFlow, assert_same_table, f64, run, start
from torch import Tensor
from torch.testing import assert_close

LEVELS = f64(3, 2, 1, 0)
TENSORS = {"levels": LEVELS, "sigmas": LEVELS[:-1], "scale": f64(1, 1, 1), "coeffs": -torch.eye(3).double()}
POLYNOMIAL = Grid("polynomial", {"rho": 7.0})
GRID = POLYNOMIAL.levels(6, EDMNoise(0.02, 20.0))
DELTAS = f64(0.1, 0.2, 0.3, 0.25, 0.15)
COEFFS = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tril(-1)
SD = VPNoise.stable_diffusion()
both_schedules = pytest.mark.parametrize("schedule", [SD, VPNoise.linear_beta()], ids=["table", "continuous"])


def table(**changes: object) -> SolverTable:
    """A valid table of three steps with some fields changed."""
    return SolverTable(**{**TENSORS, "entry": "derivative", **changes})


def with_number(name: str, value: float, *index: int) -> dict:
    changed = TENSORS[name].clone()
    changed[index] = value
    return {name: changed}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigmas": f64()}, "sigmas must have at least one entry"),
        ({"sigmas": torch.tensor(1.0).double()}, "sigmas must have at least one entry"),
        ({"levels": f64(2, 1, 0)}, r"levels must have shape \[4\] .*got \[3\]"),
        ({"sigmas": torch.ones(3, 1).double()}, r"sigmas must have shape \[3\] .*got \[3, 1\]"),
        ({"scale": f64(1, 1)}, r"scale must have shape \[3\] .*got \[2\]"),
        ({"coeffs": torch.ones(2, 2).double()}, r"coeffs must have shape \[3, 3\] .*got \[2, 2\]"),
        ({"entry": "velocity"}, 'must be "derivative" or "denoised", got \'velocity\''),
        ({"entry": "denoised", "analytic_first": True}, 'analytic_first needs entry "derivative"'),
        ({"sigmas": f64(3, 2, 0)}, "sigmas must be positive"),
        (with_number("coeffs", 1e-9, 0, 1), "coeffs must be lower-triangular"),
        (with_number("levels", 0.0, 0), "levels must start above 0"),
        (with_number("levels", -1e-9, 3), "end at 0 or above"),
    ],
)
def test_an_invalid_table_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        table(**changes)


@pytest.mark.parametrize("name", TENSORS)
def test_every_tensor_must_be_finite_in_float64_on_the_cpu_and_may_have_gradients(name):
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=f"{name} must be finite"):
            table(**with_number(name, value, *[1] * TENSORS[name].ndim))
    for conversion in (torch.float32, "meta"):
        with pytest.raises(ValueError, match=f"{name} must be float64 on the CPU, got torch.float.* on "):
            table(**{name: TENSORS[name].to(conversion)})
    assert table(**{name: TENSORS[name].clone().requires_grad_()}).requires_grad and not table().requires_grad


def test_a_table_is_frozen_its_steps_are_calls_unless_analytic_and_levels_between_the_ends_may_rise():
    rising = table(levels=f64(3, 4, 1, 0.25))
    assert (rising.sigma_start, rising.sigma_end) == (3, 0.25)
    assert (table().steps, table().nfe) == (3, 3)
    assert (table(analytic_first=True).steps, table(analytic_first=True).nfe) == (3, 2)
    with pytest.raises(FrozenInstanceError):
        table().scale = torch.zeros(3)


def ipndm_weights(steps: int, order: int) -> Tensor:
    """The weights of iPNDM, oldest entry first."""
    rows = [IPNDM[min(i + 1, order) - 1] for i in range(steps)]
    padded = [[0.0] * (i + 1 - len(row)) + row + [0.0] * (steps - i - 1) for i, row in enumerate(rows)]
    return torch.tensor(padded, dtype=torch.float64)


def learned(steps: int) -> tuple[Tensor, Tensor]:
    """Weights whose rows do not sum to 1, and time scales different from 1."""
    generator = torch.Generator().manual_seed(0)
    weights = ipndm_weights(steps, 3) + 0.1 * torch.randn(steps, steps, generator=generator, dtype=torch.float64).tril()
    return weights, 1 + 0.1 * torch.randn(steps, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("divisor", ["state", "call"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("grid", [GRID, torch.linspace(20, 2, 7)], ids=["polynomial", "even"])
def test_ipndms_weights_and_time_scales_of_1_are_ipndm(grid, order, divisor):
    table = dyweight_table(ipndm_weights(6, order), torch.ones(6), grid, divisor=divisor)
    assert_same_table(table, ipndm(grid, order), rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_the_row_sums_are_step_sizes_that_the_true_levels_follow(steps):
    (weights, t_scale), grid = learned(steps), GRID[: steps + 1]
    table = dyweight_table(weights, t_scale, grid, divisor="call")
    true = [float(grid[0])]
    for row, target in zip(weights.tolist(), grid[1:].tolist(), strict=True):
        true.append(true[-1] + sum(row) * (target - true[-1]))
    assert_close(table.levels, torch.cat([f64(*true[:-1]), grid[-1:]]))
    assert_close(table.sigmas, t_scale * f64(*true[:-1]))
    assert_close(table.coeffs, weights * (grid[1:] - table.levels[:-1])[:, None])


@pytest.mark.parametrize(
    ("weights", "t_scale", "grid", "divisor", "message"),
    [
        *((torch.eye(3), torch.ones(n), GRID[:4], "state", r"t_scale must have shape \[3\]") for n in (2, 4)),
        (torch.eye(3), torch.ones(3), GRID[:5], "state", r"grid must have shape \[4\]"),
        (torch.ones(3, 2), torch.ones(3), GRID[:4], "state", r"weights must have shape \[3, 3\]"),
        (torch.eye(3), torch.ones(3), GRID[:4], "State", 'divisor must be "state" or "call"'),
    ],
)
def test_parameters_that_do_not_match_are_refused(weights, t_scale, grid, divisor, message):
    with pytest.raises(ValueError, match=message):
        dyweight_table(weights, t_scale, grid, divisor=divisor)


GRIDS = [(POLYNOMIAL, EDMNoise()), (Grid("flow_shift", {"shift": 3.0}), FlowNoise())]
GRIDS += [(Grid("uniform_time", {"end": 1e-3}), VPNoise.stable_diffusion())]


@pytest.mark.parametrize(("grid", "schedule"), GRIDS)
@pytest.mark.parametrize("options", [{}, {"divisor": "call"}, {"analytic_first": True}], ids=str)
def test_dyweight_puts_the_cards_grid_and_options_on_the_models_noise(grid, schedule, options):
    weights, t_scale = learned(4)
    t_scale = t_scale[int("analytic_first" in options) :]
    tensors, card = {"weights": weights, "t_scale": t_scale}, StepCard(grid=grid, options=options)
    dyweight.FAMILY.check(tensors, len(t_scale), card)
    expected = dyweight_table(weights, t_scale, grid.levels(4, schedule), **options)
    assert_same_table(dyweight.FAMILY.table(tensors, card, schedule), expected)


@pytest.mark.parametrize("steps", [1, 4, 5])
def test_no_coefficients_are_euler_on_the_learned_levels(steps):
    deltas = DELTAS[:steps] / DELTAS[:steps].sum()
    levels = torch.cat([f64(1), 1 - deltas.cumsum(0)])
    levels[-1] = 0
    assert_same_table(ds_flow_table(deltas, torch.zeros(steps, steps)), euler(levels), rtol=1e-12)


def test_flow_levels_descend_by_the_deltas_and_rows_sum_to_one_delta():
    table = ds_flow_table(DELTAS, COEFFS)
    assert_close(table.levels, f64(1, 0.9, 0.7, 0.4, 0.15, 0))
    rows = table.coeffs / -DELTAS[:, None]
    assert_close(rows.tril(-1), COEFFS)
    assert_close(rows.sum(1), torch.ones(5).double())


@pytest.mark.parametrize("error", [1e-7, -1e-7, 1e-16])
def test_the_last_level_is_0_despite_rounding_and_a_tiny_delta_is_a_step(error):
    levels = ds_flow_table(f64(0.5, 0.5 - 5e-7, 5e-7 + error), torch.zeros(3, 3)).levels
    assert levels[-1] == 0 and float(levels[-2]) == pytest.approx(5e-7, rel=1e-6)


@both_schedules
def test_no_coefficients_are_the_first_order_exponential_step(schedule):
    times = (0.999 - torch.cat([f64(0), DELTAS.cumsum(0)])).clamp(min=1e-3)
    levels = schedule.sigma_at_index(1000 * times)
    table, ratio = ds_vp_table(DELTAS, torch.zeros(5, 5), schedule), levels[1:] / levels[:-1]
    exponential = SolverTable(levels, levels[:-1], ratio, torch.diag(1 - ratio), "denoised")  # r x + (1 - r) D
    assert_same_table(table, exponential, rtol=1e-12)
    x = start(table.sigma_start)
    assert_close(run(GaussianFlow(), x, table), run(GaussianFlow(), x, euler(table.levels)))


def test_vp_levels_are_entries_of_the_models_table():
    sigmas = torch.expm1(-2 * SD.log_alphas).sqrt()
    assert_close(ds_vp_table(DELTAS, COEFFS, SD).levels, sigmas[[999, 899, 699, 399, 149, 1]], rtol=1e-9, atol=0)
    continuous = VPNoise.linear_beta()
    assert ds_vp_table(DELTAS, COEFFS, continuous).sigma_end == pytest.approx(continuous.sigma_min, rel=1e-9)


@both_schedules
def test_vp_rows_are_the_coefficients_in_units_of_the_step_and_approach_a_constant_picture_exactly(schedule):
    table = ds_vp_table(DELTAS, COEFFS, schedule)
    assert_close((table.coeffs / (1 - table.scale)[:, None]).tril(-1), COEFFS)
    assert_close(table.scale, table.levels[1:] / table.levels[:-1])
    x = start(table.sigma_start)
    expected = Constant().path(x, table.sigma_start, table.sigma_end)
    assert_close(run(Constant(), x, table), expected, rtol=1e-9, atol=1e-9)


def test_ds_makes_the_table_of_the_schedule_unless_it_is_edms():
    parameters = {"timedeltas": DELTAS, "coeffs": COEFFS}
    ds.FAMILY.check(parameters, 5, StepCard())
    for schedule, expected in (FlowNoise(), ds_flow_table(DELTAS, COEFFS)), (SD, ds_vp_table(DELTAS, COEFFS, SD)):
        assert_same_table(ds.FAMILY.table(parameters, StepCard(), schedule), expected)
    with pytest.raises(ValueError, match="DS-Solver is defined on flow and vp noise, got edm"):
        ds.FAMILY.table(parameters, StepCard(), EDMNoise())
