"""DS-Solver: tables on flow and VP models. Its check is tested with files, in test_hostile_files.py."""

from __future__ import annotations

import pytest
import torch
from learned_solvers.samplers import EDMNoise, FlowNoise, SolverTable, VPNoise, euler
from learned_solvers.samplers.families.ds import FAMILY, ds_flow_table, ds_vp_table
from learned_solvers.samplers.files.card import StepCard
from oracles import Constant, GaussianFlow, assert_same_table, f64, run, start
from torch.testing import assert_close

DELTAS = f64(0.1, 0.2, 0.3, 0.25, 0.15)
COEFFS = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tril(-1)
SD = VPNoise.stable_diffusion()
both_schedules = pytest.mark.parametrize("schedule", [SD, VPNoise.linear_beta()], ids=["table", "continuous"])


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


def test_the_family_makes_the_table_of_the_schedule_unless_it_is_edms():
    parameters = {"timedeltas": DELTAS, "coeffs": COEFFS}
    FAMILY.check(parameters, 5, StepCard())
    for schedule, expected in (FlowNoise(), ds_flow_table(DELTAS, COEFFS)), (SD, ds_vp_table(DELTAS, COEFFS, SD)):
        assert_same_table(FAMILY.table(parameters, StepCard(), schedule), expected)
    with pytest.raises(ValueError, match="DS-Solver is defined on flow and vp noise, got edm"):
        FAMILY.table(parameters, StepCard(), EDMNoise())
