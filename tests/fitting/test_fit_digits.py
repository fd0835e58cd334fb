"""Fits for the bundled model, held against every classical solver on starts that no fit has seen."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from learned_solvers.samplers import FlowNoise, VPNoise
from learned_solvers.training import fit_solver
from learned_solvers.training.command.demo import demo_starts
from learned_solvers.training.data.samples import CountedDenoiser, Samples
from learned_solvers.training.data.teacher import Teacher
from learned_solvers.training.data.trial import Trial
from learned_solvers.training.models.digits import load_digits
from learned_solvers.training.starts.candidates import candidates, rank, rmse

pytestmark = pytest.mark.slow
VP = VPNoise.stable_diffusion()
UNSEEN = 512  # a few starts rule an error: fewer of them would leave it to chance
IN_BFLOAT16 = 3  # half precision takes a CPU eight times as long; `python -m benchmarks precision` has more
LEAST = {"flow": {3: 1.5, 5: 1.8, 7: 2.0}, "vp": {3: 1.5, 5: 1.8}}  # steps: how many times the best peer's error
POINTS = [(kind, steps) for kind, least in LEAST.items() for steps in least]


def model_of(kind, dtype=torch.float32):
    """The bundled model, as a flow model or an eps model in VE coordinates: a state / (1 + sigma) is the flow state."""
    flow = load_digits(dtype=dtype)

    def vp(x, sigma, label, guidance):
        return flow((x / (1 + sigma).view(-1, 1, 1, 1)).to(x.dtype), sigma / (1 + sigma), label, guidance)

    return (flow, FlowNoise()) if kind == "flow" else (vp, VP)


def starts_of(kind, count, seed, dtype=torch.float32):
    x, extra_args = demo_starts(count, seed)
    return (x if kind == "flow" else x * VP.sigma_max).to(dtype), extra_args


@cache
def unseen(kind):
    """The float32 model, the teacher's ends, on starts and labels that no fit has seen."""
    model, noise = model_of(kind)
    x, extra_args = starts_of(kind, UNSEEN, seed=99)
    counted, samples = CountedDenoiser(model, torch.float32), Samples(x, extra_args, 256)
    reference = Teacher("ipndm", 60).reference(counted, samples, noise)
    return Trial(counted, samples, reference, UNSEEN)


def fitted_to(kind, dtype, steps, count=160):
    model, noise = model_of(kind, dtype)
    x, extra_args = starts_of(kind, count, 0, dtype)
    settings = {"teacher": "ipndm", "teacher_steps": 60, "held_out": 32, "extra_args": extra_args}
    return fit_solver(model, x, noise=noise, steps=steps, **settings)


@cache
def fitted(kind):
    return fitted_to(kind, torch.float32, [*LEAST[kind]])


@cache
def best_peer(kind, steps):
    """The least error of every classical solver on every grid; ranked on 32 starts, the best on all."""
    _, noise = model_of(kind)
    order = rank(unseen(kind).first(32), list(candidates(steps, noise)))
    return min(rmse(unseen(kind), c.table) for _, c in order[:5])


@pytest.mark.parametrize(("kind", "steps"), POINTS)
def test_a_fitted_solver_beats_every_classical_one_on_unseen_starts(kind, steps):
    _, noise = model_of(kind)
    assert rmse(unseen(kind), fitted(kind).solver.table(steps, noise)) <= best_peer(kind, steps) / LEAST[kind][steps]


def test_a_fit_to_a_bfloat16_copy_holds_on_the_model_itself():
    solver = fitted_to("flow", torch.bfloat16, (IN_BFLOAT16,), count=96).solver
    error = rmse(unseen("flow"), solver.table(IN_BFLOAT16, FlowNoise()))
    assert error <= 1.05 * best_peer("flow", IN_BFLOAT16) / LEAST["flow"][IN_BFLOAT16]
