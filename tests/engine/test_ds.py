"""DS-Solver's parameters: from the base solver they start as, to the flow and VP tables."""

from __future__ import annotations

import pytest
import torch
from learned_solvers.samplers import EDMNoise, FlowNoise, SolverTable, VPNoise, euler, sample_table
from learned_solvers.samplers.families.ds import FAMILY, ds_flow_table, ds_vp_table
from learned_solvers.samplers.files.card import StepCard
from oracles import Constant, GaussianFlow, Recorder
from torch import Tensor

DELTAS = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15], dtype=torch.float64)
SCHEDULES = {"table": VPNoise.stable_diffusion(), "continuous": VPNoise.linear_beta()}


def coefficients(steps: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(steps, steps, generator=generator, dtype=torch.float64).tril(-1)


def noise(sigma: float) -> Tensor:
    return sigma * torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def assert_same_table(table: SolverTable, other: SolverTable) -> None:
    torch.testing.assert_close(
        (table.levels, table.sigmas, table.scale, table.coeffs),
        (other.levels, other.sigmas, other.scale, other.coeffs),
        rtol=1e-12,
        atol=1e-12,
    )
    assert (table.entry, table.analytic_first) == (other.entry, other.analytic_first)


# Flow models.


@pytest.mark.parametrize("steps", [1, 4, 5])
def test_no_coefficients_are_euler_on_the_searched_levels(steps):
    deltas = DELTAS[:steps] / DELTAS[:steps].sum()
    levels = torch.cat([torch.ones(1).double(), 1 - deltas.cumsum(0)])
    levels[-1] = 0
    assert_same_table(ds_flow_table(deltas, torch.zeros(steps, steps)), euler(levels))


def test_the_newest_entry_gets_what_the_row_lacks_of_1():
    coeffs = coefficients()
    table = ds_flow_table(DELTAS, coeffs)
    rows = table.coeffs / -DELTAS[:, None]
    torch.testing.assert_close(rows.tril(-1), coeffs)
    torch.testing.assert_close(rows.sum(1), torch.ones(5).double())


def test_flow_levels_descend_from_1_by_the_deltas_to_0():
    table = ds_flow_table(DELTAS, coefficients())
    torch.testing.assert_close(table.levels, torch.tensor([1, 0.9, 0.7, 0.4, 0.15, 0]).double())
    assert (table.sigma_start, table.sigma_end, table.nfe) == (1, 0, 5)


@pytest.mark.parametrize("error", [1e-7, -1e-7, 1e-16])
def test_rounding_of_the_deltas_leaves_the_last_level_at_0(error):
    deltas = DELTAS.clone()
    deltas[-1] += error
    assert ds_flow_table(deltas, torch.zeros(5, 5)).sigma_end == 0


def test_a_last_delta_of_nearly_nothing_is_a_step_of_its_own():
    timedeltas = torch.tensor([0.5, 0.5 - 5e-7, 5e-7], dtype=torch.float64)
    levels = ds_flow_table(timedeltas, torch.zeros(3, 3)).levels
    assert levels[-1] == 0 and float(levels[-2]) == pytest.approx(5e-7, rel=1e-6)


def test_a_flow_step_is_the_papers_formula():
    coeffs = torch.tensor([[0.0, 0.0], [-0.7, 0.0]])
    table = ds_flow_table(torch.tensor([0.4, 0.6]), coeffs)
    model, x = GaussianFlow(), noise(1.0)
    first = (x - model(x, torch.ones(2))) / 1
    middle = x - 0.4 * first
    second = (middle - model(middle, torch.full((2,), 0.6).double())) / 0.6
    expected = middle - 0.6 * (-0.7 * first + 1.7 * second)
    torch.testing.assert_close(sample_table(model, x, table, disable=True), expected, rtol=1e-6, atol=1e-6)


# VP models.


def exponential(levels: Tensor) -> SolverTable:
    """Returns the first-order exponential step, x_next = r x + (1 - r) D."""
    ratio = levels[1:] / levels[:-1]
    return SolverTable(levels, levels[:-1], ratio, torch.diag(1 - ratio), "denoised")


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_no_coefficients_are_the_first_order_exponential_step(schedule):
    times = (0.999 - torch.cat([DELTAS.new_zeros(1), DELTAS.cumsum(0)])).clamp(min=1e-3)
    levels = schedule.sigma_at_index(1000 * times)
    assert_same_table(ds_vp_table(DELTAS, torch.zeros(5, 5), schedule), exponential(levels))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_no_coefficients_are_euler_in_derivatives_too(schedule):
    table = ds_vp_table(DELTAS, torch.zeros(5, 5), schedule)
    x = noise(table.sigma_start)
    model = Recorder(GaussianFlow())
    torch.testing.assert_close(
        sample_table(model, x, table, disable=True), sample_table(model, x, euler(table.levels), disable=True)
    )


def test_vp_levels_are_entries_of_the_models_table():
    schedule = VPNoise.stable_diffusion()
    table = ds_vp_table(DELTAS, coefficients(), schedule)
    index = torch.tensor([999, 899, 699, 399, 149, 1])
    sigmas = torch.expm1(-2 * schedule.log_alphas).sqrt()
    torch.testing.assert_close(table.levels, sigmas[index], rtol=1e-9, atol=0)
    torch.testing.assert_close(table.sigmas, sigmas[index[:-1]], rtol=1e-9, atol=0)


def test_vp_times_end_at_one_thousandth():
    table = ds_vp_table(DELTAS, coefficients(), VPNoise.linear_beta())
    assert table.sigma_end == pytest.approx(VPNoise.linear_beta().sigma_min, rel=1e-9)


def test_vp_rows_sum_to_what_the_state_loses():
    table = ds_vp_table(DELTAS, coefficients(), VPNoise.stable_diffusion())
    torch.testing.assert_close(table.coeffs.sum(1), 1 - table.scale)
    torch.testing.assert_close(table.scale, table.levels[1:] / table.levels[:-1])


def test_vp_coefficients_are_the_searched_ones_in_units_of_the_step():
    coeffs = coefficients()
    table = ds_vp_table(DELTAS, coeffs, VPNoise.stable_diffusion())
    torch.testing.assert_close((table.coeffs / (1 - table.scale)[:, None]).tril(-1), coeffs)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_constant_picture_is_approached_exactly(schedule):
    table = ds_vp_table(DELTAS, coefficients(), schedule)
    x = noise(table.sigma_start)
    result = sample_table(Constant(), x, table, disable=True)
    torch.testing.assert_close(result, Constant().path(x, table.sigma_start, table.sigma_end), rtol=1e-9, atol=1e-9)


# The family's check and its way to a table.


def parameters(**changed: Tensor) -> dict[str, Tensor]:
    return {"timedeltas": DELTAS, "coeffs": coefficients(), **changed}


def test_sound_parameters_pass_the_check():
    FAMILY.check(parameters(), 5, StepCard())


@pytest.mark.parametrize(
    ("tensors", "step", "message"),
    [
        pytest.param(
            parameters(timedeltas=DELTAS[:4]), StepCard(), "timedeltas must hold 5 positive steps, got", id="short"
        ),
        pytest.param(parameters(timedeltas=DELTAS[:, None]), StepCard(), "timedeltas must hold 5", id="deltas 2-d"),
        pytest.param(
            parameters(timedeltas=torch.tensor([0.5, 0.6, -0.2, 0.05, 0.05])),
            StepCard(),
            "timedeltas must hold 5 positive steps",
            id="negative",
        ),
        pytest.param(
            parameters(timedeltas=torch.tensor([0.5, 0.4, 0, 0.05, 0.05])),
            StepCard(),
            "timedeltas must hold 5 positive steps",
            id="zero",
        ),
        pytest.param(
            parameters(timedeltas=DELTAS * 1.0001),
            StepCard(),
            "must sum to 1, got 1.000100: divide them by their sum",
            id="sum",
        ),
        pytest.param(parameters(coeffs=torch.zeros(4, 4)), StepCard(), r"coeffs .* \[5, 5\], got \[4, 4\]", id="small"),
        pytest.param(parameters(coeffs=torch.zeros(5)), StepCard(), r"coeffs .* \[5, 5\], got \[5\]", id="1-d"),
        pytest.param(parameters(coeffs=torch.tensor(0.0)), StepCard(), r"coeffs .* \[5, 5\], got \[\]", id="0-d"),
        pytest.param(
            parameters(coeffs=torch.eye(5)),
            StepCard(),
            "strictly lower-triangular .* is not stored, it is 1 minus its row's sum",
            id="diagonal",
        ),
        pytest.param(
            parameters(coeffs=torch.ones(5, 5).triu(1)), StepCard(), "strictly lower-triangular", id="upper triangle"
        ),
    ],
)
def test_parameters_that_break_a_rule_fail_the_check(tensors, step, message):
    with pytest.raises(ValueError, match=message):
        FAMILY.check(tensors, 5, step)


def test_the_family_makes_the_flow_table_on_flow_noise():
    assert_same_table(FAMILY.table(parameters(), StepCard(), FlowNoise()), ds_flow_table(DELTAS, coefficients()))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_family_makes_the_vp_table_on_vp_noise(schedule):
    expected = ds_vp_table(DELTAS, coefficients(), schedule)
    assert_same_table(FAMILY.table(parameters(), StepCard(), schedule), expected)


def test_the_family_is_not_defined_on_edm_noise():
    with pytest.raises(ValueError, match="DS-Solver is defined on flow and vp noise, got edm"):
        FAMILY.table(parameters(), StepCard(), EDMNoise())
