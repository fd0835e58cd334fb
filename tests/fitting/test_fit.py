"""Fitting: derivatives against autograd, optima against closed forms, starts against the solvers they come from."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from fits import FLOW, GRIDS, NOISES, VP, make_problem, quick_fit, starts, theta_of
from learned_solvers.samplers import Grid, Solver, VPNoise, dpmpp_2m, euler, ipndm, load_solver, sample_table
from learned_solvers.training import GradientDescent, LevenbergMarquardt, table_of
from learned_solvers.training.data.samples import CountedDenoiser, Samples
from learned_solvers.training.data.teacher import Reference, Teacher
from learned_solvers.training.data.trial import Trial
from learned_solvers.training.models.picture_loss import picture_features
from learned_solvers.training.optimise.gradient import Lion
from learned_solvers.training.optimise.levenberg_marquardt import difference_step
from learned_solvers.training.optimise.losses import LOSSES, make_objective
from learned_solvers.training.optimise.problem import Problem, jacobian_calls
from learned_solvers.training.spaces import make_space
from learned_solvers.training.starts.candidates import candidates, peers_of, rank, rmse
from oracles import curved, k_diffusion_module
from torch import Tensor
from torch.testing import assert_close

KINDS = list(itertools.product(NOISES, ["dyweight", "ds"]))
# To the optimum of all samples, whatever it costs, without weights for outliers.
CONVERGED = LevenbergMarquardt(
    samples=64, first=64, work=1e3, steps=5, gain=0.0, enough=1.0, outlier=1e9, difference=1e-6
)


def loss_at(problem: Problem, theta: Tensor) -> Tensor:
    """The loss by one differentiable run of all samples."""
    table = problem.space.table(theta)
    states = problem.run(table, problem.samples, problem.model.uncounted).states
    return problem.objective.rho(problem.objective.residual(states[1:], table.levels[1:], problem.reference)).mean()


@pytest.mark.parametrize(("kind", "family"), KINDS)
def test_the_linearisation_equals_automatic_differentiation(kind, family):
    problem = make_problem(kind, family, 4)
    theta = theta_of(problem) + 0.01

    def residual(at: Tensor) -> Tensor:
        states = problem.run(problem.space.table(at), problem.samples, problem.model.uncounted).states
        return (states[-1] - problem.reference.end).flatten()

    jacobian = torch.autograd.functional.jacobian(residual, theta)
    at, size = problem.linearise(theta, 1e-6), problem.reference.end[0].numel()
    assert_close(at.residual.flatten(), residual(theta) / size**0.5)
    columns = jacobian.view(len(problem.samples), size, -1).transpose(1, 2) / size**0.5
    assert_close(at.jacobian, columns, rtol=1e-4, atol=1e-5 * float(columns.abs().max()))
    assert_close(at.losses, at.residual.square().sum(1))
    assert problem.loss(theta) == pytest.approx(float(at.losses.mean()), rel=1e-12)


@pytest.mark.parametrize(("loss", "sums"), [("l2", 4.0925), ("l1", 2.35), ("huber", 0.22125)])
def test_a_loss_has_its_values_by_hand(loss, sums):
    residual = torch.tensor([[0.05, -0.3, 2.0]], dtype=torch.float64)
    assert_close(make_objective(loss).rho(residual), torch.tensor([sums / 3], dtype=torch.float64))


def test_the_features_of_pictures_give_pixels_and_differences_of_each_scale_the_same_share():
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    pictures = (rows + 10 * columns).expand(2, 3, 1, 4, 6)  # a video of one frame
    # At half the size the steps are twice as large. Mean squares of two scales' pixels and steps across and down.
    halves = torch.tensor([[5.5, 25.5, 45.5], [7.5, 27.5, 47.5]])
    parts = [pictures.square().mean(), 100, 1, halves.square().mean(), 400, 4]
    features = picture_features(pictures)
    assert_close(features.square().mean(1), torch.full([2], float(sum(parts)) / 6))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_of_every_loss_equals_automatic_differentiation(loss):
    problem = make_problem("flow", "dyweight", 3, loss)
    theta = theta_of(problem).requires_grad_(True)
    (expected,) = torch.autograd.grad(loss_at(problem, theta), theta)
    # A weighted least-squares gradient is half of the loss's; trajectory sums N blocks whose mean it takes.
    blocks, at = 3 if loss == "trajectory" else 1, problem.linearise(theta.detach(), 1e-6)
    gradient = torch.einsum("spk,sk->p", at.jacobian, at.residual) / len(at.losses)
    assert_close(2 * blocks * gradient, expected, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize(("kind", "family"), KINDS)
def test_a_jacobian_reuses_the_prefix_of_every_run(kind, family):
    problem = make_problem(kind, family, 5)
    problem.model.calls = 0
    problem.linearise(theta_of(problem), 1e-4)
    # Of a run's 5 calls, a coefficient or level of step i repeats 4 - i, the level of DyWeight's call 5 - i.
    per_sample = {"dyweight": 5 + 4 + 2 * 3 + 3 * 2 + 3 + 15, "ds": 5 + 4 + 2 * 3 + 3 * 2 + 3}
    assert problem.model.calls == per_sample[family] * len(problem.samples)
    assert jacobian_calls(problem.space) == per_sample[family]


def test_a_long_residual_is_sketched_with_its_lengths_and_angles():
    problem = make_problem("flow", "dyweight", 3, count=4, size=20_000)
    theta = theta_of(problem)
    at = problem.linearise(theta, 1e-4)
    size, states = at.residual.shape[1], problem.run(problem.space.table(theta), problem.samples).states
    exact = (states[-1] - problem.reference.end).square().mean(1)
    assert size == 4096 and at.jacobian.shape == (4, len(theta), 4096)
    assert_close(at.losses, exact)
    assert_close(at.residual.square().sum(1), exact, rtol=0.1, atol=0)
    # The sketch is linear: a difference of residuals has the sketch of the difference.
    moved = problem.residuals(theta + 1e-4 * torch.eye(len(theta), dtype=torch.float64)[0])
    assert_close((moved.residual - at.residual) / 1e-4, at.jacobian[:, 0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", [euler, dpmpp_2m, lambda s: ipndm(s, 3)], ids=["euler", "dpmpp_2m", "ipndm 3"])
@pytest.mark.parametrize(("kind", "family"), [*KINDS, ("short vp", "ds")])
def test_a_fit_can_start_from_a_classical_solver_exactly(method, kind, family):
    noises = {**NOISES, "short vp": VPNoise.from_sigmas(VP.sigma_at(torch.arange(1, 401) / 400.0))}
    noise, kind, grid = noises[kind], kind.split()[-1], GRIDS[kind.split()[-1]]
    if (kind, family) == ("vp", "ds"):  # its times run between the paper's own ends
        levels = noise.sigma_at_index(torch.linspace(999, 1, 6, dtype=torch.float64))
    else:
        levels = grid.levels(5, noise)
    space, table, x = make_space(family, 5, noise, grid, 5), method(levels), starts(kind)
    end = sample_table(curved, x, space.table(space.initial(table)), disable=True)
    assert_close(end, sample_table(curved, x, table, disable=True), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("kind", "family"), KINDS)
def test_a_files_tensors_lead_back_to_the_parameters(kind, family):
    space = make_space(family, 5, NOISES[kind], GRIDS[kind], 3)
    grid = GRIDS["flow"] if kind == "flow" else Grid("polynomial", {"rho": 2.0})
    theta = space.initial(ipndm(grid.levels(5, NOISES[kind]), 2))
    theta = theta + 0.05 * torch.randn(len(theta), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(space.from_file(space.tensors(theta)), theta, rtol=1e-9, atol=1e-9)


def test_a_linear_problem_is_solved_to_its_known_optimum():
    # Data N(0, v) with two variances: one step of weight w with the call at s ends at x (1 - w b(s)), the exact path at
    # x sqrt(v), both linear in x. The best w for each s is a weighted mean in closed form; s is found on a fine grid.
    variance = torch.tensor([0.2, 0.2, 2.0], dtype=torch.float64)

    def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma[:, None]
        return (1 - s) * variance / ((1 - s) ** 2 * variance + s**2) * x

    x = starts("flow", 64, 3)
    model, samples = CountedDenoiser(gaussian, torch.float64), Samples(x, {}, 64)
    exact = x * variance.sqrt()
    assert_close(Teacher("heun", 400).reference(model, samples, FLOW).end, exact, rtol=1e-4, atol=1e-5)
    space = make_space("dyweight", 1, FLOW, Grid("flow_shift", {"shift": 1.0}), 1)
    trial = Trial(model, samples, Reference(torch.zeros(1), exact[None]), 64)
    problem = Problem.of(trial, space, make_objective("l2"))
    fitted = CONVERGED.fit(lambda start, stop: problem, torch.tensor([0.0, 0.0]).double())
    loss = float(fitted.at.losses.mean())
    s = torch.linspace(0.05, 1.5, 20_000, dtype=torch.float64)[:, None]
    b = (1 - (1 - s) * variance / ((1 - s) ** 2 * variance + s**2)) / s
    power = x.square().mean(0)
    w = (b * (1 - variance.sqrt()) * power).sum(1) / (b.square() * power).sum(1)
    expected = ((1 - w[:, None] * b - variance.sqrt()).square() * power).mean(1).min()
    assert loss == pytest.approx(float(expected), rel=1e-3, abs=1e-9)


def test_both_optimizers_find_the_point_where_the_gradient_is_zero():
    problem = make_problem("flow", "ds", 4, history=1)  # three time steps of Euler's method
    start = theta_of(problem) + 0.5
    fitted = replace(CONVERGED, samples=12).fit(lambda start, stop: problem, start)
    optimum, loss = fitted.theta, float(fitted.at.losses.mean())
    assert loss < 0.9 * problem.loss(theta_of(problem))
    slope_at_start, slope = (torch.func.grad(lambda at: loss_at(problem, at))(point) for point in (start, optimum))
    assert float(slope.norm()) < 1e-4 * float(slope_at_start.norm())
    nearby = optimum + 0.2 * torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)  # several minima exist
    assert problem.loss(nearby) > 1.2 * loss
    by_adam, loss_by_adam = GradientDescent(rate=0.05, batch=12, epochs=150).fit(problem, nearby)
    assert loss_by_adam == pytest.approx(loss, rel=1e-3)
    assert_close(by_adam, optimum, rtol=1e-2, atol=2e-2)


def test_the_learning_rate_rises_and_falls_along_a_cosine():
    rates = [GradientDescent(warm_up=0.2)._schedule(done) for done in (0.0, 0.1, 0.2, 0.4, 0.6, 1.0)]
    assert rates == pytest.approx([0.005, 0.505, 1.0, 0.01 + 0.99 * (1 + 0.5**0.5) / 2, 0.505, 0.01])


def test_lion_steps_by_the_sign_of_an_interpolated_momentum():
    parameter = torch.tensor([1.0, 1.0])
    lion = Lion([parameter], lr=0.1, weight_decay=0.5)
    # Momentum after the first gradient is 0.01 of it: against the second, 0.9 of that outweighs 0.1 of it, or not.
    for gradient in ([1.0, 1.0], [-0.08, -0.1]):
        parameter.grad = torch.tensor(gradient)
        lion.step()
    assert_close(parameter, torch.tensor([0.85 * 0.95 - 0.1, 0.85 * 0.95 + 0.1]))


@pytest.mark.parametrize("model", [lambda x, sigma: curved(x.detach(), sigma), torch.no_grad()(curved)])
def test_a_gradient_that_is_missing_or_wrong_is_refused(model):
    with pytest.raises(ValueError, match="use the optimizer gauss-newton"):
        quick_fit(model, optimizer="adam", initial="euler, shift 1")


@pytest.mark.parametrize(("dtype", "low", "high"), [(torch.float32, 5e-4, 3e-3), (torch.bfloat16, 5e-2, 0.2)])
def test_the_difference_step_follows_the_models_rounding(dtype, low, high):
    problem = make_problem("flow", "dyweight", 4, model=lambda x, s: curved(x.to(dtype), s.to(dtype)).double())
    assert low <= difference_step(problem, theta_of(problem)) <= high


@pytest.mark.parametrize(("kind", "family"), KINDS)
def test_a_fit_is_never_worse_than_the_best_classical_solver_on_its_samples(kind, family):
    x, noise = starts(kind, 48), NOISES[kind]
    settings = {"effort": "thorough", "held_out": 16, "teacher": "heun", "teacher_steps": 40}
    result = quick_fit(curved, x, noise=noise, family=family, steps=(3, 5), **settings)
    model, samples = CountedDenoiser(curved, torch.float64), Samples(x[:32], {}, 32)
    trial = Trial(model, samples, Teacher("heun", 40).reference(model, samples, noise), 32)
    for steps in (3, 5):
        order = rank(trial, list(candidates(steps, noise)))
        error = rmse(trial, result.solver.table(steps, noise))
        # Heun's levels do not descend, and DS-Solver on VP models cannot end at 0; then its card says so.
        possible = [candidate for _, candidate in order if not candidate.name.startswith("heun")]
        assert error <= (1 + 1e-6) * rmse(trial, possible[0].table) or (kind, family) == ("vp", "ds")
        assert (error > (1 + 1e-6) * order[0][0]) == (result.solver.card.steps[steps].note is not None)
        assert result.report[steps].error_after <= result.report[steps].error_before


def test_a_fit_is_never_worse_than_the_best_classical_solver_at_its_knots():
    def guided(x: Tensor, sigma: Tensor, guidance: float) -> Tensor:  # at 8 a start from the fit at 2 leads nowhere
        s = sigma.reshape(-1, 1)
        return curved(x, sigma) + (guidance - 1) * torch.sin(3 * x) * s / (1 + s) / 2

    x, teacher = starts("flow", 28), Teacher("heun", 30)
    settings = {"guidance": (1.0, 2.0, 8.0), "guidance_argument": "guidance", "teacher": teacher}
    result = quick_fit(guided, x, steps=(6,), teacher_steps=None, **settings)
    assert len(result.at_knots) == 3 and "| 6 at guidance 8 |" in table_of(result)
    for knot, report in zip((1.0, 2.0, 8.0), result.at_knots.values(), strict=True):
        count = report.samples
        model, samples = CountedDenoiser(guided, torch.float64), Samples(x[:count], {"guidance": knot}, count)
        trial = Trial(model, samples, teacher.reference(model, samples, FLOW), count)
        best = next(c.table for c in peers_of(6, FLOW, every=False) if c.name == report.peers[0].name)
        assert rmse(trial, result.solver.table(6, FLOW, guidance=knot)) <= (1 + 1e-6) * rmse(trial, best)


@pytest.mark.parametrize("kind", NOISES)
def test_a_call_far_above_the_models_highest_level_is_no_trial(kind):
    problem = make_problem(kind, "dyweight", 3)
    for factor, calls in ((99.0, 36), (101.0, 0), (1e40, 0)):  # infinite in float32
        theta = theta_of(problem)
        theta[0], problem.model.calls = math.log(factor), 0  # the first call's level, relative to the state's
        assert bool(problem.losses(theta).isfinite().all()) == bool(calls) and problem.model.calls == calls


@pytest.mark.parametrize("level", [1.0, 0.9, 0.7, 0.5, 0.0])
def test_a_teachers_states_are_interpolated_between_its_levels(level):
    levels = torch.tensor([1.0, 0.7, 0.3, 0.0], dtype=torch.float64)
    states = torch.stack([3 * levels + 1, levels.square()], 1)
    squares = {1.0: 1.0, 0.9: 0.49 + 0.51 * 2 / 3, 0.7: 0.49, 0.5: 0.29, 0.0: 0.0}
    at = Reference(levels, states).at(torch.tensor(level, dtype=torch.float64))
    assert_close(at, torch.tensor([3 * level + 1, squares[level]], dtype=torch.float64))


@pytest.mark.parametrize("method", ["heun", "euler", "dpmpp_2m"])
@pytest.mark.parametrize("kind", NOISES)
def test_a_teacher_equals_k_diffusions_sampler(method, kind):
    sampling, x = k_diffusion_module("sampling"), starts(kind)
    end = Teacher(method, 20).reference(curved, Samples(x, {}, len(x)), NOISES[kind]).end
    expected = getattr(sampling, f"sample_{method}")(curved, x, NOISES[kind].teacher_grid(20), disable=True)
    assert_close(end, expected, rtol=1e-8, atol=1e-8)


def test_a_fit_can_start_from_a_solver_of_another_step_count():
    four = quick_fit(steps=(4,)).solver
    five = quick_fit(steps=(5,), initial=four)
    assert five.report[5].start.startswith("dyweight_fitted at 4 steps")
    assert five.report[5].error_after < five.report[5].error_before
    card = replace(four.card, steps={**four.card.steps, **five.solver.card.steps})
    both = Solver("both", card, {**four.parameters, **five.solver.parameters})
    assert quick_fit(steps=(6,), initial=both).report[6].start.startswith("both at 5 steps")
    with pytest.raises(ValueError, match="ds_flow-sit is a ds solver for flow models: start a dyweight fit"):
        quick_fit(steps=(5,), initial=load_solver("ds_flow-sit"))
