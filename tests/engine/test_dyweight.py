"""DyWeight's parameters: from the base solver they start as, through the time calibration, to the table."""

from __future__ import annotations

import pytest
import torch
from learned_solvers.samplers import EDMNoise, FlowNoise, Grid, VPNoise, euler, ipndm, sample_table
from learned_solvers.samplers.families.dyweight import FAMILY, dyweight_table
from learned_solvers.samplers.files.card import StepCard
from oracles import IPNDM, GaussianFlow, GaussianVE, Recorder, Steps
from torch import Tensor

GRID = Grid("polynomial", {"rho": 7.0}).levels(6, EDMNoise(0.02, 20.0))
EVEN = torch.linspace(20, 2, 7, dtype=torch.float64)


def ipndm_weights(steps: int, order: int) -> Tensor:
    """Returns the weights of iPNDM, oldest entry first."""
    rows = [IPNDM[min(i + 1, order) - 1] for i in range(steps)]
    padded = [[0.0] * (i + 1 - len(row)) + row + [0.0] * (steps - i - 1) for i, row in enumerate(rows)]
    return torch.tensor(padded, dtype=torch.float64)


def learned(steps: int) -> tuple[Tensor, Tensor]:
    """Returns weights that do not sum to 1, and time scales beside 1."""
    generator = torch.Generator().manual_seed(0)
    weights = ipndm_weights(steps, 3) + 0.1 * torch.randn(steps, steps, generator=generator, dtype=torch.float64).tril()
    return weights, 1 + 0.1 * torch.randn(steps, generator=generator, dtype=torch.float64)


def noise(sigma: float) -> Tensor:
    return sigma * torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("divisor", ["state", "call"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("grid", [GRID, EVEN], ids=["polynomial", "even"])
def test_ipndms_weights_and_time_scales_of_1_are_ipndm(grid, order, divisor):
    table = dyweight_table(ipndm_weights(6, order), torch.ones(6), grid, divisor=divisor)
    base = ipndm(grid, order)
    torch.testing.assert_close(
        (table.levels, table.sigmas, table.scale, table.coeffs),
        (base.levels, base.sigmas, base.scale, base.coeffs),
        rtol=1e-12,
        atol=1e-12,
    )
    assert (table.entry, table.nfe) == ("derivative", 6)


def test_weights_of_the_identity_are_euler():
    torch.testing.assert_close(dyweight_table(torch.eye(6), torch.ones(6), GRID).coeffs, euler(GRID).coeffs)


def test_the_row_sums_are_step_sizes_that_the_true_levels_follow():
    weights, t_scale = learned(6)
    table = dyweight_table(weights, t_scale, GRID)
    true = [float(GRID[0])]
    for row, target in zip(weights.tolist(), GRID[1:].tolist(), strict=True):
        true.append(true[-1] + sum(row) * (target - true[-1]))
    torch.testing.assert_close(table.levels[:-1], torch.tensor(true[:-1]).double())
    torch.testing.assert_close(table.sigmas, t_scale * torch.tensor(true[:-1]).double())
    assert table.sigma_end == float(GRID[-1])


def test_a_row_that_falls_short_is_made_up_for_by_the_next_step():
    weights = torch.diag(torch.tensor([0.5, 1.0], dtype=torch.float64))
    table = dyweight_table(weights, torch.ones(2), torch.tensor([4.0, 2.0, 1.0]))
    torch.testing.assert_close(table.levels, torch.tensor([4.0, 3.0, 1.0]).double())
    torch.testing.assert_close(table.coeffs, torch.diag(torch.tensor([-1.0, -2.0])).double())


def test_rows_are_never_normalised():
    weights = torch.diag(torch.tensor([1.0, 0.77], dtype=torch.float64))
    table = dyweight_table(weights, torch.ones(2), torch.tensor([1.0, 0.4, 0.0]))
    torch.testing.assert_close(table.coeffs[1], torch.tensor([0.0, -0.77 * 0.4]).double())


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_the_coefficients_are_weights_times_the_step(steps):
    weights, t_scale = learned(steps)
    grid = GRID[: steps + 1]
    table = dyweight_table(weights, t_scale, grid, divisor="call")
    torch.testing.assert_close(table.coeffs, weights * (grid[1:] - table.levels[:-1])[:, None])


def test_the_divisor_state_means_the_true_level_of_the_entry():
    weights, t_scale = learned(6)
    call, state = (dyweight_table(weights, t_scale, GRID, divisor=divisor) for divisor in ("call", "state"))
    torch.testing.assert_close(state.coeffs, call.coeffs * (call.sigmas / call.levels[:-1]))
    torch.testing.assert_close(state.sigmas, call.sigmas)
    assert not torch.allclose(state.coeffs, call.coeffs)


def test_the_divisor_state_divides_by_the_true_level_in_the_loop():
    table = dyweight_table(torch.tensor([[1.0]]), torch.tensor([0.8]), torch.tensor([2.0, 0.5]), divisor="state")
    x = noise(2.0)
    denoised = GaussianVE()(x, torch.full((2,), 1.6))
    result = sample_table(GaussianVE(), x, table, disable=True)
    torch.testing.assert_close(result, x - 1.5 * (x - denoised) / 2.0)


def test_the_divisor_call_divides_by_the_calls_level_in_the_loop():
    table = dyweight_table(torch.tensor([[1.0]]), torch.tensor([0.8]), torch.tensor([0.9, 0.5]), divisor="call")
    x = noise(0.9)
    denoised = GaussianFlow()(x, torch.full((2,), 0.72))
    result = sample_table(GaussianFlow(), x, table, disable=True)
    torch.testing.assert_close(result, x - 0.4 * (x - denoised) / 0.72)


@pytest.mark.parametrize("divisor", ["calls", "", "State"])
def test_another_divisor_is_refused(divisor):
    with pytest.raises(ValueError, match='divisor must be "state" or "call"'):
        dyweight_table(torch.eye(6), torch.ones(6), GRID, divisor=divisor)


@pytest.mark.parametrize(
    ("weights", "t_scale", "grid"),
    [
        pytest.param(torch.eye(3), torch.ones(4), GRID[:4], id="a time scale too many"),
        pytest.param(torch.eye(3), torch.ones(2), GRID[:4], id="a time scale too few"),
        pytest.param(torch.eye(3), torch.ones(3), GRID[:5], id="a level too many"),
        pytest.param(torch.eye(3), torch.ones(3), GRID[:3], id="a level too few"),
        pytest.param(torch.ones(3, 2), torch.ones(3), GRID[:4], id="weights not square"),
    ],
)
def test_parameters_that_do_not_match_are_refused(weights, t_scale, grid):
    with pytest.raises(ValueError, match=r"must have|must hold"):
        dyweight_table(weights, t_scale, grid)


# The analytic first step.


def test_an_analytic_first_step_follows_the_derivative_of_pure_noise():
    weights, t_scale = learned(6)
    table = dyweight_table(weights, t_scale[1:], GRID, analytic_first=True)
    x, steps = noise(20.0), Steps()
    result = sample_table(GaussianVE(), x, table, callback=steps, disable=True)
    expected = x + weights[0, 0] * (GRID[1] - GRID[0]) * x / (1 + 20.0**2) ** 0.5
    torch.testing.assert_close(steps.trajectory(result)[1], expected)


def test_an_analytic_first_step_costs_no_call_and_has_no_time_scale():
    weights, t_scale = learned(6)
    table = dyweight_table(weights, t_scale[1:], GRID, analytic_first=True)
    recorder = Recorder(GaussianVE())
    sample_table(recorder, noise(20.0), table, disable=True)
    assert (table.steps, table.nfe, len(recorder.sigma)) == (6, 5, 5)
    torch.testing.assert_close(recorder.sigmas[:, 0], t_scale[1:] * table.levels[1:-1])
    assert float(table.sigmas[0]) == float(GRID[0])


def test_an_analytic_first_step_is_almost_the_call_where_noise_is_all():
    """At a level of 1000 a picture of mean 0 and variance 1 is nothing beside its noise."""
    weights, t_scale = learned(3)
    grid = torch.tensor([1000.0, 500.0, 300.0, 200.0])
    called = dyweight_table(weights, torch.cat([torch.ones(1), t_scale[1:]]), grid)
    analytic = dyweight_table(weights, t_scale[1:], grid, analytic_first=True)
    x, oracle = noise(1000.0), GaussianVE(mean=0.0, variance=1.0)
    torch.testing.assert_close(
        sample_table(oracle, x, analytic, disable=True),
        sample_table(oracle, x, called, disable=True),
        rtol=1e-5,
        atol=0,
    )


# The family's check and its way to a table.


def parameters(nfe: int = 3, steps: int = 3, **changed: Tensor) -> dict[str, Tensor]:
    return {"weights": torch.eye(steps).double(), "t_scale": torch.ones(nfe).double(), **changed}


CARD = StepCard(grid=Grid("polynomial", {"rho": 7.0}))
ANALYTIC = StepCard(grid=Grid("polynomial", {"rho": 7.0}), options={"analytic_first": True})


@pytest.mark.parametrize(("tensors", "step"), [(parameters(), CARD), (parameters(steps=4), ANALYTIC)])
def test_sound_parameters_pass_the_check(tensors, step):
    FAMILY.check(tensors, 3, step)


@pytest.mark.parametrize(
    ("tensors", "step", "message"),
    [
        pytest.param(parameters(steps=4), CARD, r"weights .*\[3, 3\] for 3 calls, got \[4, 4\]", id="a row too many"),
        pytest.param(parameters(), ANALYTIC, r"weights .*\[4, 4\] for 3 calls, got \[3, 3\]", id="no analytic row"),
        pytest.param(parameters(weights=torch.ones(3)), CARD, r"\[3, 3\] for 3 calls, got \[3\]", id="weights 1-d"),
        pytest.param(parameters(weights=torch.tensor(1.0)), CARD, r"\[3, 3\] for 3 calls, got \[\]", id="weights 0-d"),
        pytest.param(parameters(weights=torch.ones(3, 3)), CARD, "weights must be lower-triangular", id="triangle"),
        pytest.param(parameters(nfe=4), CARD, "t_scale must hold 3 positive factors, got", id="a scale too many"),
        pytest.param(parameters(nfe=4, steps=4), ANALYTIC, "t_scale must hold 3 positive", id="a scale of the noise"),
        pytest.param(
            parameters(t_scale=torch.tensor([1.0, 0.0, 1.0])), CARD, "t_scale must hold 3 positive", id="zero scale"
        ),
        pytest.param(
            parameters(t_scale=torch.tensor([1.0, -0.9, 1.0])), CARD, "t_scale must hold 3 positive", id="negative"
        ),
        pytest.param(parameters(t_scale=torch.ones(3, 1)), CARD, "t_scale must hold 3 positive", id="scales 2-d"),
        pytest.param(parameters(), StepCard(), "needs a grid rule, the card has none", id="no grid"),
        pytest.param(
            parameters(), StepCard(grid=CARD.grid, options={"divisor": "sigma"}), "divisor must be", id="divisor"
        ),
        pytest.param(
            parameters(), StepCard(grid=CARD.grid, options={"analytic_first": 1}), "analytic_first must be", id="first"
        ),
    ],
)
def test_parameters_that_break_a_rule_fail_the_check(tensors, step, message):
    with pytest.raises(ValueError, match=message):
        FAMILY.check(tensors, 3, step)


def test_weights_that_are_not_triangular_are_not_blamed_on_their_shape():
    with pytest.raises(ValueError, match="lower-triangular") as refusal:
        FAMILY.check(parameters(weights=torch.ones(3, 3)), 3, CARD)
    assert "got [3, 3]" not in str(refusal.value)


@pytest.mark.parametrize(
    ("grid", "schedule"),
    [
        (Grid("polynomial", {"rho": 7.0}), EDMNoise()),
        (Grid("polynomial", {"rho": 7.0}), VPNoise.stable_diffusion()),
        (Grid("uniform_time", {"end": 1e-3}), VPNoise.stable_diffusion()),
        (Grid("flow_shift", {"shift": 3.0}), FlowNoise()),
    ],
)
@pytest.mark.parametrize("divisor", ["state", "call"])
def test_the_family_puts_the_cards_grid_on_the_models_noise(grid, schedule, divisor):
    weights, t_scale = learned(4)
    card = StepCard(grid=grid, options={"divisor": divisor})
    table = FAMILY.table({"weights": weights, "t_scale": t_scale}, card, schedule)
    expected = dyweight_table(weights, t_scale, grid.levels(4, schedule), divisor=divisor)
    torch.testing.assert_close(table.coeffs, expected.coeffs, rtol=0, atol=0)
    torch.testing.assert_close(table.levels, expected.levels, rtol=0, atol=0)


def test_the_family_honours_an_analytic_first_step():
    table = FAMILY.table(parameters(steps=4), ANALYTIC, EDMNoise())
    assert (table.analytic_first, table.steps, table.nfe) == (True, 4, 3)
