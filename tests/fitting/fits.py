"""Small problems for the tests of fitting: starts, grids, a Problem as `fit_solver` makes it, and quick fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from learned_solvers.samplers import FlowNoise, Grid, VPNoise, ipndm
from learned_solvers.training import FitResult, fit_solver
from learned_solvers.training.data.samples import CountedDenoiser, Samples
from learned_solvers.training.data.teacher import Teacher
from learned_solvers.training.optimise.losses import make_objective
from learned_solvers.training.optimise.problem import Problem
from learned_solvers.training.spaces import make_space
from oracles import curved
from torch import Tensor

FLOW, VP = FlowNoise(), VPNoise.stable_diffusion()
GRIDS = {"flow": Grid("flow_shift", {"shift": 1.5}), "vp": Grid("karras", {"rho": 5.0})}
NOISES = {"flow": FLOW, "vp": VP}


def starts(kind: str = "flow", count: int = 12, size: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(count, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return (x if kind == "flow" else x * VP.sigma_max).to(dtype)


def make_problem(
    kind: str, family: str, steps: int, loss: str = "l2", model=curved, history=3, count=12, size=6
) -> Problem:
    model, noise = CountedDenoiser(model, torch.float64), NOISES[kind]
    samples, objective = Samples(starts(kind, count, size), {}, 5), make_objective(loss)
    reference = Teacher("heun", 40).reference(model, samples, noise, trajectory=objective.needs_trajectory)
    space = make_space(family, steps, noise, GRIDS[kind], history)
    return Problem(model, samples, reference, len(samples), space=space, objective=objective)


def theta_of(problem: Problem) -> Tensor:
    """The parameters of iPNDM's second order on the problem's grid."""
    kind, steps = problem.space.noise.kind, problem.space.steps
    return problem.space.initial(ipndm(GRIDS[kind].levels(steps, NOISES[kind]), 2))


def quick_fit(model: Callable[..., Tensor] = curved, x: Tensor | None = None, **settings) -> FitResult:
    """A fit of 3 steps to 24 flow starts with a teacher of 8 steps, unless the settings say otherwise."""
    settings = {"noise": FLOW, "steps": (3,), "teacher_steps": 8, **settings}
    return fit_solver(model, starts("flow", 24) if x is None else x, **settings)


@dataclass
class Watched:
    """A denoiser that counts its calls and their samples; call number `at` is passed through `act`."""

    at: int = 0
    act: Callable[[Tensor], Tensor] = torch.clone
    model: Callable[..., Tensor] = curved
    calls: int = 0
    samples: int = 0
    most: int = 0

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: object) -> Tensor:
        self.calls, self.samples, self.most = self.calls + 1, self.samples + len(x), max(self.most, len(x))
        if self.calls == self.at:  # without a graph: its recomputation would stop before `act`
            return self.act(self.model(x.detach(), sigma.detach(), **extra_args))
        return self.model(x, sigma, **extra_args)
