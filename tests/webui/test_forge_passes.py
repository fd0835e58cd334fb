"""The passes of a job in a real Forge: image-to-image, hires fix, and the guidance of each."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
from dataclasses import replace

import pytest
from learned_solvers.samplers import FlowNoise, load_solver
from oracles import knotted_solver
from PIL import Image
from webui_oracle import (
    PICTURE,
    SD,
    SHADE,
    by_hand,
    close,
    discrete,
    flow,
    from_noise,
    from_picture,
    guided,
    noise,
    second_pass,
)

pytestmark = pytest.mark.forge
CAT = guided(discrete)
DYWEIGHT = load_solver("dyweight_sd15")


def encoded(shade, right_half=None):
    """A grey picture as the API takes it, its right half of another shade."""
    picture, buffer = Image.new("RGB", (64, 64), 3 * (shade,)), io.BytesIO()
    if right_half is not None:
        picture.paste(3 * (right_half,), (32, 0, 64, 64))
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def image_to_image(forge, steps, strength, **fields):
    return forge.run("img2img", init_images=[encoded(SHADE)], steps=steps, denoising_strength=strength, **fields)


@pytest.mark.parametrize(("steps", "strength", "calls"), [(6, 0.75, 5), (6, 1.0, 6), (4, 0.3, 2), (10, 0.5, 6)])
def test_image_to_image_runs_the_end_of_the_grid(forge, steps, strength, calls):
    job = image_to_image(forge, steps, strength)
    close(job.latents[-1], from_picture(DYWEIGHT.table(steps, SD), CAT, steps - calls))
    assert len(job.calls) == calls and job.seen["sampling_steps"] == calls
    assert job.info["Learned solver calls"] == (str(steps) if calls == steps else f"{calls} of {steps}")


def test_image_to_image_of_a_flow_model_mixes_noise_and_picture(forge):
    job = image_to_image(forge, 7, 0.6, model="flux", cfg_scale=1.0)
    table = load_solver("dyweight_flux1-dev").table(7, FlowNoise(tokens=16))
    sigma = float(table.levels[2])
    x = sigma * noise(channels=16) + (1 - sigma) * PICTURE[:, :1].expand(1, 16, 8, 8)
    close(job.latents[-1], by_hand(table, x, guided(flow, 1.0), 2))


@pytest.mark.parametrize("strength", [1.5, -0.25])
def test_a_strength_outside_0_and_1_is_refused(forge, strength):  # the API accepts it, the page's slider does not
    assert f"from 0 to 1, got {strength}" in image_to_image(forge, 6, strength).error


def test_inpainting_keeps_the_unmasked_half_and_samples_the_other(forge):
    mask = {"mask": encoded(255, 0), "mask_blur": 0, "inpainting_fill": 1, "inpaint_full_res": False}
    latent = image_to_image(forge, 8, 0.7, **mask).latents[-1]
    close(latent[..., :4], from_picture(DYWEIGHT.table(8, SD), CAT, 2)[..., :4])  # the networks answer per pixel
    close(latent[..., 4:], PICTURE[..., 4:])


def test_exactly_the_amount_of_steps_takes_the_nearest_grid_and_says_so(forge):
    job = image_to_image(forge, 5, 0.55, override_settings={"img2img_fix_steps": True})
    close(job.latents[-1], from_picture(DYWEIGHT.table(10, SD), CAT, 4))  # Forge requests the last 5 of 9
    remark = "9 steps: ran 6 of 10 instead of the last 5 of 9 steps (denoising strength 0.55)"
    assert remark in job.seen["comments"] and len(job.calls) == 6


# ---- hires fix


def hires(forge, steps, **fields):
    second = {"enable_hr": True, "hr_scale": 2.0, "hr_upscaler": "Latent", "hr_cfg": 3.0, "denoising_strength": 0.5}
    second["hr_additional_modules"] = ["Use same choices"]
    return forge.run("txt2img", steps=steps, **{**second, **fields})


@pytest.mark.parametrize(("steps", "whole", "calls"), [(4, 8, 4), (6, 10, 5)])
def test_hires_fix_runs_the_end_of_the_grid_that_forge_derives_or_of_the_nearest(forge, steps, whole, calls):
    job = hires(forge, steps)
    first = from_noise(DYWEIGHT.table(steps, SD), CAT)
    close(job.latents[-1], second_pass(DYWEIGHT.table(whole, SD), first, CAT, whole - calls))
    assert len(job.calls) == steps + calls and job.seen["sampling_steps"] == calls
    assert job.info["Hires learned solver"] == "dyweight_sd15" and job.info["Learned solver calls"] == str(steps)
    assert job.info["Hires learned solver calls"] == f"{calls} of {whole}"
    assert ("instead of the last 6 of 12 steps" in job.seen["comments"]) == (steps == 6)
    assert "Schedule type" not in job.info and "Hires schedule type" not in job.info


def test_auto_takes_the_users_own_file_first_and_hires_fix_keeps_it(forge):
    def solver(*counts):
        card = replace(DYWEIGHT.card, steps={n: DYWEIGHT.card.steps[n] for n in counts})
        return replace(DYWEIGHT, card=card, parameters={n: DYWEIGHT.parameters[n] for n in counts})

    folder = forge.base / "data" / "models" / "solver_weights" / "mine"
    folder.mkdir(parents=True)
    try:
        solver(4, 6).save(folder / "fitted.safetensors")
        solver(6).save(folder / "another.safetensors")
        (folder / "broken.safetensors").write_bytes(b"no such thing")
        (folder / os.fsdecode(b"caf\xe9.safetensors")).write_bytes(b"a name that is not UTF-8")
        job = hires(forge, 4)
    finally:
        shutil.rmtree(folder.parent)
    assert job.info["Learned solver"] == job.info["Hires learned solver"] == "mine/fitted.safetensors"
    assert job.info["Hires learned solver calls"] == "3 of 6"  # the bundled file has the 8 steps that Forge derives
    assert re.search("skipped in automatic selection: .*broken.safetensors: ", forge.log)
    assert forge.log.count(r"the name of 'mine/caf\udce9.safetensors' in ") == 1


def test_hires_fix_keeps_a_stock_samplers_first_pass_and_schedule(forge):
    stock = {"sampler_name": "Euler", "scheduler": "Karras"}
    job = hires(forge, 8, **stock, hr_sampler_name="DS-Solver", hr_second_pass_steps=6)
    infos = {"Sampler": "Euler", "Schedule type": "Karras", "Hires learned solver": "ds_vp-dit"}
    assert job.info.items() >= {**infos, "Hires learned solver calls": "5 of 10"}.items()
    assert "Learned solver" not in job.info and len(job.calls) == 13


def test_hires_fix_may_continue_with_a_stock_sampler(forge):
    job = hires(forge, 6, hr_sampler_name="Euler", hr_scheduler="Karras", hr_second_pass_steps=3)
    infos = {"Learned solver calls": "6", "Hires sampler": "Euler", "Hires schedule type": "Karras"}
    assert job.info.items() >= infos.items() and "Hires learned solver" not in job.info


# ---- guidance


@pytest.fixture(scope="module")
def knots(forge):
    """Solvers with parameters for guidance 2 and 8, as files: at CFG for eps and flow models, embedded for FLUX."""
    solvers = {"embedded": knotted_solver(kind="embedded"), "flow": knotted_solver()}
    solvers["vp"] = replace(solvers["flow"], card=replace(solvers["flow"].card, prediction="vp"))
    folder = forge.base / "data" / "models" / "solver_weights"
    folder.mkdir()
    for name, solver in solvers.items():
        solver.save(folder / f"{name}.safetensors")
    yield solvers
    shutil.rmtree(folder)


def test_each_pass_uses_the_parameters_for_its_own_cfg(forge, knots):
    job = hires(forge, 2, cfg_scale=4.0, hr_cfg=12.0, sampler_name="DS-Solver", file="vp.safetensors")
    first = from_noise(knots["vp"].table(2, SD, 4), guided(discrete, 4.0))
    close(job.latents[-1], second_pass(knots["vp"].table(2, SD, 8), first, guided(discrete, 12.0), 1))
    assert "this run uses CFG 12: the parameters for 8 are used" in job.seen["comments"]
    assert job.seen["comments"].count("fitted at") == 1  # the first pass is within the fitted range


@pytest.mark.parametrize(("file", "guidance"), [("embedded", 4.0), ("flow", None)])
def test_a_distilled_cfg_is_an_embedded_guidance(forge, knots, file, guidance):
    fields = {"cfg_scale": 1.0, "distilled_cfg_scale": 4.0, "sampler_name": "DS-Solver"}
    job = forge.run("txt2img", model="flux", steps=2, file=f"{file}.safetensors", **fields)
    table = knots[file].table(2, FlowNoise(tokens=16), guidance)
    close(job.latents[0], from_noise(table, guided(flow, 1.0), channels=16))
    remark = "flow.safetensors: fitted at CFG 2, 8, but this run uses embedded guidance 4, CFG 1: the usual"
    assert (remark in job.seen["comments"]) == ("fitted at" in job.seen["comments"]) == (file == "flow")
