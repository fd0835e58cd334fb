"""The loop: calls, callback, dtypes, continued runs, memory and gradients."""

from __future__ import annotations

import gc

import pytest
import torch
from learned_solvers.samplers import SolverTable, VPNoise, adams_bashforth, dpmpp_2m, euler, ipndm, sample_table
from learned_solvers.samplers.families.ds import ds_flow_table, ds_vp_table
from learned_solvers.samplers.families.dyweight import dyweight_table
from oracles import GaussianVE, Recorder, Steps, f64, mixture, run, start
from torch import Tensor
from torch.testing import assert_close

LEVELS = f64(10, 6, 3, 1.5, 0.5, 0.1)
IPNDM_2 = torch.tensor([[1.0, 0, 0, 0, 0]] + [[0.0] * i + [-0.5, 1.5] + [0.0] * (3 - i) for i in range(4)])
T_SCALE = f64(0.9, 1.1, 0.95, 1.05, 1.2)
TABLES = {
    "euler": euler(LEVELS),
    "adams_bashforth": adams_bashforth(LEVELS, 3),
    "dpmpp_2m": dpmpp_2m(LEVELS),
    "scaled_calls": dyweight_table(IPNDM_2, T_SCALE, LEVELS),
    "analytic": dyweight_table(IPNDM_2, T_SCALE[1:], LEVELS, analytic_first=True),
}
each_table = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)


def by_hand(model, x: Tensor, table: SolverTable) -> Tensor:
    """All states of the table's defining formula, by matrices instead of the loop's bookkeeping."""
    states, history = [x], []
    for i in range(table.steps):
        x = states[-1]
        if i == 0 and table.analytic_first:
            history.append(x / (1 + table.levels[0] ** 2).sqrt())
        else:
            denoised = model(x, table.sigmas[i].expand(x.shape[0]))
            history.append(denoised if table.entry == "denoised" else (x - denoised) / table.sigmas[i])
        states.append(table.scale[i] * x + torch.tensordot(table.coeffs[i, : i + 1], torch.stack(history), 1))
    return torch.stack(states)


@each_table
def test_every_state_follows_the_tables_formula(table):
    x, steps = start(10.0, 2, 3, 4), Steps()
    result = sample_table(GaussianVE(), x, table, callback=steps, disable=True)
    assert_close(steps.trajectory(result), by_hand(GaussianVE(), start(10.0, 2, 3, 4), table), rtol=1e-12, atol=1e-12)
    assert_close(x, start(10.0, 2, 3, 4), rtol=0, atol=0)  # the start is not modified


@each_table
def test_the_model_and_the_callback_see_every_step(table):
    steps, recorder = Steps(), Recorder(GaussianVE())
    sample_table(recorder, start(10.0, 3, 2), table, callback=steps, disable=True)
    first = int(table.analytic_first)
    assert len(recorder.sigma) == table.nfe
    assert_close(recorder.sigmas, table.sigmas[first:, None].expand(-1, 3), rtol=0, atol=0)
    assert [set(call) for call in steps.calls] == [{"x", "i", "sigma", "sigma_hat", "denoised"}] * table.steps
    assert [call["i"] for call in steps.calls] == list(range(table.steps))
    for key in ("sigma", "sigma_hat"):
        assert_close(torch.stack([call[key] for call in steps.calls]), table.sigmas)
    if table.analytic_first:
        assert_close(steps.calls[0]["denoised"], start(10.0, 3, 2) * (1 - 10 / 101**0.5))
    calls = steps.calls[first:]
    assert_close([call["x"] for call in calls], recorder.x, rtol=0, atol=0)
    assert_close([call["denoised"] for call in calls], list(map(GaussianVE(), recorder.x, recorder.sigma)))


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)],
)
@each_table
def test_the_model_and_the_result_have_the_states_dtype(dtype, tolerance, table):
    wide = torch.promote_types(dtype, torch.float32)
    x, recorder, steps = start(10.0, 2, 3, 4).to(dtype), Recorder(GaussianVE()), Steps()
    result = sample_table(recorder, x, table, callback=steps, disable=True)
    assert (result.dtype, {x.dtype for x in recorder.x}) == (dtype, {dtype})
    assert {sigma.dtype for sigma in recorder.sigma} == {wide}
    assert {call[key].dtype for call in steps.calls for key in ("x", "sigma", "denoised")} == {wide}
    assert_close(result.double(), run(GaussianVE(), x.double(), table), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_states_are_combined_in_float32_although_the_model_returns_float64(dtype):
    x = start(10.0).to(dtype)
    table = ipndm(torch.linspace(10, 0.1, 41, dtype=torch.float64), 4)
    result = run(lambda x, sigma: GaussianVE()(x.double(), sigma.double()), x, table)
    reference = run(lambda x, sigma: GaussianVE()(x.to(dtype).double(), sigma), x.double(), table)
    assert_close(result, reference.to(dtype), rtol=max(torch.finfo(dtype).eps, 1e-6), atol=1e-6)


@pytest.mark.parametrize("x", [torch.ones(2, 3, dtype=torch.int64), torch.ones(2, dtype=torch.bool), torch.tensor(1.0)])
def test_a_state_that_is_not_floating_point_or_has_no_batch_is_refused(x):
    with pytest.raises(ValueError, match=r"x must be a floating-point state \[B, ...\], got torch\.\w+ of shape \["):
        run(GaussianVE(), x, euler(LEVELS))


@pytest.mark.parametrize("known", [0, 1], ids=["", "its entry known"])
@pytest.mark.parametrize("first", [0, 1, 4])
@each_table
def test_a_run_continues_from_any_step_and_does_not_repeat_a_known_call(first, known, table):
    steps, later, recorder = Steps(), Steps(), Recorder(GaussianVE())
    whole = sample_table(GaussianVE(), start(10.0), table, callback=steps, disable=True)
    history = {
        i: (call["x"] - call["denoised"]) / call["sigma"] if table.entry == "derivative" else call["denoised"]
        for i, call in enumerate(steps.calls[: first + known])
    }
    x = steps.calls[first]["x"]
    result = sample_table(recorder, x, table, callback=later, disable=True, start=first, history=history)
    assert_close(result, whole)
    assert [call["i"] for call in later.calls] == list(range(first + known, 5))
    assert len(recorder.sigma) == len(later.calls) - (table.analytic_first and first + known == 0)
    assert set(history) == set(range(first + known))  # not modified


UNUSUAL = (2, 3, 5, 7)  # a shape that no other tensor has


def banded(window: int, entry: str) -> SolverTable:
    """Ten steps, each of which uses the newest `window` entries."""
    n = 10
    levels = torch.linspace(5, 0, n + 1, dtype=torch.float64)
    ones = torch.ones(n, n, dtype=torch.float64).tril().triu(1 - window)
    return SolverTable(levels, levels[:-1], torch.full((n,), 2.0).double(), -0.01 * ones, entry)


def most_states_alive(table: SolverTable) -> int:
    """The largest number of tensors of the state's shape during a model call."""
    counts = []

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        counts.append(sum(type(item) is Tensor and item.shape == UNUSUAL for item in gc.get_objects()))
        return x * 0.5

    gc.freeze()  # excludes existing objects from counting and from traversal
    try:
        run(model, start(10.0, *UNUSUAL), table)
    finally:
        gc.unfreeze()
    return max(counts)


@pytest.mark.parametrize("entry", ["derivative", "denoised"])
@pytest.mark.parametrize("window", [2, 5, 10])
def test_only_entries_that_a_later_row_uses_are_kept(window, entry):
    alone = most_states_alive(banded(1, entry))
    assert alone <= 4  # the caller's state, the loop's, and two of the last step
    assert most_states_alive(banded(window, entry)) <= alone + window - 1


def test_an_entry_lives_until_its_last_use():
    late, unused = banded(1, "denoised"), banded(1, "derivative")
    late.coeffs[9, 0] = -0.01
    unused.coeffs[:, :9] = 0
    for table in (late, unused):
        assert_close(run(GaussianVE(), start(), table), by_hand(GaussianVE(), start(), table)[-1])
    assert most_states_alive(unused) <= most_states_alive(banded(1, "derivative"))


def parameter(*shape: int, low: float, high: float) -> Tensor:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (low + (high - low) * values).requires_grad_()


@pytest.mark.parametrize("divisor", ["state", "call"])
@pytest.mark.parametrize("analytic_first", [False, True])
def test_gradients_reach_every_dyweight_parameter_and_the_grid(divisor, analytic_first):
    def result(weights: Tensor, t_scale: Tensor, grid: Tensor) -> Tensor:
        weights = (weights + torch.eye(3, dtype=torch.float64)).tril()
        table = dyweight_table(weights, t_scale, grid, analytic_first=analytic_first, divisor=divisor)
        return run(mixture(), start(3.0, 1, 3), table)

    weights, t_scale = parameter(3, 3, low=-0.2, high=0.2), parameter(3 - analytic_first, low=0.9, high=1.1)
    grid = f64(3, 1.5, 0.6, 0.1).requires_grad_(not analytic_first)
    assert torch.autograd.gradcheck(result, (weights, t_scale, grid))
    result(weights, t_scale, grid).square().sum().backward()
    assert bool((weights.grad[torch.ones(3, 3).tril().bool()] != 0).all())
    assert bool((t_scale.grad != 0).all())


@pytest.mark.parametrize("kind", ["flow", "vp", "vp table"])
def test_gradients_reach_every_ds_parameter(kind):
    schedule = VPNoise.stable_diffusion() if kind == "vp table" else VPNoise.linear_beta()

    def result(timedeltas: Tensor, coeffs: Tensor) -> Tensor:
        coeffs = coeffs.tril(-1)
        table = ds_flow_table(timedeltas, coeffs) if kind == "flow" else ds_vp_table(timedeltas, coeffs, schedule)
        return run(mixture(flow=kind == "flow"), start(table.sigma_start, 1, 3), table)

    timedeltas = f64(0.3004, 0.4003, 0.2993).requires_grad_()  # off the kinks of the model's table
    coeffs = parameter(3, 3, low=-0.3, high=0.3)
    assert torch.autograd.gradcheck(result, (timedeltas, coeffs))
    result(timedeltas, coeffs).square().sum().backward()
    # On VP models the last step ends at the last time, regardless of its delta.
    assert bool((timedeltas.grad[: 3 if kind == "flow" else 2] != 0).all())
    assert bool((coeffs.grad[torch.ones(3, 3).tril(-1).bool()] != 0).all())


@each_table
def test_gradients_reach_the_start_and_a_table_with_gradients_gives_the_same_samples(table):
    x = start(10.0, 1, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: run(mixture(), x, table), x)
    learned = (t.clone().requires_grad_() for t in (table.sigmas, table.scale, table.coeffs))
    with_gradients = SolverTable(table.levels, *learned, table.entry, table.analytic_first)
    result = run(GaussianVE(), start(10.0), with_gradients)
    assert result.requires_grad
    assert_close(result.detach(), run(GaussianVE(), start(10.0), table))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_gradient_needs_neither_float64_nor_a_value_from_the_device(device):
    """A meta tensor has no values to read."""
    recorder = Recorder(GaussianVE())
    table = dyweight_table(IPNDM_2, torch.ones(5, requires_grad=True), LEVELS)
    assert run(recorder, torch.ones(2, 3, device=device), table).requires_grad
    assert {sigma.dtype for sigma in recorder.sigma} == {torch.float32}
