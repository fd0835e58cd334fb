"""The table: validation, number of calls, noise levels."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from learned_solvers.samplers import SolverTable
from oracles import f64

LEVELS = f64(3, 2, 1, 0)
TENSORS = {"levels": LEVELS, "sigmas": LEVELS[:-1], "scale": f64(1, 1, 1), "coeffs": -torch.eye(3).double()}


def table(**changes: object) -> SolverTable:
    """A valid table of three steps with some fields changed."""
    return SolverTable(**{**TENSORS, "entry": "derivative", **changes})


def with_number(name: str, value: float, *index: int) -> dict:
    changed = TENSORS[name].clone()
    changed[index] = value
    return {name: changed}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigmas": f64()}, "sigmas must have at least one entry"),
        ({"sigmas": torch.tensor(1.0).double()}, "sigmas must have at least one entry"),
        ({"levels": f64(2, 1, 0)}, r"levels must have shape \[4\] .*got \[3\]"),
        ({"sigmas": torch.ones(3, 1).double()}, r"sigmas must have shape \[3\] .*got \[3, 1\]"),
        ({"scale": f64(1, 1)}, r"scale must have shape \[3\] .*got \[2\]"),
        ({"coeffs": torch.ones(2, 2).double()}, r"coeffs must have shape \[3, 3\] .*got \[2, 2\]"),
        ({"entry": "velocity"}, 'must be "derivative" or "denoised", got \'velocity\''),
        ({"entry": "denoised", "analytic_first": True}, 'analytic_first needs entry "derivative"'),
        ({"sigmas": f64(3, 2, 0)}, "sigmas must be positive"),
        (with_number("coeffs", 1e-9, 0, 1), "coeffs must be lower-triangular"),
        (with_number("levels", 0.0, 0), "levels must start above 0"),
        (with_number("levels", -1e-9, 3), "end at 0 or above"),
    ],
)
def test_an_invalid_table_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        table(**changes)


@pytest.mark.parametrize("name", TENSORS)
def test_every_tensor_must_be_finite_in_float64_on_the_cpu_and_may_have_gradients(name):
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=f"{name} must be finite"):
            table(**with_number(name, value, *[1] * TENSORS[name].ndim))
    for conversion in (torch.float32, "meta"):
        with pytest.raises(ValueError, match=f"{name} must be float64 on the CPU, got torch.float.* on "):
            table(**{name: TENSORS[name].to(conversion)})
    assert table(**{name: TENSORS[name].clone().requires_grad_()}).requires_grad and not table().requires_grad


def test_a_table_is_frozen_its_steps_are_calls_unless_analytic_and_levels_between_the_ends_may_rise():
    rising = table(levels=f64(3, 4, 1, 0.25))
    assert (rising.sigma_start, rising.sigma_end) == (3, 0.25)
    assert (table().steps, table().nfe) == (3, 3)
    assert (table(analytic_first=True).steps, table(analytic_first=True).nfe) == (3, 2)
    with pytest.raises(FrozenInstanceError):
        table().scale = torch.zeros(3)
