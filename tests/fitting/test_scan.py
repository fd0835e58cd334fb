"""The scan finds the best classical solver with few calls, on grids that the model and the step count have."""

from __future__ import annotations

import pytest
import torch
from fits import NOISES, make_problem, quick_fit, starts
from learned_solvers.samplers import VPNoise
from learned_solvers.training.starts.candidates import HOST_METHODS, best_of_methods, candidates, rank, rmse, scan_calls
from oracles import curved


@pytest.mark.parametrize("kind", NOISES)
def test_the_scan_finds_the_best_within_its_calls(kind):
    trial, options = make_problem(kind, "ds", 4, count=32), list(candidates(4, NOISES[kind]))
    trial.model.calls = 0
    order = rank(trial, options)
    assert trial.model.calls <= scan_calls(options, 32) < 0.5 * 32 * 4 * len(options)
    assert len(order) == len(options)
    errors = {candidate: rmse(trial, candidate.table) for candidate in options}
    assert order[0][0] == pytest.approx(min(errors.values()), rel=0.02)
    # Each method is compared at its best grid on all samples.
    ranked = {candidate: error for error, candidate in order}
    best = best_of_methods([candidate for _, candidate in order])
    assert [ranked[candidate] for candidate in best] == pytest.approx([errors[c] for c in best], rel=1e-9)
    assert {candidate.method for candidate in best} >= set(HOST_METHODS)


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 6])
def test_candidates_have_the_calls_and_the_levels_of_their_rules(kind, steps):
    noise = NOISES[kind]
    options = list(candidates(steps, noise))
    assert len({candidate.name for candidate in options}) == len(options)
    for candidate in options:
        table, heun = candidate.table, candidate.method == "heun"
        assert table.nfe in ((steps - 1, steps) if heun else (steps,))
        if candidate.grid is not None:  # UniPC ends at 0.001
            torch.testing.assert_close(table.levels, candidate.grid.levels(steps, noise), rtol=0, atol=0.001)
        assert not heun or candidate.grid is None
        # UniPC replaces 0 by 0.001: on a grid that ends in 0.001 and 0 its last step would be empty.
        assert not candidate.method.startswith("uni_pc") or float(table.levels[-2]) > 0.0011


@pytest.mark.parametrize(("timesteps", "steps"), [(10, 11), (20, 18), (50, 50)])
def test_a_model_of_few_timesteps_has_candidates_on_the_grids_that_it_has(timesteps, steps):
    options = list(candidates(steps, VPNoise.scaled_linear(0.00085, 0.012, timesteps)))
    assert any(candidate.name.startswith("ipndm 2, karras") for candidate in options)
    for candidate in options:  # Heun calls twice at a level
        assert bool((candidate.table.levels.diff() < 0).all()) or candidate.method == "heun"


def test_a_model_of_few_timesteps_can_be_fitted():
    noise = VPNoise.from_sigmas(torch.linspace(0.03, 14.6, 8, dtype=torch.float64))
    x = starts("flow", 64) * noise.sigma_max
    result = quick_fit(curved, x, noise=noise, steps=(9,), teacher_steps=20)
    assert result.report[9].error_after < result.report[9].error_before
    assert bool((result.solver.table(9, noise).levels.diff() < 0).all())
