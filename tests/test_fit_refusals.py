"""What fit_solver refuses, and in which words."""

from __future__ import annotations

import pytest
import torch
from learned_solvers.samplers import FlowNoise
from learned_solvers.training import fit_solver
from oracles import curved
from torch import Tensor

FLOW = FlowNoise()


def starts() -> Tensor:
    return torch.randn(24, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


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
        ({"initial": "dpmpp_2m, shift 1", "family": "ds", "steps": (1,)}, "cannot start from 'dpmpp_2m, shift 1'"),
        ({"initial": "dyweight_sd15"}, "is a dyweight solver for vp models: start a dyweight fit on flow noise"),
        (
            {"initial": "heun", "steps": (4,)},
            "a dyweight fit of 4 steps cannot start from 'heun': name scan, or one of",
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
    ],
)
def test_a_setting_of_another_kind_is_refused(changed, error, message):
    settings = {"x": starts(), "noise": FLOW, "steps": (3,), "teacher_steps": 5, **changed}
    with pytest.raises(error, match=message):
        fit_solver(curved, settings.pop("x"), **settings)
