"""The start from the teacher's path against brute force, and fits at several guidances and on growing samples."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import partial

import numpy as np
import pytest
import torch
from fits import FLOW, NOISES, VP, make_problem, quick_fit, starts, theta_of
from learned_solvers.samplers import EDMNoise, Grid, euler, ipndm, sample_table
from learned_solvers.samplers.loop import Denoiser
from learned_solvers.training import FitJob, FitSettings, LevenbergMarquardt, fit
from learned_solvers.training.data.processes import Processes
from learned_solvers.training.data.samples import CountedDenoiser, Samples
from learned_solvers.training.data.teacher import Recipe, Reference, Teacher
from learned_solvers.training.data.trial import Trial
from learned_solvers.training.optimise.losses import make_objective
from learned_solvers.training.starts.candidates import rmse
from learned_solvers.training.starts.choose import find_starts
from learned_solvers.training.starts.path import closed_loop, path_levels
from learned_solvers.training.store.journal import Journal
from learned_solvers.training.task import Task
from oracles import GaussianFlow, GaussianVE, curved, run, smooth
from torch import Tensor
from torch.testing import assert_close


def path_of(kind: str, steps: int, model=curved, count: int = 3) -> tuple[CountedDenoiser, Samples, Reference]:
    counted, samples = CountedDenoiser(model, torch.float64), Samples(starts(kind, count), {}, 2)
    return counted, samples, Teacher("heun", steps).reference(counted, samples, NOISES[kind], trajectory=True)


def local_errors(path: Reference, chosen: tuple[int, ...], history: int, kind: str) -> float:
    """The sum of what regression on the slopes leaves of every step, with slopes by numpy."""
    levels, x = path.levels.numpy(), path.states.flatten(1).numpy()
    slopes = np.stack([np.gradient(column, levels, edge_order=2) for column in x.T], 1)
    total = 0.0
    for i, (a, b) in enumerate(itertools.pairwise(chosen)):
        columns = slopes[list(chosen[max(0, i - history + 1) : i + 1])].T
        ridge = np.sqrt(1e-3) * np.linalg.norm(columns[:, -1]) * np.eye(columns.shape[1])
        weights = np.linalg.lstsq(np.vstack([columns, ridge]), np.append(x[b] - x[a], np.zeros(len(ridge))), None)[0]
        step = np.append(columns @ weights - (x[b] - x[a]), ridge @ weights)
        total += float(step @ step) / x.shape[1] / (1 if kind == "flow" else levels[b] ** 2 + 1)
    return total


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize(("steps", "history"), [(1, 3), (2, 3), (4, 2), (5, 3)])
def test_the_levels_of_the_path_have_the_least_sum_of_local_errors(kind, steps, history):
    *_, path = path_of(kind, 9)
    inner = itertools.combinations(range(1, 9), steps - 1)
    every = {(0, *some, 9): local_errors(path, (0, *some, 9), history, kind) for some in inner}
    chosen = path_levels(path, steps, NOISES[kind], history)
    rows = tuple(int((path.levels == level).nonzero()) for level in chosen)
    assert every[rows] == pytest.approx(min(every.values()), rel=1e-9)


@pytest.mark.parametrize("free_sums", [True, False])
@pytest.mark.parametrize("kind", NOISES)
def test_the_closed_loop_ends_nearer_than_euler_with_one_call_per_step(kind, free_sums):
    model, samples, path = path_of(kind, 20)
    levels, before = path.levels[[0, 6, 11, 15, 20]], model.calls
    table, error = closed_loop(model, samples, path, levels, 3, free_sums=free_sums)
    assert model.calls - before == 4 * len(samples)
    trial = Trial(model, samples, path, len(samples))
    assert error == pytest.approx(rmse(trial, table), rel=1e-9) and error < 0.7 * rmse(trial, euler(levels))
    assert not bool(table.coeffs[3, 0])  # a history of 3
    sums = table.coeffs.sum(1)
    assert torch.allclose(sums, levels.diff(), rtol=1e-9) != free_sums


def test_a_fit_at_several_guidances_makes_one_solver_with_a_knot_at_each():
    knots, seen, x = (0.6, 1.0, 1.6), set[float](), starts("flow", 64)

    def model(x: Tensor, sigma: Tensor, guidance: float) -> Tensor:
        seen.add(guidance)
        return smooth(x, sigma, guidance)

    settings = {"teacher_steps": 40, "steps": (4,), "guidance": knots, "guidance_argument": "guidance"}
    solver = quick_fit(model, starts("flow", 48), **settings).solver
    assert seen == set(knots) and solver.card.steps[4].knots == knots
    between = (1.0 * 1.6) ** 0.5
    tables = {at: solver.table(4, FLOW, at) for at in (*knots, between)}
    halfway = (tables[1.0].coeffs[0] + tables[1.6].coeffs[0]) / 2  # in log(guidance)
    assert_close(tables[between].coeffs[0], halfway)
    for at in tables:
        counted, samples = CountedDenoiser(partial(smooth, guidance=at), torch.float64), Samples(x, {}, 64)
        trial = Trial(counted, samples, Teacher("heun", 60).reference(counted, samples, FLOW), 64)
        errors = {other: rmse(trial, table) for other, table in tables.items()}
        assert min(errors, key=errors.__getitem__) == at, "a solver is the closest at its own guidance"


def test_an_outlier_does_not_steer_the_fit():
    def error(outlier: float, bound: float = 3.0) -> float:
        clean, problem = (make_problem("flow", "dyweight", 3, model=smooth, count=12) for _ in range(2))
        problem.reference.states[-1, 5] += outlier
        settings = LevenbergMarquardt(samples=12, first=12, work=12.0, outlier=bound)
        return rmse(clean, clean.space.table(settings.fit(lambda start, stop: problem, theta_of(problem)).theta))

    assert error(10.0) < 3 * error(0.0) and error(1000.0) == pytest.approx(error(10.0), rel=1e-3)
    assert error(10.0, bound=1e9) > 10 * error(10.0)


@pytest.mark.parametrize(("scale", "samples"), [(1.0, 16), (0.2, 24)])
def test_a_fit_adds_samples_until_new_ones_are_as_close_as_old_ones(scale, samples):
    x = torch.randn(32, 2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[12:] *= scale
    assert quick_fit(curved, x, optimizer=LevenbergMarquardt(work=10.0)).report[3].samples == samples


@pytest.mark.parametrize("noise", [FLOW, VP, EDMNoise()], ids=lambda noise: noise.kind)
def test_the_teacher_is_closer_to_the_exact_path_on_its_dense_grid_than_on_the_usual_one(noise):
    model = (GaussianFlow if noise.kind == "flow" else GaussianVE)(variance=0.04)
    teacher, samples = Teacher("ode", 40), Samples((noise.start_std or 1.0) * starts(count=6), {}, 4)
    counted = CountedDenoiser(model, torch.float64)
    levels, usual = teacher.grid(counted, samples, noise), noise.teacher_grid(40)
    assert counted.calls == teacher.pilot_calls
    assert len(levels) == 41 and bool((levels.diff() < 0).all())
    last = -1 if noise.kind == "flow" else -2  # the others take one step from the lowest level to 0
    assert_close(levels[[0, last, -1]], usual[[0, last, -1]], rtol=1e-12, atol=0)

    def error(levels: Tensor) -> float:
        exact = model.path(samples.x, float(levels[0]), float(levels[last]))
        states = list[Tensor]()
        teacher.run(model, samples, levels, states.append)
        return float((states[last] - exact).square().mean().sqrt())

    assert error(levels) < 0.75 * error(usual)


TODAY = euler(Grid("flow_shift", {"shift": 2.0}).levels(6, FLOW))  # on no grid of the scan


def today(model: Denoiser, x: Tensor, extra_args: Mapping[str, object]) -> Tensor:
    return sample_table(model, x, TODAY, extra_args, disable=True)


@pytest.mark.parametrize(("teacher", "name", "steps"), [(TODAY, "table", 6), (today, "today", None)])
def test_a_fit_imitates_the_sampler_that_is_its_teacher(teacher, name, steps):
    solver = quick_fit(smooth, starts("flow", 40), teacher=teacher, teacher_steps=None, steps=(6,)).solver
    x = starts("flow", 100)[40:]
    end, imitated = run(smooth, x, TODAY), run(smooth, x, solver.table(6, FLOW))
    exact = run(smooth, x, ipndm(FLOW.teacher_grid(100), 3))
    assert float((imitated - end).norm()) < 0.02 * float((end - exact).norm())
    assert (solver.card.steps[6].teacher, solver.card.steps[6].teacher_steps) == (name, steps)
    with pytest.raises(ValueError, match="the trajectory loss needs a path: choose a teacher of ode, euler"):
        quick_fit(smooth, teacher=teacher, loss="trajectory")


def mean(model: Denoiser, x: Tensor, extra_args: Mapping[str, object]) -> Tensor:
    return x.mean(1)


def test_a_teacher_whose_ends_have_another_shape_is_refused():
    with pytest.raises(TypeError, match=r"the teacher mean must return end states in the shape of x, .*, got shape \["):
        quick_fit(smooth, teacher=mean)


def test_two_tables_as_teachers_share_no_cached_ends(tmp_path):
    samples, other = Samples(starts(), {}, 12), ipndm(TODAY.levels, 2)
    for table in (TODAY, other, TODAY):
        end = Recipe.of(table).reference(smooth, samples, cache=tmp_path).end
        assert_close(end, run(smooth, samples.x, table), rtol=0, atol=0)
    assert len(list(tmp_path.iterdir())) == 2 * len(samples)


@pytest.mark.parametrize(("seed", "closer"), [(2, 0), (3, 1), (4, 1)])
def test_of_two_starts_the_fit_goes_on_from_the_one_that_is_closer_after_its_first_jacobian(seed, closer):
    x = torch.randn(24, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    job = FitJob(FitSettings(steps=(3,), teacher_steps=8), Samples(x, {}, 24), FLOW, {})
    model, log = CountedDenoiser(curved, torch.float64), list[str]()
    task = Task(job, job.samples, model, make_objective("l2"), Processes(), Journal(None, ""), log.append, None)
    starts_of_path, optimizer = find_starts(task, 3, []), job.optimizer
    pairs = [(task.problem(start.space), start.theta) for start in starts_of_path]
    losses = [float(optimizer.begin(*pair).at.losses.mean()) for pair in pairs]
    assert losses[closer] < losses[1 - closer]
    alone, result = optimizer.fit(*pairs[closer]).theta, fit.fit(job, curved, log.append)
    assert result.report[3].start == starts_of_path[closer].name
    fitted = {name: tensor[0] for name, tensor in result.solver.parameters[3].items()}
    assert_close(fitted, starts_of_path[closer].space.tensors(alone), rtol=0, atol=0)


@pytest.mark.parametrize(("guidance", "steps"), [(4.0, 4), (1.0, 50)])
def test_every_path_gives_a_start(guidance, steps):
    """Without levels that descend, from a classical solver; with as many as the teacher's, from a usual grid."""
    lines = []
    result = quick_fit(
        smooth, starts("flow", 28), steps=(steps,), teacher_steps=None, effort="quick", guidance=(guidance,),
        guidance_argument="guidance", progress=lines.append,
    )  # fmt: skip
    named = f"{steps} steps: no levels descend along the teacher's path, starting from {result.report[steps].start}"
    assert (named in lines) == (steps == 4)
    assert result.report[steps].error_after < 0.8 * result.report[steps].error_before
