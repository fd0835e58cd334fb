"""DyWeight: levels and time calibration. test_golden.py tests divisors and analytic first steps."""

from __future__ import annotations

import pytest
import torch
from learned_solvers.samplers import EDMNoise, FlowNoise, Grid, VPNoise, ipndm
from learned_solvers.samplers.families.dyweight import FAMILY, dyweight_table
from learned_solvers.samplers.files.card import StepCard
from oracles import IPNDM, assert_same_table, f64
from torch import Tensor
from torch.testing import assert_close

POLYNOMIAL = Grid("polynomial", {"rho": 7.0})
GRID = POLYNOMIAL.levels(6, EDMNoise(0.02, 20.0))


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
def test_the_family_puts_the_cards_grid_and_options_on_the_models_noise(grid, schedule, options):
    weights, t_scale = learned(4)
    t_scale = t_scale[int("analytic_first" in options) :]
    tensors, card = {"weights": weights, "t_scale": t_scale}, StepCard(grid=grid, options=options)
    FAMILY.check(tensors, len(t_scale), card)
    expected = dyweight_table(weights, t_scale, grid.levels(4, schedule), **options)
    assert_same_table(FAMILY.table(tensors, card, schedule), expected)
