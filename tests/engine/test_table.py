"""The table refuses what is no solver, and knows its own cost and levels."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch
from learned_solvers.samplers import SolverTable
from torch import Tensor


def tensors(**changed: object) -> dict:
    """Returns the arguments of a sound 3-step table, some of them changed."""
    levels = torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    sound = {
        "levels": levels,
        "sigmas": levels[:-1].clone(),
        "scale": torch.ones(3, dtype=torch.float64),
        "coeffs": -torch.eye(3, dtype=torch.float64),
        "entry": "derivative",
    }
    return {**sound, **changed}


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def with_entry(name: str, value: float, *index: int) -> dict:
    changed = tensors()[name].clone()
    changed[index] = value
    return {name: changed}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param({"sigmas": f64()}, "sigmas must have at least one entry", id="no step"),
        pytest.param({"sigmas": torch.tensor(1.0).double()}, "sigmas must have at least one entry", id="sigmas 0-d"),
        pytest.param(
            {"levels": f64(2, 1, 0)}, r"levels must have shape \[4\] beside 3 sigmas, got \[3\]", id="levels short"
        ),
        pytest.param(
            {"levels": f64(4, 3, 2, 1, 0)}, r"levels must have shape \[4\] beside 3 sigmas, got \[5\]", id="levels long"
        ),
        pytest.param(
            {"sigmas": torch.ones(3, 1).double()}, r"sigmas must have shape \[3\] .*got \[3, 1\]", id="sigmas 2-d"
        ),
        pytest.param({"scale": f64(1, 1)}, r"scale must have shape \[3\] beside 3 sigmas, got \[2\]", id="scale short"),
        pytest.param(
            {"coeffs": torch.ones(2, 2).double()},
            r"coeffs must have shape \[3, 3\] beside 3 sigmas, got \[2, 2\]",
            id="coeffs small",
        ),
        pytest.param({"coeffs": f64(1, 1, 1)}, r"coeffs must have shape \[3, 3\] .*got \[3\]", id="coeffs 1-d"),
        pytest.param({"entry": "velocity"}, 'must be "derivative" or "denoised", got \'velocity\'', id="entry"),
        pytest.param(
            {"entry": "denoised", "analytic_first": True},
            'analytic_first needs entry "derivative"',
            id="analytic denoised",
        ),
        pytest.param({"sigmas": f64(3, 2, 0)}, "sigmas must be positive", id="call at 0"),
        pytest.param({"sigmas": f64(3, -2, 1)}, "sigmas must be positive", id="call below 0"),
        pytest.param(with_entry("coeffs", 1e-9, 0, 1), "coeffs must be lower-triangular", id="next entry"),
        pytest.param(with_entry("coeffs", -1.0, 0, 2), "coeffs must be lower-triangular", id="future entry"),
        pytest.param(with_entry("levels", 0.0, 0), "levels must start above 0", id="start at 0"),
        pytest.param(with_entry("levels", -1.0, 0), "levels must start above 0", id="start below 0"),
        pytest.param(with_entry("levels", -1e-9, 3), "end at 0 or above", id="end below 0"),
    ],
)
def test_a_broken_rule_is_refused_with_its_name(changed, message):
    with pytest.raises(ValueError, match=message):
        SolverTable(**tensors(**changed))


@pytest.mark.parametrize("name", ["levels", "sigmas", "scale", "coeffs"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_every_number_must_be_finite(name, value):
    with pytest.raises(ValueError, match=f"{name} must be finite"):
        SolverTable(**tensors(**with_entry(name, value, *[1] * tensors()[name].ndim)))


@pytest.mark.parametrize("name", ["levels", "sigmas", "scale", "coeffs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64])
def test_every_tensor_must_be_float64(name, dtype):
    with pytest.raises(ValueError, match=rf"{name} must be float64 on the CPU, got {dtype} on cpu: .double\(\).cpu\("):
        SolverTable(**tensors(**{name: tensors()[name].to(dtype)}))


@pytest.mark.parametrize("name", ["levels", "sigmas", "scale", "coeffs"])
def test_every_tensor_must_be_on_the_cpu(name):
    with pytest.raises(ValueError, match=f"{name} must be float64 on the CPU, got torch.float64 on meta"):
        SolverTable(**tensors(**{name: tensors()[name].to("meta")}))


def test_a_table_costs_one_call_per_step():
    table = SolverTable(**tensors())
    assert (table.steps, table.nfe) == (3, 3)


def test_an_analytic_first_step_costs_no_call():
    table = SolverTable(**tensors(analytic_first=True))
    assert (table.steps, table.nfe) == (3, 2)


def test_start_and_end_are_the_first_and_last_level():
    table = SolverTable(**tensors(levels=f64(7.5, 2, 1, 0.25)))
    assert (table.sigma_start, table.sigma_end) == (7.5, 0.25)


def test_levels_may_rise_in_between():
    SolverTable(**tensors(levels=f64(3, 4, 1, 0)))


@pytest.mark.parametrize("name", ["levels", "sigmas", "scale", "coeffs"])
def test_a_table_wants_a_gradient_if_one_of_its_tensors_does(name):
    assert SolverTable(**tensors(**{name: tensors()[name].requires_grad_()})).requires_grad


@pytest.mark.filterwarnings("error")
def test_the_levels_of_a_table_with_gradients_are_read_without_a_warning():
    torch.set_warn_always(True)
    try:
        table = SolverTable(**tensors(levels=tensors()["levels"].requires_grad_()))
        assert (table.sigma_start, table.sigma_end) == (3, 0)
    finally:
        torch.set_warn_always(False)


def test_a_plain_table_wants_no_gradient():
    assert not SolverTable(**tensors()).requires_grad


def test_a_table_is_frozen():
    with pytest.raises(FrozenInstanceError):
        SolverTable(**tensors()).scale = torch.zeros(3)
