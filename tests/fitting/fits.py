"""Small problems for the tests of fitting: samples, grids, and a Problem as `fit_solver` makes it."""

from __future__ import annotations

import torch
from learned_solvers.samplers import FlowNoise, Grid, VPNoise, ipndm
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


def starts(kind: str, count: int = 12, size: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(count, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return (x if kind == "flow" else x * VP.sigma_max).to(dtype)


def problem(
    kind: str, family: str, steps: int, loss: str = "l2", model=curved, learn_grid=False, history=3, count=12, size=6
) -> Problem:
    model, noise = CountedDenoiser(model, torch.float64), NOISES[kind]
    samples, objective = Samples(starts(kind, count, size), {}, 5), make_objective(loss)
    reference = Teacher("heun", 40).reference(model, samples, noise, trajectory=objective.needs_trajectory)
    space = make_space(family, steps, noise, GRIDS[kind], history, learn_grid)
    return Problem(model, samples, reference, len(samples), space=space, objective=objective)


def start_of(own: Problem, kind: str, steps: int) -> Tensor:
    return own.space.initial(ipndm(GRIDS[kind].levels(steps, NOISES[kind]), 2))
