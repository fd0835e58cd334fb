"""Models and their arguments in a fit: an ordinary module, one that overflows far out, arguments of every shape."""

from __future__ import annotations

import pytest
import torch
from fits import FLOW, VP, Watched, quick_fit, starts
from learned_solvers.samplers import load_solver, sample_ds_solver, sample_dyweight
from learned_solvers.training import GradientDescent
from oracles import curved, sd_sigmas
from torch import Tensor, nn
from torch.testing import assert_close


class Module(nn.Module):
    """A denoiser with a weight that requires a gradient, as in every module."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.full((), 0.2, dtype=torch.float64))
        self.graphs: list[bool] = []

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        denoised = curved(x, sigma, self.shift)
        self.graphs.append(denoised.requires_grad)
        return denoised


def test_a_fit_by_forward_passes_records_no_graph():
    model = Module()
    result = quick_fit(model, starts("flow", 24).requires_grad_())
    assert model.graphs and not any(model.graphs)
    assert not any(tensor.requires_grad for tensor in result.solver.parameters[3].values())


@pytest.mark.parametrize(
    ("optimizer", "rate", "outer"),
    [("adam", 3e-2, torch.no_grad), ("adamw", 3e-2, torch.enable_grad), ("lion", 1e-2, torch.no_grad)],
)
def test_gradient_descent_lowers_the_error_also_under_no_grad(optimizer, rate, outer):
    model = Module()
    settings = GradientDescent(optimizer, rate=rate, batch=8, epochs=8)
    with outer():
        result = quick_fit(model, starts("flow", 40), initial="euler, shift 1", optimizer=settings)
    assert any(model.graphs)
    assert result.report[3].error_after < 0.8 * result.report[3].error_before


@pytest.mark.parametrize(
    ("sampler", "solver", "noise", "sigmas"),
    [
        (sample_dyweight, "dyweight_sd15", VP, sd_sigmas().flip(0)[[0, 300, 600, 900, 999]]),
        (sample_ds_solver, "ds_flow-sit", FLOW, torch.linspace(1, 0, 6)),
    ],
)
def test_sampling_records_no_graph(sampler, solver, noise, sigmas):
    model, x = Module(), starts("flow", 4) * float(sigmas[0])
    end = sampler(model, x, sigmas, solver=load_solver(solver), noise=noise, disable=True)
    assert not end.requires_grad and not any(model.graphs) and len(model.graphs) == len(sigmas) - 1


def test_arguments_per_sample_stay_with_their_samples_and_others_go_to_every_call():
    def model(x: Tensor, sigma: Tensor, shift: Tensor, offset: Tensor, scale: Tensor, name: str) -> Tensor:
        assert (len(shift), offset.shape, scale.ndim, name) == (len(x), (1, 6), 0, "abc")
        return scale * curved(x, sigma, shift) + 0.1 * offset

    shared = {"offset": torch.ones(1, 6).double(), "scale": torch.tensor(0.9), "name": "abc"}
    extra_args = {"shift": torch.linspace(-1, 1, 24, dtype=torch.float64), **shared}
    whole, parts = (quick_fit(model, microbatch=size, extra_args=extra_args) for size in (None, 5))
    assert_close(parts.solver.parameters[3]["weights"], whole.solver.parameters[3]["weights"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["gauss-newton", GradientDescent(batch=8)])
def test_the_report_counts_every_call_and_no_call_exceeds_the_microbatch(optimizer):
    model = Watched()
    result = quick_fit(model, teacher_steps=10, microbatch=3, optimizer=optimizer)
    assert result.teacher_calls == 20 * 2 + 10 * (result.report[3].samples + result.held_out)  # a pilot's, and its own
    assert model.most == 3
    if optimizer == "gauss-newton":  # a backward pass counts as two calls
        assert result.teacher_calls + result.report[3].network_calls == model.samples
    assert result.solver.card.steps[3].network_calls == result.report[3].network_calls


def test_an_epoch_uses_every_sample_once():
    batches = GradientDescent(batch=4, epochs=2)._batches(10)
    assert [len(rows) for rows in batches] == [4, 3, 3, 4, 3, 3]
    assert [len(rows) for rows in GradientDescent(batch=16)._batches(33)] == [11, 11, 11]
    assert sorted(torch.cat(batches).tolist()) == sorted([*range(10), *range(10)])


@pytest.mark.parametrize("microbatch", [1, 5, None])
def test_non_finite_results_are_excused_for_outlying_states_only(microbatch):
    """As in float16: a start far out costs its own samples only, and does not excuse another row of its batch."""

    def overflowing(x: Tensor, sigma: Tensor) -> Tensor:
        far = x.flatten(1).abs().amax(1, keepdim=True) > 200
        return torch.where(far, torch.inf, curved(x, sigma))

    def broken(x: Tensor, sigma: Tensor) -> Tensor:
        far = x.flatten(1).abs().amax(1) > 20
        return torch.where((far.any() & ~far)[:, None], torch.nan, curved(x, sigma))

    x = starts("flow", 20)
    x[7] *= 100  # some of its runs exceed 200
    assert quick_fit(overflowing, x, microbatch=microbatch, held_out=5).report[3].error_after < 1
    with pytest.raises(ValueError, match=r"non-finite values out of .* for a state of normal magnitude"):
        quick_fit(broken, x, held_out=5)
