"""The samplers with k-diffusion's signature: choice of the solver, its part of the grid, guidance and refusals."""

from __future__ import annotations

import inspect

import pytest
import torch
from learned_solvers.samplers import EDMNoise, FlowNoise, VPNoise, load_solver, part_of_table
from learned_solvers.samplers.files.solver import BUNDLED
from learned_solvers.samplers.k_diffusion import sample_ds_solver, sample_dyweight, sample_solver
from oracles import GaussianFlow, GaussianVE, Recorder, Steps, ds_solver, k_diffusion_module, knotted_solver, run, start
from torch import Tensor
from torch.testing import assert_close

SD = VPNoise.stable_diffusion()
SD_SIGMAS = torch.expm1(-2 * SD.log_alphas).sqrt()
FLOW, NAN = FlowNoise(), float("nan")
SD15 = {"solver": "dyweight_sd15", "noise": SD, "steps": 6}


def host_sigmas(first: float, last: float, steps: int) -> Tensor:
    """Noise levels as a host passes them: float32, descending, not on any solver's grid."""
    return torch.linspace(first**0.5, last**0.5, steps + 1).square()


def never(*args: object) -> Tensor:
    raise AssertionError("the model was called")


def with_sigmas(sigmas: Tensor = SD_SIGMAS) -> Recorder:
    """A denoiser with its table of noise levels in `sigmas`, like k-diffusion's discrete wrappers."""
    return type("WithSigmas", (Recorder,), {"sigmas": sigmas})(GaussianVE())


@pytest.mark.parametrize("sampler", [sample_solver, sample_dyweight, sample_ds_solver])
def test_the_signature_starts_as_k_diffusions_and_a_run_of_no_steps_returns_the_state(sampler):
    parameters = list(inspect.signature(sampler).parameters.values())
    assert [p.name for p in parameters[:6]] == ["model", "x", "sigmas", "extra_args", "callback", "disable"]
    assert {p.kind for p in parameters[6:]} == {inspect.Parameter.KEYWORD_ONLY}
    assert {p.default for p in parameters[3:]} == {None}
    x = start()
    assert all(sampler(never, x, torch.tensor(sigmas)) is x for sigmas in ([14.6], []))


@pytest.mark.parametrize(
    ("sampler", "solver", "steps", "noise", "model"),
    [
        (sample_dyweight, "dyweight_sd15", 6, SD, GaussianVE()),
        (sample_dyweight, "dyweight_cifar10", 4, EDMNoise(), GaussianVE()),
        (sample_dyweight, "dyweight_flux1-dev", 5, FlowNoise(tokens=1024), GaussianFlow()),
        (sample_ds_solver, "ds_flow-sit", 6, FLOW, GaussianFlow()),
        (sample_ds_solver, "ds_vp-dit", 6, SD, GaussianVE()),
    ],
)
def test_a_solver_by_name_path_object_or_default_runs_on_its_own_grid(sampler, solver, steps, noise, model):
    path = BUNDLED / f"{solver}.safetensors"
    x, sigmas = start(noise.sigma_max), host_sigmas(noise.sigma_max, 0.0, steps)
    expected = run(model, x, load_solver(solver).table(steps, noise))
    default = [None] * solver.startswith("ds_")  # the transferable solver for the prediction type
    for either in (solver, str(path), path, load_solver(solver), *default):
        for function in (sampler, sample_solver):
            recorder = Recorder(model)
            result = function(recorder, x, sigmas, solver=either, noise=noise, disable=True)
            assert_close(result, expected, rtol=0, atol=0)
            assert len(recorder.sigma) == steps


@pytest.mark.parametrize("disable", [True, False])
def test_extra_arguments_callback_and_progress_are_passed_on_without_a_graph(capsys, disable):
    recorder, steps = Recorder(lambda x, sigma, cond: x * cond), Steps()
    options = {"solver": ds_solver(5), "noise": FLOW}
    x, sigmas = start().requires_grad_(), host_sigmas(1.0, 0.0, 5)
    result = sample_solver(recorder, x, sigmas, {"cond": 0.5}, steps, disable, **options)
    assert recorder.extra_args == [{"cond": 0.5}] * 5
    assert [call["i"] for call in steps.calls] == [0, 1, 2, 3, 4]
    assert ("5/5" in capsys.readouterr().err) != disable
    assert not result.requires_grad


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        (sample_solver, {"solver": "ds_flow-sit", "noise": FLOW, "steps": 4}, "ds_flow-sit .* 9 and 10 .* 4"),
        (sample_solver, {"solver": "dyweight_flux1-dev", "noise": FlowNoise(64)}, "flux1-dev .* 5 and 7 .* 6"),
        (sample_solver, {"solver": "dyweight_flux1-dev", "noise": FLOW, "steps": 5}, "number of latent tokens"),
        (sample_solver, {"solver": "ds_vp-dit", "noise": FLOW}, "ds_vp-dit .* vp .* flow"),
        (sample_solver, {"solver": "dyweight_cifar10", "noise": FLOW}, "dyweight_cifar10 .* edm .* flow"),
        (sample_dyweight, {"solver": "ds_flow-sit", "noise": FLOW}, "is a DS-Solver file; choose a dyweight file"),
        (sample_ds_solver, {"solver": "dyweight_sd15", "noise": SD}, "is a DyWeight file; choose a ds file"),
        (sample_solver, {"solver": "ds_flow", "noise": FLOW}, "ds_flow-sit"),
        (sample_solver, {"noise": FLOW, "steps": 4}, "ds_flow-sit"),
        (sample_solver, {"noise": EDMNoise(), "steps": 5}, "dyweight_afhqv2-64"),
        (sample_dyweight, {"noise": FLOW, "steps": 5}, "dyweight_flux1-dev"),
        (sample_solver, {"solver": "ds_flow-sit"}, "never has no table of sigmas"),
        *((sample_solver, SD15 | {"sigmas": torch.tensor(s)}, "must descend") for s in ([0, 1], [1, 1], [1, 0.5, NAN])),
        (sample_solver, SD15 | {"sigmas": torch.tensor([0.02, 0])}, "0.02917"),  # below the solver's end
    ],
)
def test_a_solver_or_grid_that_does_not_match_is_refused_before_the_first_call(sampler, options, message):
    with pytest.raises(ValueError, match=message):
        sampler(never, start(), **{"sigmas": host_sigmas(1.0, 0.0, 6), **options})


@pytest.mark.parametrize("given", [None, VPNoise.linear_beta()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_schedule_is_the_given_one_or_read_from_the_models_own_table(dtype, given):
    model, table = with_sigmas(SD_SIGMAS.to(dtype)), load_solver("ds_vp-dit").table(6, given or SD)
    sigmas = host_sigmas(table.sigma_start, 0.0, 6)
    sample_solver(model, start(), sigmas, solver="ds_vp-dit", noise=given, disable=True)
    assert_close(torch.stack(model.sigma)[:, 0].double(), table.sigmas, rtol=1e-5, atol=0)


def test_a_real_k_diffusion_wrapper_needs_no_schedule():
    """The wrapper turns an eps model on a table of alphas into a denoiser; this one is exact for Gaussian data."""
    gaussian = GaussianVE()

    def eps(scaled: Tensor, index: Tensor) -> Tensor:
        sigma = wrapper.t_to_sigma(index).double()
        x = scaled * (sigma.square() + 1).sqrt()[:, None]
        return (x - gaussian(x, sigma)) / sigma[:, None]

    alphas_cumprod = 1 / (1 + SD_SIGMAS.square())
    wrapper = k_diffusion_module("external").DiscreteEpsDDPMDenoiser(eps, alphas_cumprod, quantize=False)
    x = start(SD.sigma_max)
    result = sample_solver(wrapper, x, wrapper.get_sigmas(10), disable=True)
    assert_close(result, run(gaussian, x, load_solver("ds_vp-dit").table(10, SD)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("first", "last"), [(7.0, 0.0), (14.6, 1.0), (7.0, 1.0), (0.5, 0.0)])
@pytest.mark.parametrize("name", ["dyweight_sd15", "ds_vp-dit"])
def test_image_to_image_runs_the_part_between_the_hosts_first_and_last_level(name, first, last):
    model, x = with_sigmas(), start(first)
    result = sample_solver(model, x, host_sigmas(first, last, 3), solver=name, steps=6, disable=True)
    part = part_of_table(load_solver(name).table(6, SD), float(torch.tensor(first)), last)
    assert_close(result, run(GaussianVE(), x, part), rtol=1e-5, atol=1e-5)
    assert_close(torch.stack(model.sigma)[:, 0].double(), part.sigmas, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("kind", "options", "cond_scale", "guidance"),
    [
        ("cfg", {"guidance": 4}, None, 4),
        ("cfg", {}, 4, 4),
        ("cfg", {}, torch.tensor([4.0, 4.0]), 4),
        ("cfg", {"guidance": 3}, 4, 3),
        *(("cfg", {}, other, None) for other in (None, "7", [], NAN)),
        ("embedded", {}, 1.0, None),  # a host's CFG is not an embedded guidance
    ],
)
def test_the_runs_guidance_selects_between_the_knots(kind, options, cond_scale, guidance):
    solver, recorder = knotted_solver(kind=kind), Recorder(lambda x, sigma, **_: GaussianFlow()(x, sigma))
    options = {"solver": solver, "noise": FLOW, "disable": True, **options}
    sample_ds_solver(recorder, start(), torch.linspace(1, 0, 3), {"cond_scale": cond_scale}, **options)
    assert_close(torch.stack(recorder.sigma)[:, 0].double(), solver.table(2, FLOW, guidance).sigmas, rtol=1e-6, atol=0)
