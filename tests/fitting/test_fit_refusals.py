"""What fit_solver refuses, before the model is called where it can."""

from __future__ import annotations

from dataclasses import replace
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
from fits import FLOW, VP, quick_fit, starts
from learned_solvers.samplers import EDMNoise, Guidance, Solver, euler
from learned_solvers.training import FitSettings, GradientDescent, LevenbergMarquardt, fit_solver
from learned_solvers.training.optimise.losses import LOSSES
from oracles import curved, dyweight_solver

COUNTS = ("steps", "teacher_steps", "history", "held_out", "microbatch", "seed")
ARGUMENTS = [name for name in signature(fit_solver).parameters if name not in ("model", "noise")]


def rising_solver() -> Solver:
    """A DyWeight solver whose second level lies above its first step's end."""
    solver = dyweight_solver(4, name="rising", prediction="flow")
    weights = solver.parameters[4]["weights"].clone()
    weights[:, 1] *= -0.1
    card = replace(solver.card, steps={4: replace(solver.card.steps[4], options={"divisor": "call"})})
    return replace(solver, card=card, parameters={4: {**solver.parameters[4], "weights": weights}})


def mean_of_rows(model, x, extra_args):
    return x.mean(1)


def never(x, sigma, **extra_args):
    raise AssertionError("the model was called")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"family": "epd"}, "family must be one of dyweight, ds, got 'epd'"),
        ({"teacher": "unipc"}, "teacher must be one of ode, euler, heun, dpmpp_2m, ipndm"),
        ({"teacher_steps": 1}, "a teacher needs at least 2 steps, got 1"),
        ({"optimizer": "sgd"}, "optimizer must be one of gauss-newton, adam, adamw, lion, got 'sgd'"),
        ({"loss": "lpips"}, f"loss must be one of {', '.join(LOSSES)} or"),
        ({"held_out": 24}, r"held_out must be between 1 and 23 \(24 samples given\), got 24"),
        ({"steps": ()}, "steps must be between 1 and 100"),
        ({"guidance": (1.0, 3.0)}, "several guidance values need guidance_argument"),
        ({"teacher": euler(VP.teacher_grid(20))}, r"table starts at noise level 14\.61, this flow model at 1:"),
        ({"teacher": mean_of_rows, "cache": "absent"}, "cannot tell the function mean_of_rows from others"),
        ({"teacher": "euler", "teacher_steps": 3}, r"the teacher makes 3 model calls \(euler, 3 steps\), but must"),
        ({"steps": (3, 101)}, r"steps must be between 1 and 100, got \[3, 101\]"),
        ({"history": 0}, "history must be at least 1, got 0"),
        ({"microbatch": -1}, "microbatch must be at least 1, got -1"),
        ({"x": torch.ones(24, 6, dtype=torch.long)}, "finite floating-point numbers, .* got torch.int64 of shape"),
        ({"x": torch.full((24, 6), torch.nan)}, r"finite floating-point numbers, .* of shape \[24, 6\]"),
        ({"x": torch.ones(24)}, r"one start per row, .* of shape \[24\]"),
        ({"noise": EDMNoise()}, "of standard deviation 80, got .*: multiply unit noise by"),
        ({"x": 80 * starts(count=24), "noise": EDMNoise(0.002, 0.5)}, "of standard deviation 0.5, got"),
        (
            {"extra_args": {"shift": torch.zeros(4)}},
            r"extra_args\['shift'\] must have one row per start \(24\) .*got 4:",
        ),
        ({"extra_args": {"shift": [0.0] * 18}}, "got 18"),  # as many as are fitted
        ({"family": "ds", "steps": (3, 1)}, "a DS solver of one step has nothing to learn: fit dyweight instead"),
        (
            {"family": "ds", "noise": EDMNoise(), "x": 80 * starts(count=24)},
            "DS-Solver is defined on flow and vp noise",
        ),
        ({"card": {"author": "me"}}, "card has no entry author: choose from architecture, checkpoint, guidance"),
        ({"card": {"checkpoint": ""}}, "checkpoint must not be empty"),
        ({"card": {"guidance": "5"}}, "guidance must be a Guidance, got '5'"),
        ({"initial": "no_such"}, r"cannot start from 'no_such': choose path, a classical solver \(euler, .*ipndm 3"),
        ({"initial": "karras 7, simple"}, "cannot start from 'karras 7, simple'"),
        ({"initial": "heun", "steps": (4,)}, "a dyweight fit of 4 steps cannot start from 'heun'"),
        ({"initial": "ipndm 4", "steps": (3, 5)}, "a dyweight fit of 3 steps cannot start from 'ipndm 4'"),
        ({"initial": "dyweight_sd15"}, "is a dyweight solver for vp models: start a dyweight fit on flow noise"),
        ({"initial": "dyweight_flux1-dev"}, "latent tokens"),
        ({"initial": rising_solver(), "steps": (4,)}, "rising in 4 steps has levels that do not descend"),
        ({"journal": Path(__file__).parent}, "journal must be a file, got the folder"),
        *(({name: 1.5}, f"^{name} must be a whole number, got 1.5 [(]float[)]$") for name in COUNTS),
        *(({name: object()}, f"^{name} must be .+, got <object .+[(]object[)]$") for name in ARGUMENTS),
        ({"steps": "6"}, "^steps must be a whole number, got '6'"),
        ({"guidance": (1.0, "3"), "guidance_argument": "g"}, "^guidance must be a number, got '3'"),
        ({"guidance": torch.ones(1, 2)}, "^guidance must be a number, got tensor"),
        ({"noise": "flow"}, "noise must be"),
    ],
)
def test_an_invalid_setting_is_refused_before_a_network_call(changed, message):
    with pytest.raises((TypeError, ValueError), match=message):
        quick_fit(never, **changed)


@pytest.mark.parametrize(("noise", "scale"), [(FLOW, 8.0), (EDMNoise(0.002, 0.5), 1.118), (VP, 14.6)])
def test_starts_of_a_scale_that_hosts_make_are_accepted(noise, scale):
    """HiDream's noise has a scale of 8; ComfyUI starts EDM models at sqrt(1 + sigma^2)."""
    assert quick_fit(curved, scale * starts(count=24), noise=noise, steps=(2,)).report[2].network_calls > 0


def test_numbers_of_numpy_and_torch_are_accepted():
    counts = {"history": 2, "teacher_steps": 5, "held_out": 6, "microbatch": 24, "seed": 1}
    plain = quick_fit(steps=(2,), **counts)
    for steps in (np.int64(2), (np.int64(2),), np.array([2]), torch.tensor(2)):
        result = quick_fit(steps=steps, **{name: np.int64(n) for name, n in counts.items()})
        assert result.report[2].error_after == plain.report[2].error_after
    assert result.solver.card.steps[2].history == 2
    result = quick_fit(steps=2, guidance=torch.tensor([1.0]), **counts)
    assert result.solver.card.guidance == Guidance("cfg", (1.0,))


def test_step_counts_are_sorted_and_unique_and_have_one_default():
    assert FitSettings(steps=(8, 4, 8)).steps == (4, 8)
    assert FitSettings().steps == signature(fit_solver).parameters["steps"].default == (4, 6, 8)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda x, sigma: (x,), TypeError, r"denoised states in the shape of x, \[\d+, 6\], got tuple"),
        (lambda x, sigma: x[:, :3], TypeError, r"the shape of x, \[\d+, 6\], got shape \[\d+, 3\]"),
        (lambda x, sigma: x, ValueError, "no coefficient changes the model's end states"),
    ],
)
def test_a_model_that_is_no_denoiser_is_refused(model, error, message):
    with pytest.raises(error, match=message):
        quick_fit(model)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer must be one of adam, adamw, lion, got 'sgd'"),
        ({"batch": 0}, "batch and epochs must be at least 1, rate above 0 and warm_up in \\[0, 1\\), got 0, 1"),
        ({"epochs": 0}, "got 16, 0"),
        ({"rate": float("nan")}, "rate above 0"),
        ({"warm_up": 1.0}, r"warm_up in \[0, 1\)"),
    ],
)
def test_invalid_settings_of_gradient_descent_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        GradientDescent(**changed)


def nans(model, x, extra_args):
    return x.masked_fill(x == x[0], torch.nan)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"teacher": nans}, ValueError, "the teacher nans ends in states that are not finite for 1 of"),
        ({"loss": lambda x: x > 0}, TypeError, r"loss function must return floating-point features, .* torch.bool"),
        ({"loss": lambda x: x[:1]}, ValueError, "the loss function must return a row per state, 8, got 1"),
        ({"loss": lambda x: x / 0 * 0}, ValueError, "features of the teacher's end states are not finite"),
    ],
)
def test_wrong_results_of_a_users_function_are_refused_by_its_name(changed, error, message):
    with pytest.raises(error, match=message):
        quick_fit(curved, **changed)


@pytest.mark.parametrize("name", ["work", "outlier", "damping", "difference"])
def test_settings_of_levenberg_marquardt_are_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be a positive number, got 0"):
        LevenbergMarquardt(**{name: 0.0})
