"""Fits to more samples than the core: iterations on all of them, and a longer history."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fits import FLOW, GRIDS, VP, make_problem, quick_fit, starts, theta_of
from learned_solvers.samplers import SolverTable, ipndm
from learned_solvers.training import FitJob, FitSettings, LevenbergMarquardt
from learned_solvers.training.data.samples import CountedDenoiser, Samples
from learned_solvers.training.data.teacher import Teacher
from learned_solvers.training.data.trial import Trial
from learned_solvers.training.optimise.levenberg_marquardt import _Refined
from learned_solvers.training.optimise.problem import Normal, Problem
from learned_solvers.training.spaces import make_space
from learned_solvers.training.starts.candidates import rmse
from oracles import curved
from torch import Tensor
from torch.testing import assert_close


def problem_of(count: int, steps: int = 4) -> Problem:
    return make_problem("flow", "dyweight", steps, count=count, size=16)


def rmse_of(x: Tensor, table: SolverTable, teacher_steps: int) -> float:
    """A table's error on starts, by a teacher's ends made here."""
    model, samples = CountedDenoiser(curved, torch.float64), Samples(x, {}, len(x))
    reference = Teacher("heun", teacher_steps).reference(model, samples, FLOW)
    return rmse(Trial(model, samples, reference, len(x)), table)


def estimate(problem: Problem, theta: Tensor, core: int, iteration: int) -> Normal:
    state = _Refined(theta, problem.losses(theta), 1e-3, iteration)
    return LevenbergMarquardt(core=core)._normal_of_all(problem, state, 1e-5)


@pytest.mark.parametrize("nearest", [1e-3, 1e-5])
@pytest.mark.parametrize("noise", [FLOW, VP], ids=["flow", "vp"])
def test_a_longer_history_starts_where_the_short_one_ended_however_near_the_end_its_times_are(noise, nearest):
    short, long = (make_space("ds", 4, noise, None, history, False) for history in (2, 4))
    parts = torch.tensor([0.6, 0.5, nearest], dtype=torch.float64).logit()
    coeffs = torch.tensor([-0.3, 0.2, 0.1], dtype=torch.float64)
    theta = torch.stack([parts[0], coeffs[0], parts[1], coeffs[1], parts[2], coeffs[2]])
    before, after = short.table(theta), long.table(long.from_file(short.tensors(theta)))
    assert_close(after.sigmas, before.sigmas, rtol=1e-6, atol=0)
    assert_close(after.coeffs, before.coeffs, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("core", "iterations"), [(6, 1), (4, 2), (2, 5)])
def test_the_estimates_of_successive_iterations_average_to_the_normal_equations_of_all_samples(core, iterations):
    problem = problem_of(12)
    theta = theta_of(problem)
    exact, estimates = problem.normal(theta, 1e-5), [estimate(problem, theta, core, i) for i in range(iterations)]
    assert_close(torch.stack([n.matrix for n in estimates]).mean(0), exact.matrix, rtol=1e-9, atol=1e-15)
    assert_close(torch.stack([n.gradient for n in estimates]).mean(0), exact.gradient, rtol=1e-9, atol=1e-15)
    assert all(n.loss == pytest.approx(exact.loss, rel=1e-12) for n in estimates)
    if iterations > 1:
        assert float((estimates[0].matrix - exact.matrix).norm()) > 1e-3 * float(exact.matrix.norm())


def test_a_jacobian_of_all_samples_uses_at_most_twice_the_core():
    problem = problem_of(20)
    theta, before = theta_of(problem), problem.model.calls
    estimate(problem, theta, 8, 0)
    per_sample = 4 + sum(4 - restart.entries for restart in problem.space.restart)
    assert problem.model.calls - before == 20 * 4 + (8 + 6) * per_sample  # the losses, then every second of 12 others


def test_iterations_on_all_samples_come_near_their_minimum():
    problem = problem_of(120, 3)
    settings = LevenbergMarquardt(iterations=30, tolerance=1e-3, difference=1e-6, core=24)
    of_core, _ = settings.fit(problem.first(24), theta_of(problem))
    theta, loss = replace(settings, skip_core=True).fit(problem, of_core)
    _, least = replace(settings, core=120, skip_core=True).fit(problem, of_core)
    assert loss == pytest.approx(problem.loss(theta), rel=1e-12)
    assert least <= loss < 1.02 * least < 0.8 * problem.loss(of_core)


def test_iterations_on_all_samples_stop_where_one_of_them_is_infinite():
    problem, lines = problem_of(20), []
    problem.samples.x[12] = 1e200  # outside the core
    start = theta_of(problem)
    settings = LevenbergMarquardt(core=8, skip_core=True, difference=1e-5)
    theta, loss = settings.fit(problem, start, progress=lines.append)
    assert theta.equal(start) and loss == float("inf")
    assert lines == ["iteration 1 on all 20 samples: loss inf -> inf"]


@pytest.mark.parametrize(("core", "samples"), [(8, "on all 60 samples"), (60, "on 60 samples")])
def test_a_start_near_the_optimum_skips_iterations_on_few_samples(core, samples):
    problem, lines = problem_of(60), []
    LevenbergMarquardt(core=core, skip_core=True).fit(problem, theta_of(problem), progress=lines.append)
    assert lines and all(line.startswith("iteration") and samples in line for line in lines)


def test_a_longer_history_is_fitted_after_a_short_one():
    x = starts("flow", 80, 16)

    def fit_with(history: int) -> tuple[float, Tensor, list[str]]:
        lines: list[str] = []
        settings = {"held_out": 20, "optimizer": LevenbergMarquardt(core=30), "progress": lines.append}
        solver = quick_fit(curved, x, steps=(6,), teacher_steps=40, history=history, **settings).solver
        assert solver.card.steps[6].history == history
        return rmse_of(x[:60], solver.table(6, FLOW), 40), solver.parameters[6]["weights"][0], lines

    (error_short, short, lines_short), (error_long, long, lines_long) = fit_with(3), fit_with(5)
    assert not any("history of" in line for line in lines_short)
    assert lines_long.count("6 steps: continuing with a history of 5") == 1
    older = torch.ones(6, 6, dtype=torch.bool).tril(-3)
    assert not short[older].any()
    assert long[torch.ones(6, 6, dtype=torch.bool).tril(-5)].tolist() == [0.0]
    assert (long[older.logical_and(torch.ones(6, 6).triu(-4).bool())] != 0).all()
    assert error_long < error_short < 1e-3


def test_a_named_start_keeps_its_history():
    x, table = starts("flow", 24), ipndm(GRIDS["flow"].levels(6, FLOW), 4)
    settings = {"steps": (6,), "history": 4, "teacher_steps": 20, "held_out": 4}
    lines: list[str] = []
    result = quick_fit(curved, x, initial="ipndm 4, shift 1.5", progress=lines.append, **settings)
    assert result.report[6].error_before == pytest.approx(rmse_of(x[20:], table, 20), rel=1e-9)
    assert not any("history of" in line for line in lines)


@pytest.mark.parametrize(("count", "initial", "history"), [(255, "scan", 3), (256, "scan", 6), (256, "euler", 3)])
def test_256_samples_have_a_longer_history_unless_the_start_is_given(count, initial, history):
    samples = Samples(starts("flow", count + 2), {}, 64)
    assert FitJob(FitSettings(initial=initial, held_out=2), samples, FLOW, {}).history == history
