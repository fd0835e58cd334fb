"""What a model may be and do in a fit: an ordinary module, one that overflows far out, arguments of every shape."""

from __future__ import annotations

import pytest
import torch
from fits import FLOW, starts
from learned_solvers.samplers import VPNoise, load_solver, sample_ds_solver, sample_dyweight
from learned_solvers.training import GradientDescent, fit_solver
from oracles import curved, sd_sigmas
from torch import Tensor, nn
from torch.testing import assert_close


class Module(nn.Module):
    """A denoiser with a weight that asks for a gradient, as every module's do."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.full((), 0.2, dtype=torch.float64))
        self.graphs: list[bool] = []

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        denoised = curved(x, sigma, self.shift)
        self.graphs.append(denoised.requires_grad)
        return denoised


def test_a_fit_of_a_module_records_no_graph():
    model, plain = Module(), []
    result = fit_solver(model, starts("flow", 24).requires_grad_(), noise=FLOW, steps=(3,), teacher_steps=8)
    fit_solver(
        lambda x, sigma: plain.append(1) or curved(x, sigma, torch.tensor(0.2, dtype=torch.float64)),
        starts("flow", 24), noise=FLOW, steps=(3,), teacher_steps=8,
    )  # fmt: skip
    assert len(model.graphs) == len(plain) and not any(model.graphs)
    assert not any(tensor.requires_grad for tensor in result.solver.parameters[3].values())


@pytest.mark.parametrize("outer", [torch.no_grad, torch.enable_grad])
def test_a_gradient_optimizer_takes_gradients_wherever_it_is_called(outer):
    model = Module()
    with outer():
        result = fit_solver(
            model, starts("flow", 16), noise=FLOW, steps=(3,), teacher_steps=8, held_out=4, initial="euler, shift 1",
            optimizer=GradientDescent(batch=4, epochs=10),
        )  # fmt: skip
    assert any(model.graphs)
    assert result.report[3].error_after < 0.9 * result.report[3].error_before


@pytest.mark.parametrize(
    ("sampler", "solver", "sigmas"),
    [
        (sample_dyweight, "dyweight_sd15", sd_sigmas().flip(0)[[0, 300, 600, 900, 999]]),
        (sample_ds_solver, "ds_flow-sit", torch.linspace(1, 0, 6)),
    ],
)
def test_sampling_records_no_graph(sampler, solver, sigmas):
    noise = VPNoise.stable_diffusion() if sampler is sample_dyweight else FLOW
    model, x = Module(), starts("flow", 4) * float(sigmas[0])
    end = sampler(model, x, sigmas, solver=load_solver(solver), noise=noise, disable=True)
    assert not end.requires_grad and not any(model.graphs) and len(model.graphs) == len(sigmas) - 1


def test_a_tensor_without_rows_is_for_every_call():
    def scaled(x: Tensor, sigma: Tensor, scale: Tensor) -> Tensor:
        assert scale.ndim == 0
        return scale * curved(x, sigma)

    settings = {"noise": FLOW, "steps": (2,), "teacher_steps": 6}
    found = fit_solver(scaled, starts("flow"), extra_args={"scale": torch.tensor(0.9)}, **settings)
    bound = fit_solver(lambda x, sigma: scaled(x, sigma, torch.tensor(0.9)), starts("flow"), **settings)
    assert_close(dict(found.solver.parameters[2]), dict(bound.solver.parameters[2]), rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", ["gauss-newton", GradientDescent(batch=8)])
def test_no_call_has_more_samples_than_a_microbatch(optimizer):
    rows = []

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        rows.append(len(x))
        return curved(x, sigma)

    fit_solver(model, starts("flow", 24), noise=FLOW, steps=(2,), teacher_steps=6, microbatch=3, optimizer=optimizer)
    assert max(rows) == 3


def test_an_epoch_takes_every_sample_once():
    batches = GradientDescent(batch=4, epochs=2)._batches(10)
    assert [len(rows) for rows in batches] == [4, 3, 3, 4, 3, 3]
    assert [len(rows) for rows in GradientDescent(batch=16)._batches(33)] == [11, 11, 11]
    assert sorted(torch.cat(batches).tolist()) == sorted([*range(10), *range(10)])


@pytest.mark.parametrize("microbatch", [1, 5, None])
def test_a_network_that_overflows_far_out_is_judged_row_by_row(microbatch):
    """As in float16. A start that leads far out costs its own samples; a row beside it does not excuse another."""

    def overflowing(x: Tensor, sigma: Tensor) -> Tensor:
        far = x.flatten(1).abs().amax(1, keepdim=True) > 200
        return torch.where(far, torch.inf, curved(x, sigma))

    x = starts("flow", 20)
    x[7] *= 100  # some of its runs go on beyond 200
    settings = {"noise": FLOW, "steps": (3,), "teacher_steps": 8, "held_out": 5}
    found = fit_solver(overflowing, x, microbatch=microbatch, **settings)
    assert found.report[3].error_after < 1

    def broken(x: Tensor, sigma: Tensor) -> Tensor:
        beside = x.flatten(1).abs().amax(1) > 20
        return torch.where((beside.any() & ~beside)[:, None], torch.nan, curved(x, sigma))

    with pytest.raises(ValueError, match=r"not finite, .* from a state of ordinary size"):
        fit_solver(broken, x, **settings)
