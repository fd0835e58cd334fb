"""What fit_solver refuses, and in which words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from learned_solvers.samplers import EDMNoise, FlowNoise, Solver, VPNoise
from learned_solvers.training import GradientDescent, fit_solver
from oracles import curved, dyweight_solver
from torch import Tensor

FLOW = FlowNoise()


def starts() -> Tensor:
    return torch.randn(24, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def rising() -> Solver:
    """Returns a DyWeight solver whose second level lies above its first step's end."""
    sound = dyweight_solver(4, name="rising", prediction="flow")
    weights = sound.parameters[4]["weights"].clone()
    weights[1] *= -0.1
    card = replace(sound.card, steps={4: replace(sound.card.steps[4], divisor="call")})
    return replace(sound, card=card, parameters={4: {**sound.parameters[4], "weights": weights}})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"family": "epd"}, "family must be dyweight or ds"),
        ({"teacher": "unipc"}, "teacher must be one of euler, heun, dpmpp_2m, ipndm"),
        ({"optimizer": "sgd"}, "optimizer must be gauss-newton"),
        ({"loss": "lpips"}, "loss must be one of l2, l1, huber, trajectory"),
        ({"held_out": 24}, "held_out must leave samples on both sides of 24"),
        (
            {"extra_args": {"shift": torch.zeros(4)}},
            r"extra_args\['shift'\] must have a row per start, 24, or one for all, got 4: repeat its rows, or bind",
        ),
        (
            {"extra_args": {"shift": [0.0] * 18}},
            "a row per start, 24, or one for all, got 18",
        ),  # as many as are fitted to
        ({"steps": ()}, "steps must be counts from 1 to 100"),
        ({"steps": (3, 20_000)}, r"steps must be counts from 1 to 100, got \[3, 20000\]"),
        ({"history": 0}, "history and microbatch must be at least 1, got 0 and None"),
        ({"microbatch": -1}, "history and microbatch must be at least 1, got 3 and -1"),
        ({"family": "ds", "learn_grid": True}, "no grid to learn"),
        ({"initial": "no_such"}, r"cannot start from 'no_such': name scan, a classical solver \(euler, .*ipndm 3"),
        ({"initial": "karras 7, simple"}, "cannot start from 'karras 7, simple'"),
        ({"family": "ds", "steps": (3, 1)}, "a DS solver of one step has nothing to learn: fit dyweight instead"),
        ({"initial": "dyweight_sd15"}, "is a dyweight solver for vp models: start a dyweight fit on flow noise"),
        (
            {"initial": "heun", "steps": (4,)},
            "a dyweight fit of 4 steps cannot start from 'heun': name scan, a classical solver",
        ),
    ],
)
def test_a_setting_that_breaks_a_rule_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        fit_solver(curved, starts(), **{"noise": FLOW, "steps": (3,), "teacher_steps": 5, **changed})


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"steps": 3}, TypeError, r"steps must be a list of step counts, such as \(4, 6\), got 3"),
        ({"steps": (3.0,)}, TypeError, "steps must be a list of step counts"),
        ({"steps": (True,)}, TypeError, "steps must be a list of step counts"),
        ({"noise": "flow"}, TypeError, r"noise must be FlowNoise\(\), VPNoise or EDMNoise, got str"),
        ({"x": [1.0]}, TypeError, "x must be a tensor of floating-point numbers, a start per row, got list"),
        ({"x": torch.ones(24, 6, dtype=torch.long)}, TypeError, "a start per row, got torch.int64"),
        ({"x": torch.full((24, 6), torch.nan)}, ValueError, r"x must hold finite numbers, .* got shape \[24, 6\]"),
        ({"x": torch.ones(24)}, ValueError, r"a start per row, got shape \[24\]"),
        ({"x": starts(), "noise": EDMNoise()}, ValueError, "of standard deviation 80, got .*: multiply unit noise by"),
        ({"x": starts() * 80, "noise": EDMNoise(0.002, 0.5)}, ValueError, "of standard deviation 0.5, got"),
        ({"extra_args": {1: 2}}, TypeError, "extra_args must map the model's argument names to values, got {1: 2}"),
        ({"card": ["a"]}, TypeError, r"card must map entries to texts, got \['a'\]"),
        ({"teacher_steps": "30"}, TypeError, "teacher_steps must be a whole number, got '30'"),
        ({"history": 1.5}, TypeError, "history must be a whole number, got 1.5"),
        ({"held_out": 0.25}, TypeError, "held_out must be a whole number, got 0.25"),
        ({"microbatch": True}, TypeError, "microbatch must be a whole number, got True"),
        ({"seed": "a"}, TypeError, "seed must be a whole number, got 'a'"),
        ({"extra_args": [1]}, TypeError, "extra_args must map the model's argument names to values, got \\[1\\]"),
        ({"card": {"author": "me"}}, ValueError, "card has no entry author: take some of model_family, checkpoint"),
        ({"card": {"guidance": 5}}, ValueError, "guidance must be text of at most 2000 characters .* got '5'"),
        ({"journal": Path(__file__).parent}, ValueError, "journal must be a file to keep the fit in, got the folder"),
    ],
)
def test_a_setting_of_another_kind_is_refused(changed, error, message):
    settings = {"x": starts(), "noise": FLOW, "steps": (3,), "teacher_steps": 5, **changed}
    with pytest.raises(error, match=message):
        fit_solver(curved, settings.pop("x"), **settings)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"family": "dyw"}, "family must be dyweight or ds"),
        ({"family": "ds", "learn_grid": True}, "no grid to learn"),
        ({"family": "ds", "noise": EDMNoise(), "x": 80 * starts()}, "DS-Solver is defined on flow and vp noise"),
        ({"card": {"author": "me"}}, "card has no entry author"),
        ({"card": {"checkpoint": ""}}, "a card must say its checkpoint, got an empty text: write"),
        ({"card": {"transferable": "yes"}}, "transferable must be true or false, got 'yes'"),
        ({"initial": "ipndm 4", "steps": (3, 5)}, "a dyweight fit of 3 steps cannot start from 'ipndm 4'"),
        ({"initial": "dyweight_flux1-dev"}, "latent tokens"),
        ({"initial": "dyweight_flux1-dev", "noise": FlowNoise(256), "learn_grid": True}, "flux_shift"),
        ({"initial": rising(), "steps": (4,)}, "rising in 4 steps has levels that do not descend: start from a scan"),
        ({"optimizer": None}, "optimizer must be gauss-newton, adam, adamw, lion, got None"),
    ],
)
def test_what_no_family_has_is_refused_before_a_network_call(changed, message):
    def never(x, sigma):
        raise AssertionError("the model was called")

    settings = {"x": starts(), "noise": FLOW, "steps": (3,), "teacher_steps": 5, **changed}
    with pytest.raises(ValueError, match=message):
        fit_solver(never, settings.pop("x"), **settings)


@pytest.mark.parametrize(
    ("noise", "scale"), [(FLOW, 8.0), (EDMNoise(0.002, 0.5), 1.118), (VPNoise.stable_diffusion(), 14.6)]
)
def test_starts_of_a_scale_that_hosts_make_are_taken(noise, scale):
    """HiDream's noise has a scale of 8; ComfyUI starts EDM models at sqrt(1 + sigma^2)."""
    result = fit_solver(curved, scale * starts(), noise=noise, steps=(2,), teacher_steps=5)
    assert result.report[2].network_calls > 0


def test_numpys_whole_numbers_are_whole_numbers():
    counts = {name: np.int64(n) for name, n in (("history", 2), ("teacher_steps", 5), ("held_out", 6), ("seed", 1))}
    ours = fit_solver(curved, starts(), noise=FLOW, steps=(np.int64(2),), microbatch=np.int32(24), **counts)
    same = fit_solver(curved, starts(), noise=FLOW, steps=(2,), history=2, teacher_steps=5, held_out=6, microbatch=24)
    assert ours.report[2].error_after == same.report[2].error_after
    assert ours.solver.card.steps[2].history == 2


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda x, sigma: (x,), TypeError, r"denoised states of the shape of its x, \[\d+, 6\], got tuple"),
        (lambda x, sigma: x[:, :3], TypeError, r"the shape of its x, \[\d+, 6\], got shape \[\d+, 3\]"),
        (lambda x, sigma: x, ValueError, "no coefficient changes where the model's samples end"),
    ],
)
def test_a_model_that_is_no_denoiser_is_refused(model, error, message):
    with pytest.raises(error, match=message):
        fit_solver(model, starts(), noise=FLOW, steps=(3,), teacher_steps=5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer must be one of adam, adamw, lion, got 'sgd'"),
        ({"batch": 0}, "batch and epochs must be at least 1, rate above 0 and warm_up from 0 to below 1, got 0, 1"),
        ({"rate": float("nan")}, "rate above 0"),
        ({"warm_up": 1.0}, "warm_up from 0 to below 1"),
    ],
)
def test_settings_of_gradient_descent_that_cannot_be_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        GradientDescent(**changed)
