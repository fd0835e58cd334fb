"""The samplers that hosts call: k-diffusion's signature, and refusal where a solver does not fit."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from learned_solvers.samplers import (
    EDMNoise,
    FlowNoise,
    VPNoise,
    load_solver,
    part_of_table,
    sample_ds_solver,
    sample_dyweight,
    sample_solver,
    sample_table,
)
from learned_solvers.samplers.files.solver import BUNDLED
from oracles import (
    GaussianFlow,
    GaussianVE,
    Recorder,
    Steps,
    ds_solver,
    dyweight_solver,
    k_diffusion_module,
    knotted_solver,
)
from torch import Tensor, nn

SD = VPNoise.stable_diffusion()
SD_SIGMAS = torch.expm1(-2 * SD.log_alphas).sqrt()


def host_sigmas(first: float, last: float, steps: int) -> Tensor:
    """Returns noise levels as a host hands them over: float32, descending, of no grid that a solver knows."""
    return torch.linspace(first**0.5, last**0.5, steps + 1).square()


def noise(sigma: float, *shape: int) -> Tensor:
    return sigma * torch.randn(shape or (2, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class WithSigmas(nn.Module):
    """A denoiser that keeps its table of noise levels as k-diffusion's discrete wrappers do."""

    def __init__(self, sigmas: Tensor = SD_SIGMAS) -> None:
        super().__init__()
        self.register_buffer("sigmas", sigmas)
        self.recorder = Recorder(GaussianVE())

    def forward(self, x: Tensor, sigma: Tensor, **extra_args: object) -> Tensor:
        return self.recorder(x, sigma)


def assert_same(result: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


# The signature.


@pytest.mark.parametrize("sampler", [sample_solver, sample_dyweight, sample_ds_solver])
def test_the_signature_starts_as_k_diffusions(sampler):
    names = list(inspect.signature(sampler).parameters)
    assert names[:6] == ["model", "x", "sigmas", "extra_args", "callback", "disable"]
    parameters = inspect.signature(sampler).parameters
    defaults = [p.default for name, p in parameters.items() if name != "family"][3:]
    assert defaults == [None] * len(defaults)


@pytest.mark.parametrize("sampler", [sample_solver, sample_dyweight, sample_ds_solver])
def test_hosts_find_all_but_the_first_six_by_name_only(sampler):
    later = list(inspect.signature(sampler).parameters.values())[6:]
    assert {p.kind for p in later} == {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize("sampler", [sample_solver, sample_dyweight, sample_ds_solver])
@pytest.mark.parametrize("sigmas", [torch.tensor([14.6]), torch.tensor([])])
def test_less_than_two_levels_leave_the_state_unchanged(sampler, sigmas):
    def never(*args: object) -> Tensor:
        raise AssertionError("the model was called")

    x = noise(1.0)
    assert sampler(never, x, sigmas) is x


# The whole grid.


def test_a_solver_runs_its_own_grid_whatever_the_hosts_levels_are():
    solver, model = load_solver("dyweight_sd15"), WithSigmas()
    x = noise(SD.sigma_max)
    result = sample_solver(model, x, host_sigmas(SD.sigma_max, 0.0, 6), solver=solver, disable=True)
    assert_same(result, sample_table(GaussianVE(), x, solver.table(6, SD), disable=True))
    assert len(model.recorder.sigma) == 6


@pytest.mark.parametrize(
    ("sampler", "model", "first", "steps", "options"),
    [
        pytest.param(
            sample_dyweight,
            GaussianVE(),
            80.0,
            4,
            {"solver": "dyweight_cifar10", "noise": EDMNoise()},
            id="dyweight, edm",
        ),
        pytest.param(
            sample_dyweight,
            GaussianFlow(),
            1.0,
            5,
            {"solver": "dyweight_flux1-dev", "noise": FlowNoise(tokens=1024)},
            id="dyweight, flow",
        ),
        pytest.param(
            sample_ds_solver, GaussianFlow(), 1.0, 6, {"solver": "ds_flow-sit", "noise": FlowNoise()}, id="ds, flow"
        ),
        pytest.param(
            sample_ds_solver, GaussianVE(), SD.sigma_max, 6, {"solver": "ds_vp-dit", "noise": SD}, id="ds, vp"
        ),
    ],
)
def test_each_sampler_applies_the_solvers_table(sampler, model, first, steps, options):
    recorder, x = Recorder(model), noise(first)
    result = sampler(recorder, x, host_sigmas(first, 0.0, steps), disable=True, **options)
    table = load_solver(options["solver"]).table(steps, options["noise"])
    assert_same(result, sample_table(model, x, table, disable=True))
    assert len(recorder.sigma) == steps


def test_extra_arguments_callback_and_progress_are_passed_on(capsys):
    recorder, steps = Recorder(lambda x, sigma, cond: x * cond), Steps()
    sample_solver(
        recorder,
        noise(1.0),
        host_sigmas(1.0, 0.0, 5),
        {"cond": 0.5},
        steps,
        False,
        solver=ds_solver(5),
        noise=FlowNoise(),
    )
    assert recorder.extra_args == [{"cond": 0.5}] * 5
    assert [call["i"] for call in steps.calls] == [0, 1, 2, 3, 4]
    assert "5/5" in capsys.readouterr().err


# Which solver.


def test_a_solver_by_name_path_or_object_is_the_same():
    x, sigmas, path = noise(1.0), host_sigmas(1.0, 0.0, 6), BUNDLED / "ds_flow-sit.safetensors"
    results = [
        sample_solver(GaussianFlow(), x, sigmas, solver=solver, noise=FlowNoise(), disable=True)
        for solver in ("ds_flow-sit", str(path), Path(path), load_solver("ds_flow-sit"))
    ]
    assert_same(torch.stack(results), results[0].expand(4, -1, -1))


def test_a_users_own_file_is_used(tmp_path):
    path = ds_solver(4).save(tmp_path / "my own.safetensors")
    recorder = Recorder(GaussianFlow())
    sample_solver(recorder, noise(1.0), host_sigmas(1.0, 0.0, 4), solver=path, noise=FlowNoise(), disable=True)
    torch.testing.assert_close(recorder.sigmas[:, 0], torch.tensor([1.0, 0.75, 0.5, 0.25]).double())


@pytest.mark.parametrize("sampler", [sample_solver, sample_ds_solver])
@pytest.mark.parametrize(
    ("schedule", "model", "name"),
    [(FlowNoise(), GaussianFlow(), "ds_flow-sit"), (SD, GaussianVE(), "ds_vp-dit")],
    ids=["flow", "vp"],
)
def test_no_solver_means_the_transferable_one_of_the_prediction_type(sampler, schedule, model, name):
    first = 1.0 if name == "ds_flow-sit" else SD.sigma_max
    x = noise(first)
    result = sampler(model, x, host_sigmas(first, 0.0, 7), noise=schedule, disable=True)
    assert_same(result, sample_table(model, x, load_solver(name).table(7, schedule), disable=True))


def test_no_solver_is_transferable_of_a_family_that_has_none():
    with pytest.raises(ValueError, match=r"no dyweight solver .* has 5 steps: .*dyweight_flux1-dev"):
        sample_dyweight(GaussianFlow(), noise(1.0), host_sigmas(1.0, 0.0, 5), noise=FlowNoise())


def test_steps_of_the_whole_grid_may_differ_from_the_hosts():
    recorder = Recorder(GaussianFlow())
    sample_solver(
        recorder, noise(1.0), host_sigmas(1.0, 0.0, 20), solver="ds_flow-sit", noise=FlowNoise(), steps=5, disable=True
    )
    assert len(recorder.sigma) == 5


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        pytest.param(
            sample_solver,
            {"solver": "ds_flow-sit", "noise": FlowNoise(), "steps": 4},
            "ds_flow-sit was fitted for 5, 6, 7, 8, 9 and 10 steps, got 4: choose one of these, or fit it for 4",
            id="steps",
        ),
        pytest.param(
            sample_solver,
            {"solver": "dyweight_flux1-dev", "noise": FlowNoise(tokens=64)},
            "dyweight_flux1-dev was fitted for 3, 5 and 7 steps, got 6: choose one of these",
            id="the hosts steps",
        ),
        pytest.param(
            sample_solver,
            {"solver": "ds_vp-dit", "noise": FlowNoise()},
            "ds_vp-dit was fitted for vp models, this model is flow: choose one for flow models",
            id="prediction",
        ),
        pytest.param(
            sample_solver,
            {"solver": dyweight_solver(6), "noise": FlowNoise()},
            "dyweight_test was fitted for edm models, this model is flow",
            id="prediction of an object",
        ),
        pytest.param(
            sample_dyweight,
            {"solver": "ds_flow-sit", "noise": FlowNoise()},
            "ds_flow-sit belongs to DS-Solver: choose a dyweight file, or the sampler of family ds",
            id="family ds",
        ),
        pytest.param(
            sample_ds_solver,
            {"solver": "dyweight_sd15", "noise": SD},
            "dyweight_sd15 belongs to DyWeight: choose a ds file, or the sampler of family dyweight",
            id="family dyweight",
        ),
        pytest.param(
            sample_solver,
            {"solver": "ds_flow", "noise": FlowNoise()},
            r"no bundled solver is called 'ds_flow' \(did you mean 'ds_flow-sit'\?\): choose one of",
            id="name",
        ),
        pytest.param(
            sample_solver,
            {"noise": FlowNoise(), "steps": 4},
            r"model has 4 steps: choose the steps of ds_flow-sit \(5, 6, 7, 8, 9, 10 steps\)",
            id="no solver with the steps",
        ),
        pytest.param(
            sample_solver,
            {"noise": EDMNoise(), "steps": 5},
            "name one that was fitted for another model: dyweight_afhqv2-64",
            id="no transferable solver",
        ),
        pytest.param(
            sample_solver,
            {"solver": "dyweight_flux1-dev", "noise": FlowNoise(), "steps": 5},
            "give the number of latent tokens",
            id="tokens",
        ),
        pytest.param(
            sample_solver,
            {"solver": "ds_flow-sit"},
            r"never has no table of sigmas .*: pass noise=, one of FlowNoise\(tokens=...\), VPNoise",
            id="no schedule",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_call(sampler, options, message):
    def never(*args: object) -> Tensor:
        raise AssertionError("the model was called")

    with pytest.raises(ValueError, match=message):
        sampler(never, noise(1.0), host_sigmas(1.0, 0.0, 6), **options)


@pytest.mark.parametrize(
    "sigmas", [torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.5, float("nan")])]
)
def test_levels_that_do_not_descend_are_refused(sigmas):
    with pytest.raises(ValueError, match="sigmas must descend"):
        sample_solver(
            GaussianFlow(), noise(1.0), sigmas, solver="ds_flow-sit", noise=FlowNoise(), steps=5, disable=True
        )


# The model's schedule.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_schedule_is_read_from_the_models_own_table(dtype):
    model = WithSigmas(SD_SIGMAS.to(dtype))
    sample_solver(model, noise(14.6), host_sigmas(SD.sigma_max, 0.0, 6), solver="ds_vp-dit", disable=True)
    expected = load_solver("ds_vp-dit").table(6, SD).sigmas
    torch.testing.assert_close(model.recorder.sigmas[:, 0], expected, rtol=1e-5, atol=0)


def test_a_given_schedule_wins_over_the_models_table():
    model = WithSigmas()
    linear = VPNoise.linear_beta()
    sample_solver(model, noise(1.0), host_sigmas(152, 0.0, 6), solver="ds_vp-dit", noise=linear, disable=True)
    expected = load_solver("ds_vp-dit").table(6, linear).sigmas
    torch.testing.assert_close(model.recorder.sigmas[1:, 0], expected[1:])


def test_a_real_k_diffusion_wrapper_is_sampled_by_itself():
    """The wrapper turns an eps model on a table of alphas into a denoiser; ours is exact for Gaussian data."""
    alphas_cumprod = 1 / (1 + SD_SIGMAS.square())
    gaussian = GaussianVE()

    def eps(scaled: Tensor, index: Tensor) -> Tensor:
        sigma = wrapper.t_to_sigma(index).double()
        x = scaled * (sigma.square() + 1).sqrt()[:, None]
        return (x - gaussian(x, sigma)) / sigma[:, None]

    wrapper = k_diffusion_module("external").DiscreteEpsDDPMDenoiser(eps, alphas_cumprod, quantize=False)
    x = noise(SD.sigma_max)
    sigmas = wrapper.get_sigmas(10)
    result = sample_solver(wrapper, x, sigmas, disable=True)
    expected = sample_table(gaussian, x, load_solver("ds_vp-dit").table(10, SD), disable=True)
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sigmas", [SD_SIGMAS.flip(0), torch.zeros(10), torch.ones(2, 2)])
def test_a_model_with_an_odd_table_is_refused(sigmas):
    with pytest.raises(ValueError, match="a model's sigmas must"):
        sample_solver(WithSigmas(sigmas), noise(1.0), host_sigmas(14.6, 0.0, 6), solver="ds_vp-dit", disable=True)


# Part of the grid.


@pytest.mark.parametrize(("first", "last"), [(7.0, 0.0), (14.6, 1.0), (7.0, 1.0), (0.5, 0.0)])
@pytest.mark.parametrize("name", ["dyweight_sd15", "ds_vp-dit"])
def test_image_to_image_runs_the_part_between_the_hosts_first_and_last_level(name, first, last):
    model, x = WithSigmas(), noise(first)
    result = sample_solver(model, x, host_sigmas(first, last, 3), solver=name, steps=6, disable=True)
    part = part_of_table(load_solver(name).table(6, SD), float(torch.tensor(first)), float(torch.tensor(last)))
    torch.testing.assert_close(result, sample_table(GaussianVE(), x, part, disable=True), rtol=1e-5, atol=1e-5)
    assert len(model.recorder.sigma) == part.nfe
    assert float(model.recorder.sigma[0][0]) == pytest.approx(part.sigmas[0].item(), rel=1e-5)


def test_a_picture_noised_in_part_comes_back_close_to_itself():
    """Gaussian data: half the noise off by a solver is the exact path, near enough for five calls."""
    oracle, x = GaussianFlow(), noise(1.0, 64, 3)
    middle = oracle.path(x, 1.0, 0.6)
    result = sample_solver(
        oracle, middle, host_sigmas(0.6, 0.0, 3), solver="ds_flow-sit", noise=FlowNoise(), steps=10, disable=True
    )
    torch.testing.assert_close(result, oracle.path(x, 1.0, 0.0), rtol=0, atol=0.1)


def test_a_state_cleaner_than_the_solvers_end_is_refused():
    with pytest.raises(ValueError, match=r"noisier than the solver's own end, 0\.02917, got 0\.02: raise denoise"):
        sample_solver(WithSigmas(), noise(0.02), host_sigmas(0.02, 0.0, 6), solver="dyweight_sd15", disable=True)


@pytest.mark.parametrize(
    ("options", "extra_args", "guidance"),
    [
        ({"guidance": 4}, {}, 4),
        ({}, {"cond_scale": 4}, 4),
        ({}, {"cond_scale": torch.tensor([4.0, 4.0])}, 4),
        ({"guidance": 3}, {"cond_scale": 4}, 3),
        ({}, {}, None),
    ],
)
def test_the_guidance_at_hand_chooses_between_the_knots(options, extra_args, guidance):
    solver, recorder = knotted_solver(), Recorder(lambda x, sigma, **_: GaussianFlow()(x, sigma))
    sample_ds_solver(
        recorder, torch.randn(1, 4), torch.linspace(1, 0, 3), extra_args, disable=True,
        solver=solver, noise=FlowNoise(), **options,
    )  # fmt: skip
    expected = solver.table(2, FlowNoise(), guidance).sigmas
    torch.testing.assert_close(recorder.sigmas[:, 0].double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("cond_scale", [1.0, None, "7", [], float("nan")])
def test_a_hosts_cfg_is_no_embedded_guidance_and_what_is_no_number_none(cond_scale):
    for kind in ("embedded", "cfg") if cond_scale != 1 else ("embedded",):
        solver, recorder = knotted_solver(kind=kind), Recorder(lambda x, sigma, **_: GaussianFlow()(x, sigma))
        sample_ds_solver(
            recorder, torch.randn(1, 4), torch.linspace(1, 0, 3), {"cond_scale": cond_scale}, disable=True,
            solver=solver, noise=FlowNoise(),
        )  # fmt: skip
        torch.testing.assert_close(
            recorder.sigmas[:, 0].double(), solver.table(2, FlowNoise()).sigmas, rtol=1e-6, atol=0
        )
