"""The WebUI extension in a real Forge: its loader, its API, its sampling; only the networks are closed forms."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from forge_host import ROOT
from forge_oracle import REFINED_MEAN, SIGMAS, by_hand, discrete, edm, flow, guided, noise
from learned_solvers.samplers import EDMNoise, FlowNoise, VPNoise, list_solvers, load_solver
from learned_solvers.samplers.files.card import VERSION
from oracles import knotted_solver
from PIL import Image
from torch.testing import assert_close

pytestmark = pytest.mark.forge
SD = VPNoise.from_sigmas(SIGMAS.float())  # as Forge holds it
ONE = {"prompt": "a cat", "seed": 1, "width": 64, "height": 64, "cfg_scale": 3.0, "batch_size": 1}
CAT = [guided(discrete, "a cat", 3.0)]


def close(latent, expected, tolerance=1e-4):
    assert_close(latent.double(), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def learned(file="as in Settings", nearest=False):
    return {"Learned Solvers": {"args": [file, nearest]}}


MODELS = {
    "eps": (discrete, SD, 4),
    "v": (partial(discrete, v=True), SD, 4),
    "flux": (flow, FlowNoise(tokens=4 * 6), 16),
    "edm": (edm, EDMNoise(0.002, 120.0), 4),
}


@pytest.mark.parametrize(
    ("model", "sampler", "file", "steps"),
    [
        ("eps", "DyWeight", "dyweight_sd15", 4),
        ("eps", "DyWeight", "dyweight_sd15", 10),
        ("eps", "DyWeight", "dyweight_lsun-bedroom-ldm", 3),
        ("eps", "DS-Solver", "ds_vp-dit", 7),
        ("v", "DyWeight", "dyweight_sd15", 6),
        ("v", "DS-Solver", "ds_vp-dit", 10),
        ("flux", "DyWeight", "dyweight_flux1-dev", 5),
        ("flux", "DS-Solver", "ds_flow-sit", 6),
        ("edm", "DyWeight", "dyweight_imagenet64", 4),
    ],
)
def test_txt2img_equals_the_table_by_hand(forge, model, sampler, file, steps):
    answer, schedule, channels = MODELS[model]
    fields = {**ONE, "width": 96, "sampler_name": sampler, "steps": steps, "scheduler": "Karras"}
    job = forge.run("txt2img", model=model, alwayson_scripts=learned(file), **fields)
    table = load_solver(file).table(steps, schedule)
    start = noise([1], channels, width=96) * table.sigma_start
    assert job.error == ""
    close(job.latents[0], by_hand(table, start, [guided(answer, "a cat", 3.0)]))
    assert len(job.calls) == steps and job.seen["sampling_steps"] == steps
    assert all(sorted(call["guide"]) == pytest.approx([0, 0.05]) for call in job.calls)  # both prompts' passes


def test_flux_levels_follow_the_latents_size(forge):
    # The prediction of FLUX is asked at the levels themselves: mu is linear in the tokens, 256 -> 0.5, 4096 -> 1.15.
    asked = []
    for side in (256, 1024):
        fields = {**ONE, "width": side, "height": side, "cfg_scale": 1.0, "sampler_name": "DyWeight", "steps": 3}
        job = forge.run("txt2img", model="flux", **fields)
        table = load_solver("dyweight_flux1-dev").table(3, FlowNoise(tokens=(side // 16) ** 2))
        assert [call["t"][0] for call in job.calls] == pytest.approx(table.sigmas.tolist(), rel=1e-5)
        close(job.latents[0], by_hand(table, noise([1], 16, side, side), [guided(flow, "a cat", 1.0)]))
        asked.append(job.calls[1]["t"][0])
    assert asked[1] > asked[0] + 0.05


def test_each_picture_of_a_batch_is_the_one_of_its_own_seed(forge):
    fields = {**ONE, "batch_size": 2, "n_iter": 2, "sampler_name": "DyWeight", "steps": 4}
    job = forge.run("txt2img", **fields)
    table = load_solver("dyweight_sd15").table(4, SD)
    close(torch.cat(job.latents), by_hand(table, noise([1, 2, 3, 4]) * table.sigma_start, CAT))
    assert len(job.infotexts) == 4 and len(job.calls) == 8


def test_the_infotext_names_solver_and_calls_instead_of_the_schedule(forge):
    job = forge.run("txt2img", **ONE, sampler_name="DyWeight", steps=6, scheduler="Karras")
    assert job.info["Sampler"] == "DyWeight" and job.info["Steps"] == "6"
    assert job.info["Learned solver"] == "dyweight_sd15" and job.info["Learned solver calls"] == "6"
    assert "Schedule type" not in job.info


REFUSED = [
    ("eps", "DyWeight", "dyweight_sd15", 7, "dyweight_sd15 was fitted for 4, 6, 8 and 10 steps, got 7: choose one of"),
    ("eps", "DyWeight", "auto", 7, "has 7 steps: choose the steps of dyweight_sd15 (4, 6, 8, 10 steps)"),
    (
        "flux",
        "DyWeight",
        "dyweight_sd15",
        6,
        "was fitted for vp models, this model is flow: choose one for flow models",
    ),
    (
        "eps",
        "DS-Solver",
        "dyweight_sd15",
        6,
        "is a DyWeight file: choose the sampler DyWeight, or another file",
    ),
    ("eps", "DyWeight", "../my.safetensors", 6, "no solver file is called '../my.safetensors': choose one of ds_flow-"),
    ("v", "DyWeight", "auto", 6, "no dyweight solver for SD20 (vp) model has 6 steps: name one that was fitted for"),
]


@pytest.mark.parametrize(("model", "sampler", "file", "steps", "message"), REFUSED)
def test_what_does_not_fit_is_refused_with_a_remedy(forge, model, sampler, file, steps, message):
    fields = {**ONE, "sampler_name": sampler, "steps": steps, "alwayson_scripts": learned(file)}
    assert message in forge.run("txt2img", model=model, **fields).error


def test_nearest_sets_the_steps_before_the_prompt_schedule_is_made(forge):
    fields = {**ONE, "prompt": "[aaaaaaaa:bb:0.5]", "sampler_name": "DyWeight", "steps": 7}
    job = forge.run("txt2img", **fields, alwayson_scripts=learned(nearest=True))
    guides = [max(call["guide"]) for call in job.calls]
    assert guides == pytest.approx(5 * [0.08] + 3 * [0.02])  # Forge switches after step 4, half of 8; of 7 after 3
    assert job.info["Steps"] == "8" and "took the nearest count, 8" in job.seen["comments"]


def test_the_settings_hold_where_the_accordion_says_nothing(forge):
    fields = {**ONE, "sampler_name": "DyWeight", "steps": 7}
    settings = {"learned_solvers_file": "dyweight_lsun-bedroom-ldm", "learned_solvers_nearest": True}
    job = forge.run("txt2img", **fields, override_settings=settings)
    assert job.info["Learned solver"] == "dyweight_lsun-bedroom-ldm" and job.info["Steps"] == "7"
    job = forge.run("txt2img", **fields, override_settings=settings, alwayson_scripts=learned("dyweight_sd15"))
    assert job.info["Learned solver"] == "dyweight_sd15" and job.info["Steps"] == "8"


def test_the_users_own_file_is_chosen_first_and_a_broken_one_named(forge):
    folder = forge.base / "data" / "models" / "solver_weights" / "mine"
    folder.mkdir(parents=True)
    try:
        load_solver("dyweight_sd15").save(folder / "fitted.safetensors")
        (folder / "broken.safetensors").write_bytes(b"no such thing")
        (folder / os.fsdecode(b"caf\xe9.safetensors")).write_bytes(b"a name that is not UTF-8")
        job = forge.run("txt2img", **ONE, sampler_name="DyWeight", steps=6)
        assert job.info["Learned solver"] == "mine/fitted.safetensors"
        assert re.search("left out of the automatic choice: .*broken.safetensors: not a safetensors file", forge.log)
        assert forge.log.count(r"the name of 'mine/caf\udce9.safetensors' in ") == 1
    finally:
        shutil.rmtree(folder.parent)


# ---- image-to-image


def picture(shade=200):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (shade, shade, shade)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def image_to_image(**fields):
    return {**ONE, "init_images": [picture()], "sampler_name": "DyWeight", **fields}


INIT = torch.full((1, 4, 8, 8), 200 / 255 * 2 - 1, dtype=torch.float64)


@pytest.mark.parametrize(("steps", "strength", "calls"), [(6, 0.75, 5), (6, 1.0, 6), (4, 0.3, 2), (10, 0.5, 6)])
def test_image_to_image_runs_the_end_of_the_grid(forge, steps, strength, calls):
    job = forge.run("img2img", **image_to_image(steps=steps, denoising_strength=strength))
    table = load_solver("dyweight_sd15").table(steps, SD)
    start = steps - calls
    x = INIT + noise([1]) * float(table.levels[start])
    close(job.latents[-1], by_hand(table, x, CAT, start))
    assert len(job.calls) == calls and job.seen["sampling_steps"] == calls
    assert job.info["Learned solver calls"] == (str(steps) if calls == steps else f"{calls} of {steps}")


def test_image_to_image_of_a_flow_model_mixes_noise_and_picture(forge):
    job = forge.run("img2img", model="flux", **image_to_image(steps=7, denoising_strength=0.6, cfg_scale=1.0))
    table = load_solver("dyweight_flux1-dev").table(7, FlowNoise(tokens=16))
    sigma = float(table.levels[2])
    x = sigma * noise([1], 16) + (1 - sigma) * INIT[:, :1].expand(1, 16, 8, 8)
    close(job.latents[-1], by_hand(table, x, [guided(flow, "a cat", 1.0)], 2))


@pytest.mark.parametrize("strength", [1.5, -0.25])
def test_a_strength_that_no_part_of_a_grid_has_is_refused(forge, strength):
    job = forge.run("img2img", **image_to_image(steps=6, denoising_strength=strength))  # the page's slider ends at 0, 1
    assert f"denoising strength must be from 0 to 1, got {strength}" in job.error


def test_inpainting_keeps_the_masked_region_and_samples_the_rest(forge):
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    fields = {"mask": base64.b64encode(buffer.getvalue()).decode(), "mask_blur": 0, "inpainting_fill": 1}
    fields |= {"inpaint_full_res": False, "steps": 8, "denoising_strength": 0.7}
    job = forge.run("img2img", **image_to_image(**fields))
    table = load_solver("dyweight_sd15").table(8, SD)
    x = INIT + noise([1]) * float(table.levels[2])
    latent = job.latents[-1]
    close(latent[..., :4], by_hand(table, x, CAT, 2)[..., :4])  # the networks answer per pixel
    close(latent[..., 4:], INIT[..., 4:])


def test_exactly_the_amount_of_steps_takes_the_nearest_grid_and_says_so(forge):
    settings = {"img2img_fix_steps": True}
    fields = image_to_image(steps=5, denoising_strength=0.55)
    job = forge.run("img2img", **fields, override_settings=settings)
    table = load_solver("dyweight_sd15").table(10, SD)  # Forge asks for the last 5 of 9
    x = INIT + noise([1]) * float(table.levels[4])
    close(job.latents[-1], by_hand(table, x, CAT, 4))
    said = "dyweight_sd15 has no 9 steps: ran 6 of 10 instead of the last 5 of 9 steps (denoising strength 0.55)"
    assert said in job.seen["comments"] and len(job.calls) == 6


# ---- hires fix


def hires(**fields):
    second = {"enable_hr": True, "hr_scale": 2.0, "hr_upscaler": "Latent", "hr_cfg": 3.0, "denoising_strength": 0.5}
    return {**ONE, "hr_additional_modules": ["Use same choices"], **second, "sampler_name": "DyWeight", **fields}


def second_pass(table, first, start, denoisers=CAT):
    upscaled = torch.nn.functional.interpolate(first, size=(16, 16), mode="bilinear", antialias=False)
    return by_hand(table, upscaled + noise([1], height=128, width=128) * float(table.levels[start]), denoisers, start)


@pytest.mark.parametrize(("steps", "whole", "calls"), [(4, 8, 4), (6, 10, 5)])
def test_hires_fix_runs_the_end_of_the_grid_that_it_derives_or_of_the_nearest(forge, steps, whole, calls):
    job = forge.run("txt2img", **hires(steps=steps))
    solver = load_solver("dyweight_sd15")
    table = solver.table(steps, SD)
    first = by_hand(table, noise([1]) * table.sigma_start, CAT)
    close(job.latents[-1], second_pass(solver.table(whole, SD), first, whole - calls))
    assert len(job.calls) == steps + calls
    assert job.info["Hires learned solver"] == "dyweight_sd15" and job.info["Learned solver calls"] == str(steps)
    assert job.info["Hires learned solver calls"] == f"{calls} of {whole}"
    assert ("instead of the last 6 of 12 steps" in job.seen["comments"]) == (steps == 6)
    assert "Schedule type" not in job.info and "Hires schedule type" not in job.info


def test_hires_fix_keeps_a_stock_samplers_first_pass_and_schedule(forge):
    fields = hires(
        steps=8, sampler_name="Euler", scheduler="Karras", hr_sampler_name="DS-Solver", hr_second_pass_steps=4
    )
    job = forge.run("txt2img", **fields)
    assert job.info["Sampler"] == "Euler" and job.info["Schedule type"] == "Karras"
    assert job.info["Hires learned solver"] == "ds_vp-dit" and job.info["Hires learned solver calls"] == "4 of 8"
    assert "Learned solver" not in job.info and len(job.calls) == 12


def test_hires_fix_may_hand_over_to_a_stock_sampler(forge):
    fields = hires(steps=6, hr_sampler_name="Euler", hr_scheduler="Karras", hr_second_pass_steps=3)
    job = forge.run("txt2img", **fields)
    assert job.info["Learned solver calls"] == "6" and "Hires learned solver" not in job.info
    assert job.info["Hires sampler"] == "Euler" and job.info["Hires schedule type"] == "Karras"


# ---- guidance


@pytest.fixture(scope="module")
def knots(forge):
    """Solvers with parameters for guidance 2 and 8, as files: at CFG for eps models, at embedded guidance for FLUX."""
    solvers = {"embedded": knotted_solver(kind="embedded"), "flow": knotted_solver()}
    solvers["vp"] = replace(solvers["flow"], card=replace(solvers["flow"].card, prediction="vp"))
    folder = forge.base / "data" / "models" / "solver_weights"
    folder.mkdir()
    for name, solver in solvers.items():
        solver.save(folder / f"{name}.safetensors")
    yield solvers
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("cfg", "nearest", "remark"), [(4.0, 4, ""), (12.0, 8, "this run uses CFG 12: the parameters for 8 are used")]
)
def test_the_jobs_cfg_chooses_between_the_knots(forge, knots, cfg, nearest, remark):
    fields = {**ONE, "cfg_scale": cfg, "sampler_name": "DS-Solver", "steps": 2}
    job = forge.run("txt2img", **fields, alwayson_scripts=learned("vp.safetensors"))
    table = knots["vp"].table(2, SD, nearest)
    close(job.latents[0], by_hand(table, noise([1]) * table.sigma_start, [guided(discrete, "a cat", cfg)]))
    fitted = "vp.safetensors: fitted at CFG 2, 8"
    assert (f"{fitted}, {remark}" in job.seen["comments"]) if remark else (fitted not in job.seen["comments"])


def test_the_second_pass_of_hires_fix_has_its_own_cfg(forge, knots):
    fields = hires(steps=2, cfg_scale=8.0, hr_cfg=2.0, sampler_name="DS-Solver")
    job = forge.run("txt2img", **fields, alwayson_scripts=learned("vp.safetensors"))
    low, high = (knots["vp"].table(2, SD, guidance) for guidance in (2, 8))
    first = by_hand(high, noise([1]) * high.sigma_start, [guided(discrete, "a cat", 8.0)])
    close(job.latents[-1], second_pass(low, first, 1, [guided(discrete, "a cat", 2.0)]))


@pytest.mark.parametrize(
    ("file", "guidance", "remark"),
    [
        ("embedded", 4.0, ""),
        ("flow", None, "flow.safetensors: fitted at CFG 2, 8, this run uses embedded guidance 4, CFG 1: the usual"),
    ],
)
def test_a_distilled_cfg_is_an_embedded_guidance(forge, knots, file, guidance, remark):
    fields = {**ONE, "cfg_scale": 1.0, "distilled_cfg_scale": 4.0, "sampler_name": "DS-Solver", "steps": 2}
    job = forge.run("txt2img", model="flux", **fields, alwayson_scripts=learned(f"{file}.safetensors"))
    table = knots[file].table(2, FlowNoise(tokens=16), guidance)
    close(job.latents[0], by_hand(table, noise([1], 16), [guided(flow, "a cat", 1.0)]))
    assert remark in job.seen["comments"] and ("fitted at" in job.seen["comments"]) == bool(remark)


# ---- the rest of the WebUI


def test_the_refiner_takes_over_at_its_share_of_the_calls(forge):
    fields = {**ONE, "sampler_name": "DyWeight", "steps": 6, "refiner_checkpoint": "refiner.safetensors"}
    job = forge.run("txt2img", **fields, refiner_switch_at=0.5)
    assert [call["model"] for call in job.calls] == 3 * ["eps"] + 3 * ["refiner"]
    table = load_solver("dyweight_sd15").table(6, SD)
    refined = guided(discrete, "a cat", 3.0, REFINED_MEAN)
    close(job.latents[0], by_hand(table, noise([1]) * table.sigma_start, [*3 * CAT, *3 * [refined]]))


def test_the_xyz_plot_has_an_axis_over_solver_files(forge):
    files = ["dyweight_sd15", "dyweight_lsun-bedroom-ldm"]
    info = next(s for s in forge.get("/sdapi/v1/script-info") if s["name"] == "x/y/z plot" and not s["is_img2img"])
    names = [argument["label"] for argument in info["args"]]
    arguments = [argument["value"] for argument in info["args"]]
    axis = info["args"][names.index("X type")]["choices"].index("[Learned Solvers] Solver file")
    arguments[names.index("X type")], arguments[names.index("X values") + 1] = axis, files
    for place in ("Y type", "Z type"):
        arguments[names.index(place)] = 0
    fields = {**ONE, "sampler_name": "DyWeight", "steps": 6, "script_name": "x/y/z plot", "script_args": arguments}
    job = forge.run("txt2img", **fields, alwayson_scripts=learned("dyweight_sd15"))
    assert job.error == "" and len(job.latents) == 2
    for file, latent in zip(files, job.latents, strict=True):
        table = load_solver(file).table(6, SD)
        close(latent, by_hand(table, noise([1]) * table.sigma_start, CAT))


def zero_snr_products():
    """Returns the cumulative alphas of arXiv 2305.08891, algorithm 1, with Forge's last value in place of 0."""
    roots = (1 / (SIGMAS.float() ** 2 + 1)).sqrt().double()
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    return torch.cat([roots[:-1] ** 2, torch.tensor([4.8973451890853435e-08], dtype=torch.float64)])


def test_zero_terminal_snr_gets_its_own_levels_and_a_remark(forge):
    settings = {"sd_noise_schedule": "Zero Terminal SNR"}
    fields = {**ONE, "sampler_name": "DS-Solver", "steps": 8}
    job = forge.run("txt2img", model="v", **fields, override_settings=settings)
    alphas = zero_snr_products()
    sigmas = ((1 - alphas) / alphas).sqrt()
    table = load_solver("ds_vp-dit").table(8, VPNoise.from_sigmas(sigmas.float()))
    assert table.sigma_start == pytest.approx(4518.76, rel=1e-4)
    answer = guided(partial(discrete, v=True, table=sigmas), "a cat", 3.0)
    close(job.latents[0], by_hand(table, noise([1]) * table.sigma_start, [answer]), 1e-3)
    assert "this model's noise starts at sigma 4519, Stable Diffusion's at 14.61" in job.seen["comments"]


def test_a_mismatch_is_reported_under_the_picture(forge):
    job = forge.run("txt2img", **ONE, sampler_name="DS-Solver", steps=6)
    assert "ds_vp-dit: fitted for DiT-XL/2 256x256 but used on SD15 (transfer)" in job.seen["comments"]
    job = forge.run(
        "txt2img", **{**ONE, "cfg_scale": 7.5, "width": 512, "height": 512}, sampler_name="DyWeight", steps=6
    )
    assert job.seen["comments"] == ""


def test_the_api_lists_the_samplers_and_the_script(forge):
    listed = {s["name"]: s for s in forge.get("/sdapi/v1/samplers")}
    assert listed["DyWeight"]["options"] == {} and listed["DS-Solver"]["aliases"] == []
    assert "learned solvers" in forge.get("/sdapi/v1/scripts")["img2img"]


def test_other_extensions_packages_of_the_same_names_stay_theirs(forge):
    assert forge.get("/probe")["owners"] == dict.fromkeys(("samplers", "nodes", "training"), "clash-a")
    first, *_ = re.findall("^Learned Solvers .*", forge.log, re.MULTILINE)
    assert (
        first
        == f"Learned Solvers 0.1.0: samplers DyWeight, DS-Solver; {len(list_solvers())} bundled solver files, 0 own"
    )


def test_reload_ui_registers_anew_and_a_second_copy_is_refused_in_one_line(forge):
    def registered():
        return {name: mark for name, mark in forge.get("/probe")["registered"] if name in ("DyWeight", "DS-Solver")}

    before, count = registered(), len(forge.get("/probe")["registered"])
    other = forge.base / "data" / "extensions" / "zz-second-copy"
    for folder in ("scripts", "samplers", "webui_extension", "solver_weights"):
        shutil.copytree(ROOT / folder, other / folder)
    try:
        forge.request("/probe/reload", {})
        deadline = time.time() + 60
        while forge.log.count(f"Learned Solvers {VERSION}") < 2 and time.time() < deadline:
            time.sleep(0.2)
        time.sleep(0.5)
        forge.wait()
    finally:
        shutil.rmtree(other)
    after = registered()
    assert len(forge.get("/probe")["registered"]) == count and after.keys() == before.keys()
    assert all(after[name] != before[name] for name in after)
    lines = re.findall("^Learned Solvers is not available .*", forge.log, re.MULTILINE)
    assert lines == [f"Learned Solvers is not available ({other.resolve()}): another copy is loaded from "
                     f"{ROOT}: remove one of the two"]  # fmt: skip
    job = forge.run("txt2img", **ONE, sampler_name="DyWeight", steps=4)
    assert job.error == ""
    table = load_solver("dyweight_sd15").table(4, SD)
    close(job.latents[0], by_hand(table, noise([1]) * table.sigma_start, CAT))
