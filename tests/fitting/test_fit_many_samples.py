"""Fits to more samples than are iterated on at first: iterations on all of them, and a longer history."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fits import FLOW, GRIDS, problem, start_of, starts
from learned_solvers.samplers import SolverTable, VPNoise, ipndm, sample_table
from learned_solvers.training import GaussNewton, fit_solver
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
    return problem("flow", "dyweight", steps, count=count, size=16)


def rmse_of(x: Tensor, table: SolverTable, teacher_steps: int) -> float:
    """Returns a table's error on starts, by a teacher's ends made here."""
    model, samples = CountedDenoiser(curved, torch.float64), Samples(x, {}, len(x))
    reference = Teacher("heun", teacher_steps).reference(model, samples, FLOW)
    return rmse(Trial(model, samples, reference, len(x)), table)


def estimate(own: Problem, theta: Tensor, core: int, turn: int) -> Normal:
    now = _Refined(theta, own.losses(theta), 1e-3, turn)
    return GaussNewton(core=core)._normal_of_all(own, now, 1e-5)


@pytest.mark.parametrize("nearest", [1e-3, 1e-5])
@pytest.mark.parametrize("noise", [FLOW, VPNoise.stable_diffusion()], ids=["flow", "vp"])
def test_a_second_turn_of_ds_begins_where_the_first_ended_however_near_the_end_its_times_are(noise, nearest):
    few, more = (make_space("ds", 4, noise, None, history, False) for history in (2, 4))
    parts = torch.tensor([0.6, 0.5, nearest], dtype=torch.float64).logit()
    coeffs = torch.tensor([-0.3, 0.2, 0.1], dtype=torch.float64)
    theta = torch.stack([parts[0], coeffs[0], parts[1], coeffs[1], parts[2], coeffs[2]])
    before, after = few.table(theta), more.table(more.from_file(few.tensors(theta)))
    assert_close(after.sigmas, before.sigmas, rtol=1e-6, atol=0)
    assert_close(after.coeffs, before.coeffs, rtol=1e-6, atol=1e-12)


def test_losses_are_the_mean_squares_of_each_sample():
    own = problem_of(12)
    theta = start_of(own, "flow", 4)
    ends = sample_table(curved, own.samples.x, own.space.table(theta), disable=True)
    assert_close(own.losses(theta), (ends - own.reference.end).square().mean(1), rtol=1e-12, atol=0)
    assert float(own.losses(theta).mean()) == pytest.approx(own.loss(theta), rel=1e-12)
    assert torch.isinf(own.losses(theta - 100)).all()


@pytest.mark.parametrize(("core", "turns"), [(6, 1), (4, 2), (2, 5)])
def test_the_estimates_of_all_turns_together_are_the_normal_equations_of_all_samples(core, turns):
    own = problem_of(12)
    theta = start_of(own, "flow", 4)
    exact, found = own.normal(theta, 1e-5), [estimate(own, theta, core, turn) for turn in range(turns)]
    assert_close(torch.stack([n.matrix for n in found]).mean(0), exact.matrix, rtol=1e-9, atol=1e-15)
    assert_close(torch.stack([n.gradient for n in found]).mean(0), exact.gradient, rtol=1e-9, atol=1e-15)
    assert all(n.loss == pytest.approx(exact.loss, rel=1e-12) for n in found)
    if turns > 1:
        assert float((found[0].matrix - exact.matrix).norm()) > 1e-3 * float(exact.matrix.norm())


def test_a_jacobian_of_all_is_one_of_twice_the_core():
    own = problem_of(60)
    theta = start_of(own, "flow", 4)
    now, before = _Refined(theta, own.losses(theta), 1e-3), own.model.calls
    GaussNewton(core=5)._normal_of_all(own, now, 1e-5)
    jacobian = 4 + sum(4 - restart.known for restart in own.space.restart)
    assert own.model.calls - before == 10 * jacobian


def test_iterations_on_all_come_near_the_minimum_of_all():
    own = problem_of(200, 3)
    settings = GaussNewton(iterations=30, tolerance=1e-3, difference=1e-6)
    few, _ = replace(settings, core=24).fit(own.first(24), start_of(own, "flow", 3))
    found, loss = replace(settings, core=24, near=True).fit(own, few)
    _, least = replace(settings, core=200, near=True).fit(own, few)
    assert loss == pytest.approx(own.loss(found), rel=1e-12)
    assert least <= loss < 1.02 * least < 0.8 * own.loss(few)


def test_iterations_on_all_end_where_one_of_them_cannot_be_run():
    own, lines = problem_of(20), []
    own.samples.x[12] = 1e200  # beside the core
    theta = start_of(own, "flow", 4)
    found, loss = GaussNewton(core=8, near=True, difference=1e-5).fit(own, theta, progress=lines.append)
    assert found.equal(theta) and loss == float("inf")
    assert lines == ["iteration 1 on all 20 samples: loss inf -> inf"]


def test_a_start_near_the_optimum_goes_to_all_samples_at_once():
    own, lines = problem_of(60), []
    theta = start_of(own, "flow", 4)
    GaussNewton(core=8, near=True).fit(own, theta, progress=lines.append)
    assert lines and all(line.startswith("iteration") and "on all 60 samples" in line for line in lines)
    lines.clear()
    GaussNewton(core=60, near=True).fit(own, theta, progress=lines.append)
    assert all("on 60 samples" in line for line in lines)


def fitted(history: int, **settings) -> tuple[float, Tensor, list[str]]:
    x, lines = starts("flow", 80, 16), []
    result = fit_solver(
        curved, x, noise=FLOW, steps=(6,), history=history, teacher_steps=40, held_out=20,
        optimizer=GaussNewton(core=30), progress=lines.append, **settings,
    )  # fmt: skip
    assert result.solver.card.steps[6].history == history
    return rmse_of(x[:60], result.solver.table(6, FLOW), 40), result.solver.parameters[6]["weights"][0], lines


def test_a_longer_history_is_fitted_after_a_short_one():
    short, long = fitted(3), fitted(5)
    assert not any("history of" in line for line in short[2])
    assert sum(line == "6 steps: going on with a history of 5" for line in long[2]) == 1
    older = torch.ones(6, 6, dtype=torch.bool).tril(-3)
    assert not short[1][older].any()
    assert long[1][torch.ones(6, 6, dtype=torch.bool).tril(-5)].tolist() == [0.0]
    assert (long[1][older.logical_and(torch.ones(6, 6).triu(-4).bool())] != 0).all()
    assert long[0] < short[0] < 1e-3


def test_what_a_user_starts_from_keeps_its_history():
    x, start = starts("flow", 24), ipndm(GRIDS["flow"].levels(6, FLOW), 4)
    settings = {"noise": FLOW, "steps": (6,), "history": 4, "teacher_steps": 20, "held_out": 4}
    lines: list[str] = []
    result = fit_solver(curved, x, initial="ipndm 4, shift 1.5", progress=lines.append, **settings)
    assert result.report[6].error_before == pytest.approx(rmse_of(x[20:], start, 20), rel=1e-9)
    assert not any("history of" in line for line in lines)


@pytest.mark.parametrize(
    ("samples", "initial", "history"), [(255, "scan", 3), (256, "scan", 5), (256, "ipndm 4, shift 1", 3)]
)
def test_256_samples_have_a_longer_history_unless_the_start_is_given(samples, initial, history):
    x = starts("flow", samples + 2)
    result = fit_solver(
        curved, x, noise=FLOW, steps=(5,), held_out=2, teacher_steps=8, optimizer=GaussNewton(iterations=5),
        initial=initial,
    )  # fmt: skip
    assert result.solver.card.steps[5].history == history
