"""The loop: calls, callback, dtypes, memory, gradients, and no look at what is on the device."""

from __future__ import annotations

import gc

import pytest
import torch
from learned_solvers.samplers import SolverTable, VPNoise, adams_bashforth, dpmpp_2m, euler, ipndm, sample_table
from learned_solvers.samplers.families.ds import ds_flow_table, ds_vp_table
from learned_solvers.samplers.families.dyweight import dyweight_table
from oracles import GaussianFlow, GaussianVE, Mixture, Recorder, Steps
from torch import Tensor

LEVELS = torch.tensor([10.0, 6.0, 3.0, 1.5, 0.5, 0.1], dtype=torch.float64)
IPNDM_2 = torch.tensor([[1.0, 0, 0, 0, 0]] + [[0.0] * i + [-0.5, 1.5] + [0.0] * (3 - i) for i in range(4)])
RANKS = {"3-D": (2, 6, 4), "4-D": (2, 3, 4, 4), "5-D": (2, 3, 2, 4, 4)}


def scaled_calls() -> SolverTable:
    """Returns a table whose calls stand beside its levels."""
    t_scale = torch.tensor([0.9, 1.1, 0.95, 1.05, 1.2], dtype=torch.float64)
    return dyweight_table(IPNDM_2, t_scale, LEVELS)


def analytic() -> SolverTable:
    t_scale = torch.tensor([1.1, 0.95, 1.05, 1.2], dtype=torch.float64)
    return dyweight_table(IPNDM_2, t_scale, LEVELS, analytic_first=True)


TABLES = {
    "euler": euler(LEVELS),
    "adams_bashforth": adams_bashforth(LEVELS, 3),
    "dpmpp_2m": dpmpp_2m(LEVELS),
    "scaled_calls": scaled_calls(),
    "analytic": analytic(),
}


def noise(*shape: int, dtype: torch.dtype = torch.float64, sigma: float = 10.0) -> Tensor:
    return sigma * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def by_hand(model, x: Tensor, table: SolverTable) -> list[Tensor]:
    """Returns all states of the table's defining formula, written with matrices instead of the loop's bookkeeping."""
    states, history = [x], []
    for i in range(table.steps):
        x = states[-1]
        if i == 0 and table.analytic_first:
            history.append(x / (1 + table.levels[0] ** 2).sqrt())
        else:
            denoised = model(x, table.sigmas[i].expand(x.shape[0]))
            history.append(denoised if table.entry == "denoised" else (x - denoised) / table.sigmas[i])
        states.append(table.scale[i] * x + torch.tensordot(table.coeffs[i, : i + 1], torch.stack(history), 1))
    return states


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_state_follows_the_tables_formula(table):
    x, steps = noise(2, 3, 4), Steps()
    result = sample_table(GaussianVE(), x, table, callback=steps, disable=True)
    torch.testing.assert_close(
        steps.trajectory(result), torch.stack(by_hand(GaussianVE(), x, table)), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_the_model_is_called_nfe_times_at_the_tables_sigmas(table):
    recorder = Recorder(GaussianVE())
    sample_table(recorder, noise(3, 2, 2), table, disable=True)
    expected = table.sigmas[int(table.analytic_first) :]
    assert len(recorder.sigma) == table.nfe
    torch.testing.assert_close(recorder.sigmas, expected[:, None].expand(-1, 3), rtol=0, atol=0)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_the_callback_sees_the_state_of_its_step(table):
    x, steps, recorder = noise(2, 3, 4), Steps(), Recorder(GaussianVE())
    sample_table(recorder, x, table, callback=steps, disable=True)
    own = steps.calls[int(table.analytic_first) :]
    assert [set(call) for call in steps.calls] == [{"x", "i", "sigma", "sigma_hat", "denoised"}] * table.steps
    assert [call["i"] for call in steps.calls] == list(range(table.steps))
    torch.testing.assert_close(torch.stack([call["sigma"] for call in steps.calls]), table.sigmas)
    torch.testing.assert_close(torch.stack([call["sigma_hat"] for call in steps.calls]), table.sigmas)
    torch.testing.assert_close([call["x"] for call in own], recorder.x, rtol=0, atol=0)
    torch.testing.assert_close([call["denoised"] for call in own], list(map(GaussianVE(), recorder.x, recorder.sigma)))


def test_the_callback_of_an_analytic_step_shows_the_noise_and_almost_nothing_denoised():
    x, steps = noise(2, 3, 4), Steps()
    sample_table(GaussianVE(), x, analytic(), callback=steps, disable=True)
    torch.testing.assert_close(steps.calls[0]["x"], x)
    torch.testing.assert_close(steps.calls[0]["denoised"], x * (1 - 10 / 101**0.5))
    assert float(steps.calls[0]["sigma"]) == 10


def test_a_callback_may_stop_the_run():
    def stop(info: dict) -> None:
        if info["i"] == 2:
            raise InterruptedError

    recorder = Recorder(GaussianVE())
    with pytest.raises(InterruptedError):
        sample_table(recorder, noise(1, 2), euler(LEVELS), callback=stop, disable=True)
    assert len(recorder.sigma) == 3


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)],
)
@pytest.mark.parametrize("shape", RANKS.values(), ids=RANKS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_the_result_has_the_states_dtype_and_is_close_to_float64(dtype, tolerance, shape, batch, table):
    x = noise(batch, *shape[1:], dtype=dtype)
    result = sample_table(GaussianVE(), x, table, disable=True)
    assert (result.dtype, result.shape) == (dtype, x.shape)
    reference = sample_table(GaussianVE(), x.double(), table, disable=True)
    torch.testing.assert_close(result.double(), reference, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_states_are_combined_in_float32(dtype):
    x = noise(2, 3, dtype=dtype)
    table = ipndm(torch.linspace(10, 0.1, 41, dtype=torch.float64), 4)
    result = sample_table(lambda x, sigma: GaussianVE()(x.double(), sigma.double()), x, table, disable=True)
    reference = sample_table(
        lambda x, sigma: GaussianVE()(x.to(dtype).double(), sigma), x.double(), table, disable=True
    )
    torch.testing.assert_close(result, reference.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "seen"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_the_model_sees_its_own_dtype_and_no_float64_it_did_not_ask_for(dtype, seen, table):
    recorder, steps = Recorder(GaussianVE()), Steps()
    sample_table(recorder, noise(2, 3, 4, dtype=dtype), table, callback=steps, disable=True)
    assert {x.dtype for x in recorder.x} == {dtype}
    assert {sigma.dtype for sigma in recorder.sigma} == {seen}
    assert {call[key].dtype for call in steps.calls for key in ("x", "sigma", "denoised")} == {seen}


def test_a_learned_table_that_wants_gradients_still_hands_the_model_float32():
    recorder = Recorder(GaussianVE())
    t_scale = torch.ones(5, requires_grad=True)
    sample_table(recorder, noise(2, 3, dtype=torch.float32), dyweight_table(IPNDM_2, t_scale, LEVELS), disable=True)
    assert {sigma.dtype for sigma in recorder.sigma} == {torch.float32}


def test_a_model_that_answers_in_another_dtype_does_not_change_the_results():
    x = noise(2, 3, dtype=torch.float32)
    result = sample_table(lambda x, sigma: GaussianVE()(x, sigma).double(), x, euler(LEVELS), disable=True)
    assert result.dtype == torch.float32


@pytest.mark.parametrize("x", [torch.ones(2, 3, dtype=torch.int64), torch.ones(2, dtype=torch.bool), torch.tensor(1.0)])
def test_what_is_no_state_is_refused(x):
    with pytest.raises(ValueError, match=r"x must be a floating-point state \[B, ...\], got torch\.\w+ of shape \["):
        sample_table(GaussianVE(), x, euler(LEVELS), disable=True)


def test_the_start_is_left_alone():
    x = noise(2, 3)
    before = x.clone()
    sample_table(GaussianVE(), x, scaled_calls(), disable=True)
    torch.testing.assert_close(x, before, rtol=0, atol=0)


def test_extra_arguments_reach_the_model():
    recorder = Recorder(lambda x, sigma, cond: x * cond)
    sample_table(recorder, noise(1, 2), euler(LEVELS), {"cond": 0.5}, disable=True)
    assert recorder.extra_args == [{"cond": 0.5}] * 5


def test_no_progress_is_shown_when_disabled(capsys):
    sample_table(GaussianVE(), noise(1, 2), euler(LEVELS), disable=True)
    assert capsys.readouterr() == ("", "")


def test_progress_is_shown_otherwise(capsys):
    sample_table(GaussianVE(), noise(1, 2), euler(LEVELS), disable=False)
    assert "5/5" in capsys.readouterr().err


# Going on from a step in between.


def entries(steps: Steps, table: SolverTable) -> dict[int, Tensor]:
    """Returns the history of a run that `steps` watched."""
    denoised = [call["denoised"] for call in steps.calls]
    if table.entry == "derivative":
        return {call["i"]: (call["x"] - call["denoised"]) / call["sigma"] for call in steps.calls}
    return dict(enumerate(denoised))


@pytest.mark.parametrize("start", [0, 1, 2, 4])
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_run_goes_on_from_any_step(start, table):
    steps, later, recorder = Steps(), Steps(), Recorder(GaussianVE())
    whole = sample_table(GaussianVE(), noise(2, 3), table, callback=steps, disable=True)
    history = {i: entry for i, entry in entries(steps, table).items() if i < start}
    x = steps.calls[start]["x"]
    result = sample_table(recorder, x, table, callback=later, disable=True, start=start, history=history)
    torch.testing.assert_close(result, whole)
    assert [call["i"] for call in later.calls] == list(range(start, 5))
    assert len(recorder.sigma) == 5 - start - (table.analytic_first and start == 0)


@pytest.mark.parametrize("start", [0, 1, 4])
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_step_whose_entry_is_known_makes_no_call(start, table):
    steps, later, recorder = Steps(), Steps(), Recorder(GaussianVE())
    whole = sample_table(GaussianVE(), noise(2, 3), table, callback=steps, disable=True)
    history = {i: entry for i, entry in entries(steps, table).items() if i <= start}
    x = steps.calls[start]["x"]
    result = sample_table(recorder, x, table, callback=later, disable=True, start=start, history=history)
    torch.testing.assert_close(result, whole)
    assert len(recorder.sigma) == len(later.calls) == 4 - start
    assert set(history) == set(range(start + 1))


# What is kept in memory.

UNUSUAL = (2, 3, 5, 7)  # a shape that nothing else has


def banded(window: int, history: str) -> SolverTable:
    """Returns ten steps, each of which uses the newest `window` entries."""
    n = 10
    levels = torch.linspace(5, 0, n + 1, dtype=torch.float64)
    ones = torch.ones(n, n, dtype=torch.float64).tril().triu(1 - window)
    return SolverTable(levels, levels[:-1], torch.full((n,), 0.5).double(), -0.01 * ones, history)


def most_states_alive(table: SolverTable) -> int:
    """Returns the largest number of tensors of the state's shape that exist while the model runs."""
    counts = []

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        counts.append(sum(type(item) is Tensor and item.shape == UNUSUAL for item in gc.get_objects()))
        return x * 0.5

    gc.freeze()  # what exists already is not counted, and not walked through at each call
    try:
        sample_table(model, noise(*UNUSUAL), table, disable=True)
    finally:
        gc.unfreeze()
    return max(counts)


@pytest.mark.parametrize("history", ["derivative", "denoised"])
@pytest.mark.parametrize("window", [2, 3, 5, 10])
def test_only_the_entries_that_a_later_row_uses_are_kept(window, history):
    alone = most_states_alive(banded(1, history))
    assert alone <= 4  # the caller's state, the loop's, and the last step's two
    assert most_states_alive(banded(window, history)) <= alone + window - 1


def test_an_entry_that_a_far_row_uses_is_kept():
    table = banded(1, "denoised")
    table.coeffs[9, 0] = -0.01
    result = sample_table(GaussianVE(), noise(1, 2), table, disable=True)
    torch.testing.assert_close(result, by_hand(GaussianVE(), noise(1, 2), table)[-1])


def test_an_entry_that_no_row_uses_is_dropped():
    table = banded(1, "derivative")
    table.coeffs[:, :9] = 0
    assert most_states_alive(table) <= most_states_alive(banded(1, "derivative"))
    result = sample_table(GaussianVE(), noise(1, 2), table, disable=True)
    torch.testing.assert_close(result, by_hand(GaussianVE(), noise(1, 2), table)[-1])


# Gradients.


def mixture(flow: bool) -> Mixture:
    mean = torch.tensor([[1.0, -0.5, 0.3], [-0.8, 0.6, -1.0]], dtype=torch.float64)
    std, logw = torch.tensor([0.3, 0.5], dtype=torch.float64), torch.tensor([0.1, -0.1], dtype=torch.float64)
    return Mixture(mean, std, logw, flow)


def parameter(*shape: int, low: float, high: float) -> Tensor:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (low + (high - low) * values).requires_grad_()


@pytest.mark.parametrize("divisor", ["state", "call"])
@pytest.mark.parametrize("analytic_first", [False, True])
def test_gradients_reach_every_dyweight_parameter(divisor, analytic_first):
    grid = torch.tensor([3.0, 1.5, 0.6, 0.1], dtype=torch.float64)

    def result(weights: Tensor, t_scale: Tensor) -> Tensor:
        weights = (weights + torch.eye(3, dtype=torch.float64)).tril()
        table = dyweight_table(weights, t_scale, grid, analytic_first=analytic_first, divisor=divisor)
        return sample_table(mixture(flow=False), noise(1, 3, sigma=3.0), table, disable=True)

    weights, t_scale = parameter(3, 3, low=-0.2, high=0.2), parameter(3 - analytic_first, low=0.9, high=1.1)
    assert torch.autograd.gradcheck(result, (weights, t_scale))
    result(weights, t_scale).square().sum().backward()
    assert bool((weights.grad[torch.ones(3, 3).tril().bool()] != 0).all())
    assert bool((t_scale.grad != 0).all())


def test_gradients_reach_a_dyweight_grid():
    def result(grid: Tensor) -> Tensor:
        table = dyweight_table(IPNDM_2[:3, :3], torch.tensor([1.1, 0.9, 1.05]), grid)
        return sample_table(mixture(flow=False), noise(1, 3, sigma=3.0), table, disable=True)

    assert torch.autograd.gradcheck(result, torch.tensor([3.0, 1.5, 0.6, 0.1]).double().requires_grad_())


@pytest.mark.parametrize("kind", ["flow", "vp", "vp table"])
def test_gradients_reach_every_ds_parameter(kind):
    schedule = VPNoise.stable_diffusion() if kind == "vp table" else VPNoise.linear_beta()

    def result(timedeltas: Tensor, coeffs: Tensor) -> Tensor:
        coeffs = coeffs.tril(-1)
        table = ds_flow_table(timedeltas, coeffs) if kind == "flow" else ds_vp_table(timedeltas, coeffs, schedule)
        x = noise(1, 3, sigma=table.sigma_start)
        return sample_table(mixture(flow=kind == "flow"), x, table, disable=True)

    # Off the knots of the model's table, where the slope jumps.
    timedeltas = torch.tensor([0.3004, 0.4003, 0.2993], dtype=torch.float64, requires_grad=True)
    coeffs = parameter(3, 3, low=-0.3, high=0.3)
    assert torch.autograd.gradcheck(result, (timedeltas, coeffs))
    result(timedeltas, coeffs).square().sum().backward()
    # On VP models the last step ends at the last time whatever its delta is.
    assert bool((timedeltas.grad[: 3 if kind == "flow" else 2] != 0).all())
    assert bool((coeffs.grad[torch.ones(3, 3).tril(-1).bool()] != 0).all())


def test_gradients_reach_the_start():
    x = noise(1, 3, sigma=1.0).requires_grad_()
    table = ds_flow_table(torch.full((4,), 0.25), torch.zeros(4, 4))
    assert torch.autograd.gradcheck(lambda x: sample_table(mixture(flow=True), x, table, disable=True), x)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_table_with_gradients_gives_the_same_samples(table):
    with_gradients = SolverTable(
        table.levels,
        table.sigmas.clone().requires_grad_(),
        table.scale.clone().requires_grad_(),
        table.coeffs.clone().requires_grad_(),
        table.entry,
        table.analytic_first,
    )
    x = noise(2, 3)
    result = sample_table(GaussianVE(), x, with_gradients, disable=True)
    assert result.requires_grad
    torch.testing.assert_close(result.detach(), sample_table(GaussianVE(), x, table, disable=True))


# Nothing waits for the device: a meta tensor has no values to wait for.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_no_value_is_read_from_the_device(dtype, table):
    recorder, steps = Recorder(GaussianFlow()), Steps()
    x = torch.empty(2, 3, 4, dtype=dtype, device="meta")
    result = sample_table(recorder, x, table, callback=steps, disable=True)
    assert (result.device.type, result.dtype, result.shape) == ("meta", dtype, x.shape)
    assert {sigma.device.type for sigma in recorder.sigma} == {"meta"}
    assert len(recorder.sigma) == table.nfe


def test_no_value_is_read_from_the_device_for_a_gradient():
    t_scale = torch.ones(5, dtype=torch.float64, requires_grad=True)
    x = torch.empty(2, 3, device="meta")
    result = sample_table(GaussianVE(), x, dyweight_table(IPNDM_2, t_scale, LEVELS), disable=True)
    assert result.requires_grad
