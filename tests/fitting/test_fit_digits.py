"""Fits for the bundled model, compared with every classical solver on starts that no fit has seen."""

from __future__ import annotations

import pytest
import torch
from learned_solvers.samplers import FlowNoise, VPNoise
from learned_solvers.training import fit_solver
from learned_solvers.training.data.samples import CountedDenoiser, Samples
from learned_solvers.training.data.teacher import Teacher
from learned_solvers.training.data.trial import Trial
from learned_solvers.training.models.digits import digit_starts, load_digits
from learned_solvers.training.starts.candidates import candidates, rank, rmse

pytestmark = pytest.mark.slow
VP = VPNoise.stable_diffusion()
TEACHER = Teacher("ipndm", 40)
SEEN, HELD_OUT, UNSEEN = 128, 32, 512  # a few starts rule an error: fewer of them would leave it to chance
# By which factor a fitted solver's error must be below the best peer's, by steps.
FACTORS = {"flow": {3: 1.5, 5: 1.8, 7: 2.0}, "vp": {3: 1.5, 5: 1.8}}
IN_BFLOAT16 = 3  # half precision takes a CPU eight times as long; `python -m benchmarks precision` has more


def model_of(kind, dtype=torch.float32):
    """The bundled model, as a flow model or an eps model in VE coordinates: a state / (1 + sigma) is the flow state."""
    flow = load_digits(dtype=dtype)

    def vp(x, sigma, label, guidance):
        return flow((x / (1 + sigma).view(-1, 1, 1, 1)).to(x.dtype), sigma / (1 + sigma), label, guidance)

    return (flow, FlowNoise()) if kind == "flow" else (vp, VP)


def samples_of(kind, count, seed, dtype=torch.float32):
    x, extra_args = digit_starts(count, seed)
    return Samples((x if kind == "flow" else x * VP.sigma_max).to(dtype), extra_args, 256)


def fit_digits(kind, steps, dtype=torch.float32):
    (model, noise), samples = model_of(kind, dtype), samples_of(kind, SEEN + HELD_OUT, 0, dtype)
    return fit_solver(
        model, samples.x, noise=noise, steps=steps, extra_args=samples.extra_args, held_out=HELD_OUT,
        teacher=TEACHER.method, teacher_steps=TEACHER.steps, effort="thorough",
    )  # fmt: skip


@pytest.fixture(scope="module")
def measured():
    """A fit and the ratio of the best peer's error to a solver's on unseen starts, by kind of model."""

    def measure(kind):
        (model, noise), samples = model_of(kind), samples_of(kind, UNSEEN, 99)
        counted = CountedDenoiser(model, torch.float32)
        unseen = Trial(counted, samples, TEACHER.reference(counted, samples, noise), UNSEEN)
        fitted = fit_digits(kind, [*FACTORS[kind]])

        def ratio(steps, solver=fitted.solver):
            order = rank(unseen.first(32), list(candidates(steps, noise)))
            peer = min(rmse(unseen, candidate.table) for _, candidate in order[:5])
            return peer / rmse(unseen, solver.table(steps, noise))

        return ratio

    return {kind: measure(kind) for kind in FACTORS}


@pytest.mark.parametrize(("kind", "steps"), [(kind, steps) for kind, factors in FACTORS.items() for steps in factors])
def test_a_fitted_solver_beats_every_classical_one_on_unseen_starts(measured, kind, steps):
    assert measured[kind](steps) >= FACTORS[kind][steps]


def test_a_fit_to_a_bfloat16_copy_holds_on_the_model_itself(measured):
    solver = fit_digits("flow", (IN_BFLOAT16,), torch.bfloat16).solver
    assert measured["flow"](IN_BFLOAT16, solver) >= FACTORS["flow"][IN_BFLOAT16] / 1.05
