"""Fitting: derivatives against autograd, optima against closed forms, restarts against uninterrupted runs."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from fits import FLOW, GRIDS, NOISES, VP, problem, start_of, starts
from learned_solvers.samplers import (
    Grid,
    Solver,
    VPNoise,
    adams_bashforth,
    dpmpp_2m,
    euler,
    ipndm,
    load_solver,
    sample_table,
)
from learned_solvers.samplers.conversion import with_denoised, with_derivatives
from learned_solvers.training import GaussNewton, GradientDescent, fit_solver
from learned_solvers.training.data.samples import CountedDenoiser, Samples
from learned_solvers.training.data.teacher import Reference, Teacher
from learned_solvers.training.data.trial import Trial
from learned_solvers.training.optimise.levenberg_marquardt import difference_step
from learned_solvers.training.optimise.losses import LOSSES, make_objective
from learned_solvers.training.optimise.problem import Problem
from learned_solvers.training.spaces import make_space
from learned_solvers.training.spaces.dyweight import DyWeightSpace
from learned_solvers.training.starts.candidates import candidates, rank, rmse
from learned_solvers.training.starts.choose import KEPT, STARTS, Start, find_start
from learned_solvers.training.store.journal import Journal
from learned_solvers.training.task import Task
from oracles import curved, k_diffusion_module
from torch import Tensor
from torch.testing import assert_close

KINDS = list(itertools.product(NOISES, ["dyweight", "ds"]))


def objective_of(own: Problem, theta: Tensor) -> Tensor:
    """The loss by one differentiable run of all samples."""
    table = own.space.table(theta)
    states = own.run(table, own.samples, own.model.uncounted).states
    return own.objective.rho(own.objective.residual(states[1:], table.levels[1:], own.reference)).mean()


@pytest.mark.parametrize(
    ("kind", "family", "learn_grid"), [*((*k, False) for k in KINDS), *((k, "dyweight", True) for k in NOISES)]
)
def test_the_normal_equations_equal_automatic_differentiation(kind, family, learn_grid):
    own = problem(kind, family, 4, learn_grid=learn_grid)
    theta = start_of(own, kind, 4) + 0.01

    def residual(at: Tensor) -> Tensor:
        states = own.run(own.space.table(at), own.samples, own.model.uncounted).states
        return (states[-1] - own.reference.end).flatten()

    jacobian = torch.autograd.functional.jacobian(residual, theta)
    count = own.reference.end.numel()
    normal = own.normal(theta, 1e-6)
    matrix, gradient = jacobian.T @ jacobian / count, jacobian.T @ residual(theta) / count
    assert_close(normal.matrix, matrix, rtol=1e-4, atol=1e-5 * float(matrix.abs().max()))
    assert_close(normal.gradient, gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))
    assert_close(normal.loss, own.loss(theta), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_of_every_loss_equals_automatic_differentiation(loss):
    own = problem("flow", "dyweight", 3, loss)
    theta = start_of(own, "flow", 3).requires_grad_(True)
    (expected,) = torch.autograd.grad(objective_of(own, theta), theta)
    # A weighted least-squares gradient is half of the loss's; trajectory sums N blocks whose mean it takes.
    blocks = 3 if loss == "trajectory" else 1
    assert_close(2 * blocks * own.normal(theta.detach(), 1e-6).gradient, expected, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize(("kind", "family"), KINDS)
def test_a_jacobian_reuses_the_prefix_of_every_run(kind, family):
    own = problem(kind, family, 5)
    own.model.calls = 0
    own.normal(start_of(own, kind, 5), 1e-4)
    per_sample = 5 + sum(5 - restart.known for restart in own.space.restart)
    assert own.model.calls == per_sample * len(own.samples)
    assert per_sample < 5 * (1 + len(own.space.restart)) / 1.7


@pytest.mark.parametrize("table", [euler, dpmpp_2m, lambda s: adams_bashforth(s, 3), lambda s: ipndm(s, 4)])
@pytest.mark.parametrize("kind", ["flow", "vp"])
@pytest.mark.parametrize("convert", [with_derivatives, with_denoised])
def test_a_table_on_other_history_entries_is_the_same_solver(table, kind, convert):
    own = table(Grid("flow_shift", {"shift": 2.0}).levels(6, FLOW) if kind == "flow" else GRIDS["vp"].levels(6, VP))
    x = starts(kind)
    expected = sample_table(curved, x, own, disable=True)
    assert_close(sample_table(curved, x, convert(own), disable=True), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", [euler, dpmpp_2m, lambda s: ipndm(s, 3)])
@pytest.mark.parametrize(("kind", "family"), [("flow", "dyweight"), ("flow", "ds"), ("vp", "dyweight"), ("vp", "ds")])
def test_a_fit_can_start_from_a_classical_solver_exactly(method, kind, family):
    levels = GRIDS[kind].levels(5, NOISES[kind])
    if (kind, family) == ("vp", "ds"):  # its times run between the paper's own ends
        levels = VP.sigma_at_index(torch.linspace(999, 1, 6, dtype=torch.float64))
    space, own = make_space(family, 5, NOISES[kind], GRIDS[kind], 5, False), method(levels)
    x = starts(kind)
    ours = sample_table(curved, x, space.table(space.initial(own)), disable=True)
    assert_close(ours, sample_table(curved, x, own, disable=True), rtol=1e-6, atol=1e-6)


def test_a_ds_fit_starts_exactly_on_a_table_of_another_length():
    noise = VPNoise.from_sigmas(VP.sigma_at(torch.linspace(1 / 400, 1, 400, dtype=torch.float64)))
    own = ipndm(noise.sigma_at_index(torch.linspace(999, 1, 6, dtype=torch.float64)), 3)
    space = make_space("ds", 5, noise, None, 5, False)
    ours = sample_table(curved, starts("vp"), space.table(space.initial(own)), disable=True)
    assert_close(ours, sample_table(curved, starts("vp"), own, disable=True), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("kind", "family"), KINDS)
def test_what_a_file_stores_leads_back_to_the_parameters(kind, family):
    space = make_space(family, 5, NOISES[kind], GRIDS[kind], 3, False)
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
    space = make_space("dyweight", 1, FLOW, Grid("flow_shift", {"shift": 1.0}), 1, False)
    trial = Trial(model, samples, Reference(torch.zeros(1), exact[None]), 64)
    own = Problem.of(trial, space, make_objective("l2"))
    _, loss = GaussNewton(iterations=40, tolerance=0.0, difference=1e-6).fit(own, torch.tensor([0.5, 0.0]).double())
    s = torch.linspace(0.05, 1.5, 20_000, dtype=torch.float64)[:, None]
    b = (1 - (1 - s) * variance / ((1 - s) ** 2 * variance + s**2)) / s
    power = x.square().mean(0)
    w = (b * (1 - variance.sqrt()) * power).sum(1) / (b.square() * power).sum(1)
    expected = ((1 - w[:, None] * b - variance.sqrt()).square() * power).mean(1).min()
    assert loss == pytest.approx(float(expected), rel=1e-3, abs=1e-9)


def test_gauss_newton_and_gradient_descent_find_the_same_minimum():
    own = problem("flow", "ds", 4, history=1)  # three time steps of Euler's method
    theta = start_of(own, "flow", 4)
    newton, low = GaussNewton(iterations=30, tolerance=1e-9, difference=1e-6).fit(own, theta + 0.5)
    assert low < 0.9 * own.loss(theta)
    near = newton + 0.2 * torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)  # several minima exist: the same valley
    assert own.loss(near) > 1.2 * low
    adam, also_low = GradientDescent(rate=0.02, batch=12, epochs=1500).fit(own, near)
    assert also_low == pytest.approx(low, rel=1e-3)
    assert_close(adam, newton, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "lion"])
def test_every_gradient_optimizer_lowers_the_error(optimizer):
    x = starts("flow", 40, dtype=torch.float32)
    settings = GradientDescent(optimizer, rate=1e-2, batch=8, epochs=8)
    result = fit_solver(
        curved, x, noise=FLOW, steps=(3,), teacher_steps=20, optimizer=settings, initial="euler, shift 1"
    )
    assert result.report[3].error_after < 0.8 * result.report[3].error_before


def test_a_gradient_that_is_missing_or_wrong_is_refused():
    x = starts("flow", 16, dtype=torch.float32)

    def detached(x, sigma):
        return curved(x.detach(), sigma)

    def without_gradient(x, sigma):
        with torch.no_grad():
            return curved(x, sigma)

    for model in (detached, without_gradient):
        with pytest.raises(ValueError, match="use the optimizer gauss-newton"):
            fit_solver(model, x, noise=FLOW, steps=(3,), teacher_steps=10, optimizer="adam", initial="euler, shift 1")


@pytest.mark.parametrize(("dtype", "low", "high"), [(torch.float32, 1e-4, 3e-3), (torch.bfloat16, 5e-2, 0.2)])
def test_the_difference_step_follows_the_models_rounding(dtype, low, high):
    own = problem("flow", "dyweight", 4, model=lambda x, s: curved(x.to(dtype), s.to(dtype)).double())
    assert low <= difference_step(own, start_of(own, "flow", 4)) <= high


@pytest.mark.parametrize("family", ["dyweight", "ds"])
@pytest.mark.parametrize("kind", ["flow", "vp"])
def test_a_fit_is_never_worse_than_the_best_classical_solver_on_its_samples(kind, family):
    x, noise = starts(kind, 48), NOISES[kind]
    result = fit_solver(curved, x, noise=noise, family=family, steps=(3, 5), held_out=16, teacher_steps=40)
    model, samples = CountedDenoiser(curved, torch.float64), Samples(x[:32], {}, 32)
    reference = Teacher("heun", 40).reference(model, samples, noise)
    own = Trial(model, samples, reference, 32)
    for steps in (3, 5):
        order = rank(own, list(candidates(steps, noise)))
        ours = rmse(own, result.solver.table(steps, noise))
        # Heun's levels do not descend, and DS-Solver on VP models cannot end at 0; then its card says so.
        possible = [c for _, c in order if not c.name.startswith("heun")]
        assert ours <= rmse(own, possible[0].table) or (kind, family) == ("vp", "ds")
        assert (ours > order[0][0]) == (result.solver.card.steps[steps].note is not None)
        assert result.report[steps].error_after <= result.report[steps].error_before


@pytest.mark.parametrize("kind", ["flow", "vp"])
def test_many_steps_start_where_ds_solver_would(kind):
    order = [c for _, c in rank(problem(kind, "ds", 8).first(4), list(candidates(8, NOISES[kind])))]

    def start(family: str) -> Start:
        own = problem(kind, family, 8)
        fitted, judged = own.first(8), own.pick(torch.arange(8, 12))
        task = Task(fitted, judged, own.objective, NOISES[kind], family, 8, False, Journal(None, ""), lambda line: None)
        return find_start(task, 8, order, "scan")

    ours, searched = start("dyweight"), start("ds")
    assert isinstance(ours.space, DyWeightSpace) and ours.name == searched.name
    ends = [sample_table(curved, starts(kind), s.space.table(s.theta), disable=True) for s in (ours, searched)]
    assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-9)
    assert rmse(problem(kind, "ds", 8), searched.space.table(searched.theta)) < rmse(problem(kind, "ds", 8), ours.table)


def test_many_steps_start_from_dyweight_where_the_ds_solvers_lead_to_none(monkeypatch):
    own = problem("flow", "dyweight", 8)
    order = [c for _, c in rank(own.first(4), list(candidates(8, FLOW)))]
    said = []
    task = Task(
        own.first(8),
        own.pick(torch.arange(8, 12)),
        own.objective,
        FLOW,
        "dyweight",
        8,
        False,
        Journal(None, ""),
        said.append,
    )
    monkeypatch.setattr("learned_solvers.training.starts.choose.is_valid", lambda space, theta: False)
    start = find_start(task, 8, order, "scan")
    # Those of the other family, with fewer parameters, must not be taken for DyWeight's own.
    assert isinstance(start.space, DyWeightSpace) and len(start.theta) == len(start.space.initial(start.table))
    losses = [line for line in said if ": start " in line]
    assert len(losses) == len(set(losses)) == 2 * (STARTS + KEPT)
    assert rmse(own, start.space.table(start.theta)) < rmse(own, order[0].table)


def test_the_report_counts_every_network_call():
    calls = 0

    def counted(x, sigma, shift):
        nonlocal calls
        calls += len(x)
        return curved(x, sigma, shift)

    x = starts("flow", 32)
    result = fit_solver(counted, x, noise=FLOW, steps=(3,), teacher_steps=10, extra_args={"shift": x[:, 0].clone()})
    assert result.teacher_calls == 19 * 32
    judged = calls - result.teacher_calls - result.report[3].network_calls
    assert judged == 0
    assert result.solver.card.steps[3].network_calls == result.report[3].network_calls


def test_per_sample_arguments_stay_with_their_samples():
    x = starts("flow", 24)
    shift = torch.linspace(-1, 1, 24, dtype=torch.float64)
    settings = {"noise": FLOW, "steps": (3,), "teacher_steps": 10, "extra_args": {"shift": shift}}
    whole = fit_solver(curved, x, **settings)
    parts = fit_solver(curved, x, microbatch=5, **settings)
    assert_close(parts.solver.parameters[3]["weights"], whole.solver.parameters[3]["weights"], rtol=1e-6, atol=1e-7)


def test_an_argument_of_one_row_or_none_goes_to_every_call():
    seen = set()

    def model(x, sigma, shift, scale, name):
        seen.add((shift.shape, scale, name))
        return scale * curved(x, sigma) + 0.1 * shift

    x, shared = starts("flow", 16), {"shift": torch.ones(1, 6).double(), "scale": 1.0, "name": "abc"}
    fit_solver(model, x, noise=FLOW, steps=(2,), teacher_steps=5, microbatch=5, extra_args=shared)
    assert seen == {((1, 6), 1.0, "abc")}


def test_a_process_without_samples_adds_nothing_to_the_sums():
    whole = problem("flow", "dyweight", 3)
    none = replace(whole, samples=whole.samples.rows(0, 0), reference=whole.reference.rows(0, 0))
    theta = start_of(whole, "flow", 3)
    table = whole.space.table(theta)
    expected, shape = whole.errors(table), whole.normal(theta, 1e-4).matrix.shape
    whole.model.calls = 0
    errors = none.errors(table)
    assert errors.shape == (0,) and errors.dtype == expected.dtype and len(expected) == 12
    assert float(errors.sum()) == none.loss(theta) == rmse(none, table) == 0.0
    normal = none.normal(theta, 1e-4)
    assert normal.loss == 0.0 and not normal.matrix.any() and not normal.gradient.any()
    assert normal.matrix.shape == shape
    assert whole.model.calls == 0


@pytest.mark.parametrize(
    ("method", "name"), [("heun", "sample_heun"), ("euler", "sample_euler"), ("dpmpp_2m", "sample_dpmpp_2m")]
)
@pytest.mark.parametrize("kind", ["flow", "vp"])
def test_a_teacher_equals_k_diffusions_sampler(method, name, kind):
    sampling, x = k_diffusion_module("sampling"), starts(kind)
    ours = Teacher(method, 20).reference(curved, Samples(x, {}, len(x)), NOISES[kind]).end
    theirs = getattr(sampling, name)(curved, x, NOISES[kind].teacher_grid(20), disable=True)
    assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_a_fit_can_go_on_from_a_solver_of_a_neighbouring_step_count():
    x = starts("flow", 32)
    four = fit_solver(curved, x, noise=FLOW, steps=(4,), teacher_steps=20).solver
    five = fit_solver(curved, x, noise=FLOW, steps=(5,), teacher_steps=20, initial=four)
    assert five.report[5].start == "dyweight_fitted at 4 steps"
    assert five.report[5].error_after < five.report[5].error_before
    both = Solver("both", replace(four.card, steps={**four.card.steps, **five.solver.card.steps}),
                  {**four.parameters, **five.solver.parameters})  # fmt: skip
    six = fit_solver(curved, x, noise=FLOW, steps=(6,), teacher_steps=20, initial=both)
    assert six.report[6].start == "both at 5 steps"
    with pytest.raises(ValueError, match="start a dyweight fit on flow noise from one of its kind"):
        fit_solver(curved, x, noise=FLOW, steps=(5,), teacher_steps=20, initial=load_solver("ds_flow-sit"))


def test_the_grids_shift_can_be_learned_too():
    x = starts("flow", 32)
    own = fit_solver(curved, x, noise=FLOW, steps=(3,), teacher_steps=20, learn_grid=True, initial="euler, shift 5")
    learned = own.solver.card.steps[3].grid.parameters["shift"]
    assert learned != 5.0
    assert own.report[3].error_after < own.report[3].error_before
