"""Fits for the bundled model, held against every classical solver on starts that no fit has seen."""

from __future__ import annotations

import pytest
import torch
from learned_solvers.samplers import FlowNoise, VPNoise
from learned_solvers.training import fit_solver
from learned_solvers.training.demo import GUIDANCE, demo_starts, run_demo
from learned_solvers.training.models.digits import DigitsVPDenoiser, load_digits
from learned_solvers.training.objective import make_objective
from learned_solvers.training.problem import Problem
from learned_solvers.training.samples import CountedDenoiser, Samples
from learned_solvers.training.scan import candidates, rank, rmse
from learned_solvers.training.teacher import Teacher
from PIL import Image

pytestmark = pytest.mark.slow
VP = VPNoise.stable_diffusion()
UNSEEN = 256
STEPS = {"flow": (3, 5), "vp": (3,)}


def model_of(kind, dtype=torch.float32):
    flow = load_digits(dtype=dtype)
    return (flow, FlowNoise()) if kind == "flow" else (DigitsVPDenoiser(flow), VP)


def starts_of(kind, count, seed):
    x, extra_args = demo_starts(count, seed)
    return (x if kind == "flow" else x * VP.sigma_max), extra_args


@pytest.fixture(scope="module", params=["flow", "vp"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def unseen(kind):
    """The float32 model, the teacher's ends, on starts and labels that no fit has seen."""
    model, noise = model_of(kind)
    x, extra_args = starts_of(kind, UNSEEN, seed=99)
    counted, samples = CountedDenoiser(model, torch.float32), Samples(x, extra_args, UNSEEN)
    reference = Teacher("heun", 60).reference(counted, samples, noise)
    return Problem(counted, None, samples, reference, make_objective("l2"), UNSEEN)


@pytest.fixture(scope="module")
def fitted(kind):
    model, noise = model_of(kind)
    x, extra_args = starts_of(kind, 128, seed=0)
    return fit_solver(model, x, noise=noise, steps=STEPS[kind], held_out=64, extra_args=extra_args)


@pytest.fixture(scope="module")
def best_peers(kind, unseen):
    _, noise = model_of(kind)
    return {steps: rank(unseen, list(candidates(steps, noise)))[0] for steps in STEPS[kind]}


def test_a_fitted_solver_beats_every_classical_one_on_unseen_starts(kind, unseen, fitted, best_peers):
    _, noise = model_of(kind)
    for steps in STEPS[kind]:
        ours, (peer, _) = rmse(unseen, fitted.solver.table(steps, noise)), best_peers[steps]
        least = {3: 1.5, 5: 1.8}[steps] if kind == "flow" else 1.0
        assert ours <= peer / least, f"{steps} steps: {ours:.4f} against {peer:.4f}"


def test_the_demo_writes_a_solver_a_table_and_a_picture(tmp_path):
    said = []
    result = run_demo(tmp_path, say=said.append)
    for steps, report in result.report.items():
        assert f"| {steps} |" in (tmp_path / "demo.md").read_text()
        assert report.error_after < report.peers[0].error
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.width > 600 and len(picture.convert("L").getcolors(256) or []) > 20
    with pytest.raises(FileExistsError, match="choose another --output, or add --overwrite"):
        run_demo(tmp_path)
    assert GUIDANCE == 3.0
