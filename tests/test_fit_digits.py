"""Fits for the bundled model, held against every classical solver on starts that no fit has seen."""

from __future__ import annotations

import pytest
import torch
from learned_solvers.samplers import FlowNoise, VPNoise
from learned_solvers.training import fit_solver
from learned_solvers.training.demo import demo_starts
from learned_solvers.training.models.digits import DigitsVPDenoiser, load_digits
from learned_solvers.training.samples import CountedDenoiser, Samples
from learned_solvers.training.scan import candidates, rank, rmse
from learned_solvers.training.teacher import Teacher
from learned_solvers.training.trial import Trial

pytestmark = pytest.mark.slow
VP = VPNoise.stable_diffusion()
UNSEEN = 512  # a few starts rule an error: fewer of them would leave it to chance
IN_BFLOAT16 = 3  # half precision takes a CPU six times as long; `python -m benchmarks precision` has more
LEAST = {"flow": {3: 1.5, 5: 1.8, 7: 2.0}, "vp": {3: 1.5, 5: 1.8}}  # steps: how many times the best peer's error
POINTS = [(kind, steps) for kind, least in LEAST.items() for steps in least]


def model_of(kind, dtype=torch.float32):
    flow = load_digits(dtype=dtype)
    return (flow, FlowNoise()) if kind == "flow" else (DigitsVPDenoiser(flow), VP)


def starts_of(kind, count, seed, dtype=torch.float32):
    x, extra_args = demo_starts(count, seed)
    return (x if kind == "flow" else x * VP.sigma_max).to(dtype), extra_args


@pytest.fixture(scope="module", params=[*LEAST])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def fitted(kind):
    return fitted_to(kind, torch.float32, [*LEAST[kind]])


@pytest.fixture(scope="module")
def best_peers(kind, unseen):
    """The least error of every classical solver on every grid, by step count; ranked on 32 starts, the best on all."""
    _, noise = model_of(kind)
    return {
        steps: min(rmse(unseen, c.table) for _, c in rank(unseen.first(32), list(candidates(steps, noise)))[:5])
        for steps in LEAST[kind]
    }


@pytest.mark.parametrize(("kind", "steps"), POINTS, indirect=["kind"])
def test_a_fitted_solver_beats_every_classical_one_on_unseen_starts(kind, unseen, fitted, best_peers, steps):
    _, noise = model_of(kind)
    assert rmse(unseen, fitted.solver.table(steps, noise)) <= best_peers[steps] / LEAST[kind][steps]


@pytest.mark.parametrize("kind", ["flow"], indirect=True)
def test_a_fit_to_a_bfloat16_copy_holds_on_the_model_itself(kind, unseen, best_peers):
    _, noise = model_of(kind)
    solver = fitted_to(kind, torch.bfloat16, (IN_BFLOAT16,), count=96).solver
    assert rmse(unseen, solver.table(IN_BFLOAT16, noise)) <= 1.05 * best_peers[IN_BFLOAT16] / LEAST[kind][IN_BFLOAT16]
