"""Fits for the bundled model, held against every classical solver on starts that no fit has seen."""

from __future__ import annotations

import pytest
import torch
from learned_solvers.samplers import FlowNoise, VPNoise
from learned_solvers.training import fit_solver
from learned_solvers.training.demo import GUIDANCE, demo_starts, run_demo
from learned_solvers.training.models.digits import DigitsVPDenoiser, load_digits
from learned_solvers.training.samples import CountedDenoiser, Samples
from learned_solvers.training.scan import candidates, rank, rmse
from learned_solvers.training.teacher import Teacher
from learned_solvers.training.trial import Trial
from PIL import Image

pytestmark = pytest.mark.slow
VP = VPNoise.stable_diffusion()
UNSEEN = 1024  # a few starts rule an error: fewer of them would leave it to chance
STEPS = (3, 5, 7)
IN_BFLOAT16 = (3, 5)  # half precision takes a CPU six times as long; `python -m benchmarks precision` has float16 too
LEAST = {"flow": {3: 1.5, 5: 1.8, 7: 2.0}, "vp": {3: 1.5, 5: 1.8, 7: 2.0}}  # how many times the best peer's error


def model_of(kind, dtype=torch.float32):
    flow = load_digits(dtype=dtype)
    return (flow, FlowNoise()) if kind == "flow" else (DigitsVPDenoiser(flow), VP)


def starts_of(kind, count, seed, dtype=torch.float32):
    x, extra_args = demo_starts(count, seed)
    return (x if kind == "flow" else x * VP.sigma_max).to(dtype), extra_args


@pytest.fixture(scope="module", params=["flow", "vp"])
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


def fitted_to(kind, dtype, steps=STEPS):
    model, noise = model_of(kind, dtype)
    x, extra_args = starts_of(kind, 160, 0, dtype)
    settings = {"teacher": "ipndm", "teacher_steps": 60, "held_out": 32, "extra_args": extra_args}
    return fit_solver(model, x, noise=noise, steps=steps, **settings)


@pytest.fixture(scope="module")
def fitted(kind):
    return fitted_to(kind, torch.float32)


@pytest.fixture(scope="module")
def best_peers(kind, unseen):
    """The least error of every classical solver on every grid, by step count; ranked on 96 starts, the best on all."""
    _, noise = model_of(kind)
    return {
        steps: min(rmse(unseen, c.table) for _, c in rank(unseen.first(96), list(candidates(steps, noise)))[:5])
        for steps in STEPS
    }


@pytest.mark.parametrize("steps", STEPS)
def test_a_fitted_solver_beats_every_classical_one_on_unseen_starts(kind, unseen, fitted, best_peers, steps):
    _, noise = model_of(kind)
    assert rmse(unseen, fitted.solver.table(steps, noise)) <= best_peers[steps] / LEAST[kind][steps]


@pytest.mark.parametrize("kind", ["flow"], indirect=True)
def test_a_fit_to_a_bfloat16_copy_holds_on_the_model_itself(kind, unseen, best_peers):
    _, noise = model_of(kind)
    solver = fitted_to(kind, torch.bfloat16, IN_BFLOAT16).solver
    for steps in IN_BFLOAT16:
        assert rmse(unseen, solver.table(steps, noise)) <= 1.05 * best_peers[steps] / LEAST[kind][steps]


def test_the_demo_writes_a_solver_a_table_and_a_picture(tmp_path):
    said = []
    result = run_demo(tmp_path, say=said.append)
    told = (tmp_path / "demo.md").read_text()
    assert "on 64 held-out starts" in told and "*Before* is what each fit started from (3 calls: " in told
    for steps, report in result.report.items():
        assert f"| {steps} |" in told and f"{steps} calls: {report.start}" in told
        assert report.error_after < report.peers[0].error
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.width > 600 and len(picture.convert("L").getcolors(256) or []) > 20
    with pytest.raises(FileExistsError, match="choose another --output, or add --overwrite"):
        run_demo(tmp_path)
    assert GUIDANCE == 3.0
