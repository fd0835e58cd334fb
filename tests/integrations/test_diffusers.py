"""Learned solvers in diffusers' own pipelines, with tiny random networks."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="no diffusers: pip install diffusers transformers")
pytest.importorskip("transformers", reason="no transformers: pip install diffusers transformers")

import numpy as np
from host_server import ROOT
from learned_solvers.integrations.diffusers import LearnedSolverScheduler, PipelineDenoiser
from learned_solvers.samplers import load_solver, part_of_table
from oracles import run
from PIL import Image
from tiny_pipelines import GUIDANCE, SD_BETAS, SIZE, flux, noise_of, save_with_text_encoder, sd, sd3, sdxl
from torch.testing import assert_close

pytestmark = pytest.mark.diffusers
RUNS = [
    (sd, {}, "dyweight_sd15", 6),
    (sd, {}, "dyweight_lsun-bedroom-ldm", 4),  # an analytic first step
    (sd, {}, "ds_vp-dit", 5),
    (sd, {"prediction": "v_prediction"}, "dyweight_sd15", 4),
    (sdxl, {}, "dyweight_sd15", 8),
    (sd3, {}, "ds_flow-sit", 6),
    (flux, {}, "dyweight_flux1-dev", 5),
    (flux, {}, "ds_flow-flowdcn", 7),
]


def close(actual, expected, tolerance=1e-5):
    assert_close(actual, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize(("make", "options", "solver", "steps"), RUNS)
@torch.no_grad()
def test_a_pipeline_equals_the_table_on_its_denoiser(make, options, solver, steps):
    tiny, table = make(**options), load_solver(solver)
    table = table.table(steps, tiny.noise, GUIDANCE)
    tiny.use(LearnedSolverScheduler.from_config(tiny.text.scheduler.config, solver=solver, guidance=GUIDANCE))
    for seed in (7, 8):  # the second run is independent of the first
        start = torch.cat([noise_of(seed + 10 * i, 1, *tiny.shape) for i in range(2)])
        generators = [torch.Generator().manual_seed(seed + 10 * i) for i in range(2)]
        latents = tiny.sample(tiny.text, num_inference_steps=steps, generator=generators)
        close(latents, run(tiny.denoiser, tiny.pack(start) * table.sigma_start, table))


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize(("make", "options", "solver", "steps"), RUNS)
@torch.no_grad()
def test_image_to_image_equals_the_end_of_the_table(make, options, solver, steps, strength):
    tiny = make(batch=1, **options)
    whole = load_solver(solver).table(steps, tiny.noise, GUIDANCE)
    tiny.use(LearnedSolverScheduler.from_config(tiny.image.scheduler.config, solver=solver, guidance=GUIDANCE))
    image, first = noise_of(5, 1, *tiny.shape), steps - int(steps * strength + (0.99 if make in (sd3, flux) else 0))
    table = part_of_table(whole, whole.levels[first + whole.analytic_first if first else 0].item(), 0)
    signal = 1 - table.sigma_start if tiny.noise.kind == "flow" else 1
    start = signal * image + table.sigma_start * noise_of(7, 1, *tiny.shape)
    generator = torch.Generator().manual_seed(7)
    arguments = {"image": image, "strength": strength, "num_inference_steps": steps, "generator": generator}
    latents = tiny.sample(tiny.image, **arguments)
    close(latents, run(tiny.denoiser, tiny.pack(start), table))


@torch.no_grad()
def test_inpainting_keeps_the_unmasked_half():
    tiny, steps = sd(batch=1), 6
    table = load_solver("dyweight_sd15").table(steps, tiny.noise)
    scheduler = LearnedSolverScheduler.from_config(tiny.image.scheduler.config, solver="dyweight_sd15")
    pipeline = diffusers.StableDiffusionInpaintPipeline(
        **{**tiny.text.components, "scheduler": scheduler}, requires_safety_checker=False
    )
    image, noise, mask = noise_of(5, 1, 4, 8, 8), noise_of(7, 1, 4, 8, 8), torch.zeros(1, 1, SIZE, SIZE)
    mask[..., SIZE // 2 :] = 1
    states = []

    def record(pipeline, i, timestep, outputs):
        states.append(outputs["latents"])
        return outputs

    images = {"image": image, "masked_image_latents": image, "mask_image": mask, "latents": noise, "strength": 0.6}
    latents = tiny.sample(pipeline, num_inference_steps=steps, callback_on_step_end=record, **images)
    levels = table.levels[4:].tolist()
    assert len(states) == len(levels) == 3
    for level, state in zip(levels[:-1], states, strict=False):
        close(state[..., :4], (image + level * noise)[..., :4])
    close(latents[..., :4], image[..., :4])


@pytest.mark.parametrize(("solver", "steps"), [("dyweight_sd15", 10), ("dyweight_flux1-dev", 7)])
def test_a_half_precision_state_is_rounded_once(solver, steps):
    scheduler = LearnedSolverScheduler.from_solver(solver)
    scheduler.set_timesteps(steps, mu=1.15)
    start = noise_of(3, 2, 4, 32, 32).half() * scheduler.init_noise_sigma
    x, output = start, noise_of(4, 2, 4, 32, 32).half()  # a constant derivative
    for t in scheduler.timesteps:
        assert scheduler.scale_model_input(x, t).dtype == torch.float16
        (x,) = scheduler.step(output, t, x, return_dict=False)
    exact = start.double() + scheduler.table.coeffs.sum() * output.double()
    assert x.dtype == torch.float16
    assert (x == exact.half()).double().mean() > 0.999


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta_schedule": "linear", "beta_end": 0.01},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": torch.linspace(1e-4, 0.02, 1000).tolist()},
        {"rescale_betas_zero_snr": True},
    ],
)
def test_timesteps_are_those_of_the_noise_levels_in_diffusers_own_table(options):
    euler = diffusers.EulerDiscreteScheduler(**{**SD_BETAS, **options})
    scheduler = LearnedSolverScheduler.from_config(euler.config, solver="ds_vp-dit")
    scheduler.set_timesteps(8)
    sigmas = np.interp(scheduler.timesteps.numpy(), np.arange(1000), euler.sigmas[:-1].flip(0).log().numpy())
    assert_close(torch.from_numpy(sigmas).exp(), scheduler.table.sigmas, rtol=2e-3, atol=0)


@pytest.mark.parametrize(
    ("config", "solver", "words"),
    [
        (diffusers.EulerDiscreteScheduler(), "dyweight_flux1-dev", "fitted for flow models, but this model is vp"),
        (diffusers.FlowMatchEulerDiscreteScheduler(), "dyweight_sd15", "fitted for vp models, but this model is flow"),
        (diffusers.EulerDiscreteScheduler(prediction_type="sample"), "dyweight_sd15", "prediction_type is sample"),
        (diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "ds_flow-sit", "invert_sigmas is True"),
        (diffusers.EDMEulerScheduler(), "dyweight_cifar10", "options are sigma_min"),
        ({"_class_name": "CogVideoXDDIMScheduler", "beta_start": 0.1}, "ds_vp-dit", "class is CogVideoXDDIMScheduler"),
        (diffusers.EulerDiscreteScheduler(), "dyweight_sd", "did you mean 'dyweight_sd15'"),
    ],
)
def test_another_model_is_refused(config, solver, words):
    config = config if isinstance(config, dict) else config.config
    with pytest.raises(ValueError, match=words):
        LearnedSolverScheduler.from_config(config, solver=solver)


def test_what_a_run_lacks_is_refused():
    scheduler = LearnedSolverScheduler.from_solver("dyweight_flux1-dev")
    for arguments, words in [
        ({"num_inference_steps": 4, "mu": 1.15}, "dyweight_flux1-dev has 3, 5 and 7 steps, not 4"),
        ({"sigmas": [1.0, 0.5, 0.25]}, "pass num_inference_steps instead of sigmas"),
        ({"num_inference_steps": 5}, "pass tokens=H/16"),
        ({"num_inference_steps": 5, "mu": 1.96}, "pass tokens=H/16"),  # FLUX.2's at 4096 tokens: no whole number
        ({}, "pass num_inference_steps"),
    ]:
        with pytest.raises(ValueError, match=words):
            scheduler.set_timesteps(**arguments)
    with pytest.raises(ValueError, match="pass solver="):
        LearnedSolverScheduler.from_config(diffusers.EulerDiscreteScheduler().config)
    scheduler = LearnedSolverScheduler.from_solver("dyweight_sd15")
    scheduler.set_timesteps(6)
    with pytest.raises(ValueError, match="the strength leaves none of 6 steps: raise it to at least 1/6"):
        scheduler.add_noise(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8), torch.zeros(0))


def test_schedulers_with_other_options_and_defaults_than_eulers_are_understood(tmp_path):
    for scheduler in (
        diffusers.FlowMatchHeunDiscreteScheduler(),  # has no shift by resolution
        diffusers.FlowMatchEulerDiscreteScheduler(base_shift=1.1, max_shift=1.1),  # Qwen-Image-Lightning's kind
    ):
        ours = LearnedSolverScheduler.from_config(scheduler.config, solver="ds_flow-sit")
        ours.set_timesteps(6, mu=1.1)
        assert ours.table.nfe == 6
    heun = diffusers.HeunDiscreteScheduler(beta_schedule="scaled_linear")  # its default betas are Stable Diffusion's
    ours = LearnedSolverScheduler.from_config(heun.config, solver="dyweight_sd15")
    ours.set_timesteps(6)
    assert ours.table.sigma_start == pytest.approx(14.6146, rel=1e-4)
    heun.save_pretrained(tmp_path)
    ours = LearnedSolverScheduler.from_pretrained(tmp_path, solver="dyweight_sd15")
    ours.set_timesteps(6)
    assert ours.solver.name == "dyweight_sd15"


def test_noise_is_added_to_every_row_of_a_batch():
    scheduler = LearnedSolverScheduler.from_solver("dyweight_sd15")
    scheduler.set_timesteps(6)
    clean, noise = noise_of(5, 1, 4, 8, 8), noise_of(6, 2, 4, 8, 8)
    levels = scheduler.table.levels[[1, 3]].float().view(2, 1, 1, 1)
    assert_close(scheduler.add_noise(clean, noise, scheduler.timesteps[[1, 3]]), clean + levels * noise)


@torch.no_grad()
def test_a_pipeline_is_saved_with_its_solver_and_loaded_without_the_original_file(tmp_path):
    tiny = sd3()
    file = load_solver("ds_flow-sit").save(tmp_path / "mine.safetensors")
    tiny.use(LearnedSolverScheduler.from_config(tiny.text.scheduler.config, solver=file, guidance=2.0))
    arguments = {**tiny.arguments, "num_inference_steps": 5, "output_type": "latent", "return_dict": False}
    before = tiny.text(**arguments, generator=torch.Generator().manual_seed(1))[0]
    tiny.text.save_pretrained(tmp_path / "saved")
    file.unlink()
    parts = {name: None for name, part in tiny.text.components.items() if part is None}
    loaded = diffusers.StableDiffusion3Pipeline.from_pretrained(tmp_path / "saved", **parts)
    config = loaded.scheduler.config
    assert isinstance(loaded.scheduler, LearnedSolverScheduler)
    assert (config["solver"], config["guidance"], config["shift"]) == ("mine", 2.0, 3.0)
    close(loaded(**arguments, generator=torch.Generator().manual_seed(1))[0], before)
    copy = LearnedSolverScheduler.from_config(config, guidance=5.0)
    assert (copy.solver.name, copy.config["guidance"]) == ("mine", 5.0)
    euler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(config)
    assert euler.config["shift"] == 3.0


@pytest.mark.parametrize("make", [sd, sdxl, sd3, flux])
def test_a_pipeline_is_a_denoiser(make):
    tiny = make()
    before = tiny.text.scheduler
    model = PipelineDenoiser(tiny.text, **tiny.arguments)
    for level in (0.9, 0.2):
        x = tiny.pack(noise_of(7, 2, *tiny.shape)) * level
        sigma = torch.full((2,), level)
        with torch.no_grad():
            close(model(x, sigma), tiny.denoiser(x, sigma))
    assert tiny.text.scheduler is before and model.noise.kind == tiny.noise.kind
    with pytest.raises(ValueError, match="at one noise level"):
        model(x, torch.tensor([0.9, 0.2]))


@pytest.mark.slow
def test_the_example_fits_a_solver_and_samples_with_it(tmp_path):
    save_with_text_encoder(sd(batch=1).text, tmp_path / "tiny")
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    (tmp_path / "learned_solvers").symlink_to(ROOT, target_is_directory=True)
    command = [sys.executable, ROOT / "docs/fit_diffusers.py", "tiny", "--output", "my.safetensors", "--steps", "4"]
    command += ["--samples", "12", "--guidance", "3", "--prompts", "prompts.txt", "--effort", "quick"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    error, best = map(float, re.findall(r"4 steps: error (\S+), of the best classical solver (\S+)", result.stdout)[0])
    assert error < best
    solver = load_solver(tmp_path / "my.safetensors")
    assert (solver.steps, solver.prediction, solver.card.checkpoint) == ((4,), "vp", "tiny")
    assert Image.open(tmp_path / "my.png").size == (SIZE, SIZE)
