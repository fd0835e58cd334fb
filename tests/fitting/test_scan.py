"""The scan finds the best classical solver with few calls, and says which candidates a fit can start from."""

from __future__ import annotations

import pytest
import torch
from learned_solvers.samplers import FlowNoise, VPNoise
from learned_solvers.training import fit_solver
from learned_solvers.training.data.samples import CountedDenoiser, Samples
from learned_solvers.training.data.teacher import Teacher
from learned_solvers.training.data.trial import Trial
from learned_solvers.training.starts.candidates import HOST_METHODS, candidates, rank, rmse, scan_calls
from oracles import curved

NOISES = {"flow": FlowNoise(), "vp": VPNoise.stable_diffusion()}


@pytest.fixture(scope="module", params=NOISES)
def problem(request) -> tuple[Trial, FlowNoise | VPNoise]:
    noise = NOISES[request.param]
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    samples, model = (
        Samples(x * (1 if request.param == "flow" else noise.sigma_max), {}, 32),
        CountedDenoiser(curved, torch.float64),
    )
    reference = Teacher("heun", 40).reference(model, samples, noise)
    return Trial(model, samples, reference, 32), noise


def test_the_scan_finds_the_best_within_its_calls(problem):
    own, noise = problem
    tried = list(candidates(4, noise))
    own.model.calls = 0
    order = rank(own, tried)
    assert own.model.calls <= scan_calls(tried, 32) < 0.5 * 32 * 4 * len(tried)
    assert len(order) == len(tried)
    best = min(rmse(own, candidate.table) for candidate in tried)
    assert order[0][0] == pytest.approx(best, rel=0.02)
    assert order[0][0] == pytest.approx(rmse(own, order[0][1].table), rel=1e-9)


def test_every_method_is_judged_on_all_samples(problem):
    own, noise = problem
    order = rank(own, list(candidates(4, noise)))
    seen: set[str] = set()
    for error, candidate in order:
        method = candidate.name.partition(",")[0]
        if method not in seen:
            assert error == pytest.approx(rmse(own, candidate.table), rel=1e-9)
        seen.add(method)
    assert seen >= set(HOST_METHODS)


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 6])
def test_candidates_take_the_calls_and_start_fits_from_rules_alone(kind, steps):
    noise = NOISES[kind]
    tried = list(candidates(steps, noise))
    assert len({candidate.name for candidate in tried}) == len(tried)
    for candidate in tried:
        heun = candidate.name.startswith("heun")
        assert candidate.table.nfe in ((steps - 1, steps) if heun else (steps,))
        if candidate.grid is not None:
            torch.testing.assert_close(
                candidate.table.levels, candidate.grid.levels(steps, noise), rtol=0, atol=0.001
            )  # UniPC ends at 0.001
        assert not heun or candidate.grid is None
        # UniPC takes 0 as 0.001: a grid that ends in 0.001 and 0 would leave it a last step of nothing.
        assert not candidate.method.startswith("uni_pc") or float(candidate.table.levels[-2]) > 0.0011


@pytest.mark.parametrize(("timesteps", "steps"), [(10, 11), (20, 18), (50, 50), (100, 60)])
def test_a_model_of_few_timesteps_has_candidates_on_the_grids_that_it_has(timesteps, steps):
    noise = VPNoise.scaled_linear(0.00085, 0.012, timesteps)
    tried = list(candidates(steps, noise))
    assert any(candidate.name.startswith("ipndm 2, karras") for candidate in tried)
    for candidate in tried:
        levels = candidate.table.levels
        assert bool((levels.diff() < 0).all()) or candidate.method == "heun"  # it calls twice at a level


def test_a_model_of_few_timesteps_can_be_fitted():
    noise = VPNoise.from_sigmas(torch.linspace(0.03, 14.6, 8, dtype=torch.float64))
    x = noise.sigma_max * torch.randn(16, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = fit_solver(curved, x, noise=noise, steps=(9,), teacher_steps=20)
    assert result.report[9].error_after < result.report[9].error_before
    assert bool((result.solver.table(9, noise).levels.diff() < 0).all())
