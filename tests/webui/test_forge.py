"""The WebUI extension in a real Forge: its loader, API, samplers, passes and files; only networks are closed forms."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from host_server import ROOT
from learned_solvers.samplers import FlowNoise, VPNoise, list_solvers, load_solver
from learned_solvers.samplers.comfy_models import fingerprint
from learned_solvers.samplers.files.card import VERSION
from oracles import ds_solver, knotted_solver, sd_sigmas
from PIL import Image
from webui_oracle import MODELS, PICTURE, SD, SHADE, close, discrete, flow, from_first, from_noise, from_picture, guided

CAT = guided(discrete)
DYWEIGHT = load_solver("dyweight_sd15")


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
        ("sdxl", "DyWeight", "dyweight_sd15", 6),
        ("klein", "DyWeight", "dyweight_flux1-dev", 7),
        ("zimage", "DS-Solver", "ds_flow-flowdcn", 8),
        ("qwen", "DS-Solver", "ds_flow-flowdcn", 15),
        ("wan", "DS-Solver", "ds_flow-sit", 5),
    ],
)
def test_txt2img_equals_the_table_by_hand(forge, model, sampler, file, steps):
    answer, schedule, channels, *architectures = MODELS[model]
    architecture = architectures[forge.is_neo]
    if architecture is None:
        pytest.skip(f"{forge.title} has no {model} model")
    width, tokens = (128, 4 * 8) if forge.is_neo else (104, 4 * 7)  # Forge Neo rounds sizes to 64
    fields = {"width": width, "sampler_name": sampler, "steps": steps, "scheduler": "Karras"}
    job = forge.run("txt2img", model=model, file=file, **fields)
    solver, size = load_solver(file), {"channels": channels, "width": width, "ratio": 16 if model == "klein" else 8}
    close(job.latents[0], from_noise(solver.table(steps, schedule.with_tokens(tokens)), guided(answer), **size))
    assert len(job.calls) == steps and job.seen["sampling_steps"] == steps
    assert all(sorted(call["guide"]) == pytest.approx([0, 0.05]) for call in job.calls)  # both prompts
    assert job.info.items() >= {"Sampler": sampler, "Steps": str(steps)}.items()
    assert job.info["Learned solver"] == file and job.info["Learned solver calls"] == str(steps)
    assert "Schedule type" not in job.info
    assert (f"{file}: fitted for {solver.card.checkpoint}, you use {architecture}" in job.seen["comments"]) == (
        solver.card.architecture != architecture
    )


def test_each_picture_of_a_batch_has_its_own_seed_and_without_a_mismatch_no_comment(forge):
    fields = {"batch_size": 2, "n_iter": 2, "width": 512, "height": 512, "cfg_scale": 7.5}
    job = forge.run("txt2img", steps=4, **fields)
    table = DYWEIGHT.table(4, SD)
    expected = from_noise(table, guided(discrete, 7.5), 1, 2, 3, 4, width=512, height=512)
    close(torch.cat(job.latents), expected)
    assert len(job.infotexts) == 4 and len(job.calls) == 8 and job.seen["comments"] == ""


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"file": "dyweight_sd15", "steps": 7}, ("dyweight_sd15", "4, 6, 8 and 10 steps")),
        ({"file": "auto", "steps": 7}, ("dyweight_sd15 has 4, 6, 8 and 10 steps, not 7: set steps to 8",)),
        ({"file": "dyweight_sd15", "model": "flux"}, ("vp models", "flow")),
        ({"file": "dyweight_sd15", "sampler_name": "DS-Solver"}, ("DyWeight file", "sampler DyWeight")),
        ({"file": "../my.safetensors"}, ("'../my.safetensors'", "choose one of ds_flow-")),
        ({"file": "auto", "model": "v"}, ("no DyWeight solver is fitted for SD", "vp models")),
        # The API accepts these, the page's slider does not.
        *(({"denoising_strength": strength}, (f"between 0 and 1, got {strength}",)) for strength in (1.5, -0.25)),
    ],
)
def test_a_job_that_cannot_run_is_refused(forge, fields, words):
    tab = {"init_images": [encoded(SHADE)]} if "denoising_strength" in fields else {}
    error = forge.run("img2img" if tab else "txt2img", **{"steps": 6, **tab, **fields}).error
    assert all(word in error for word in words), error


# ---- the choice of file and steps


def test_nearest_sets_the_steps_before_the_prompt_schedule_is_made(forge):
    job = forge.run("txt2img", prompt="[aaaaaaaa:bb:0.5]", steps=7, nearest=True)
    guides = [max(call["guide"]) for call in job.calls]
    assert guides == pytest.approx(5 * [0.08] + 3 * [0.02])  # Forge switches after step 4, half of 8; of 7 after 3
    assert job.info["Steps"] == "8" and "7 steps" in job.seen["comments"]


def test_nearest_takes_a_file_of_the_architecture_before_a_transfer_with_the_steps(forge):
    path = ds_solver(5, prediction="vp", architecture="SD15").save(forge.solver("exact"))
    job = forge.run("txt2img", steps=7, nearest=True, sampler_name="DS-Solver")  # ds_vp-dit transfers, and has 7
    path.unlink()
    assert job.info["Learned solver"] == "exact.safetensors" and job.info["Steps"] == "5"
    assert len(job.calls) == 5 and "using the nearest count, 5" in job.seen["comments"]


@pytest.mark.parametrize(
    ("accordion", "file", "steps"), [(None, "dyweight_lsun-bedroom-ldm", "7"), ("dyweight_sd15", "dyweight_sd15", "8")]
)
def test_the_settings_apply_unless_the_accordion_names_a_file(forge, accordion, file, steps):
    settings = {"learned_solvers_file": "dyweight_lsun-bedroom-ldm", "learned_solvers_nearest": True}
    job = forge.run("txt2img", steps=7, override_settings=settings, file=accordion)
    assert job.info["Learned solver"] == file and job.info["Steps"] == steps


def test_the_xyz_plot_has_an_axis_over_solver_files(forge):
    files = ["dyweight_sd15", "dyweight_lsun-bedroom-ldm"]
    info = next(s for s in forge.get("/sdapi/v1/script-info") if s["name"] == "x/y/z plot" and not s["is_img2img"])
    labels = [argument["label"] for argument in info["args"]]
    values = [argument["value"] for argument in info["args"]]
    x_type = labels.index("X type")
    values[x_type] = info["args"][x_type]["choices"].index("[Learned Solvers] Solver file")
    values[labels.index("X values") + 1] = files
    values[labels.index("Y type")] = values[labels.index("Z type")] = 0
    job = forge.run("txt2img", steps=6, script_name="x/y/z plot", script_args=values, file="dyweight_sd15")
    assert len(job.latents) == 2
    for file, latent in zip(files, job.latents, strict=True):
        close(latent, from_noise(load_solver(file).table(6, SD), CAT))


# ---- models


def test_the_refiner_takes_over_at_its_share_of_the_calls(forge):
    settings = {"refiner_use_steps": True} if forge.is_neo else {}  # Forge has no other way
    fields = {"refiner_checkpoint": "refiner.safetensors", "refiner_switch_at": 0.5, "override_settings": settings}
    job = forge.run("txt2img", steps=6, **fields)
    assert [call["model"] for call in job.calls] == 3 * ["eps"] + 3 * ["refiner"]
    denoisers = 3 * [CAT] + 3 * [guided(discrete, mean=-0.5)]
    close(job.latents[0], from_noise(DYWEIGHT.table(6, SD), denoisers))


@pytest.mark.parametrize(
    ("model", "refiner", "file", "answer", "switch"),
    [("eps", "refiner", "dyweight_sd15", discrete, 2.0), ("wan", "wan-low", "ds_flow-sit", flow, 0.875)],
)
def test_in_forge_neo_the_refiner_takes_over_at_a_noise_level(forge, model, refiner, file, answer, switch):
    if not forge.is_neo:
        pytest.skip("Forge switches by the share of the steps only")
    schedule, channels, *architectures = MODELS[model][1:]
    solver = load_solver(file)
    replace(solver, card=replace(solver.card, architecture=architectures[1], boundary=0.5)).save(forge.solver("joined"))
    sampler = "DyWeight" if solver.family == "dyweight" else "DS-Solver"
    request = {"model": model, "steps": 8, "sampler_name": sampler, "file": "joined.safetensors"}
    request["refiner_checkpoint"] = f"{refiner}.safetensors"
    job, as_fitted = (forge.run("txt2img", **request, refiner_switch_at=level) for level in (switch, 0.5))
    remark = "fitted for a change at sigma 0.5, you use two models that change at sigma"
    assert f"{remark} {switch:g}" in job.seen["comments"] and remark not in as_fitted.seen["comments"]
    table = solver.table(8, schedule)
    first = int((table.sigmas > switch).sum())
    assert 0 < first < 8 and [call["model"] for call in job.calls] == first * [model] + (8 - first) * [refiner]
    denoisers = first * [guided(answer)] + (8 - first) * [guided(answer, mean=-0.5)]
    close(job.latents[0], from_noise(table, denoisers, channels=channels))


def zero_snr_products():
    """Cumulative alphas of arXiv 2305.08891, algorithm 1, with Forge's last value instead of 0."""
    roots = (1 / (sd_sigmas().float() ** 2 + 1)).sqrt().double()
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    return torch.cat([roots[:-1] ** 2, torch.tensor([4.8973451890853435e-08], dtype=torch.float64)])


def test_zero_terminal_snr_gets_its_own_levels_and_a_remark(forge):
    settings = {"sd_noise_schedule": "Zero Terminal SNR"}
    job = forge.run("txt2img", model="v", sampler_name="DS-Solver", steps=8, override_settings=settings)
    alphas = zero_snr_products()
    sigmas = ((1 - alphas) / alphas).sqrt()
    table = load_solver("ds_vp-dit").table(8, VPNoise.from_sigmas(sigmas.float()))
    assert table.sigma_start == pytest.approx(4518.76, rel=1e-4)
    close(job.latents[0], from_noise(table, guided(partial(discrete, v=True, table=sigmas))), 1e-3)
    assert "this model's noise starts at sigma 4519, but Stable Diffusion's at 14.61" in job.seen["comments"]


# ---- image to image


def encoded(shade, right_half=None):
    """A grey picture as the API takes it, its right half of another shade."""
    picture, buffer = Image.new("RGB", (64, 64), 3 * (shade,)), io.BytesIO()
    if right_half is not None:
        picture.paste(3 * (right_half,), (32, 0, 64, 64))
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def image_to_image(forge, steps, strength, **fields):
    return forge.run("img2img", init_images=[encoded(SHADE)], steps=steps, denoising_strength=strength, **fields)


@pytest.mark.parametrize(
    ("steps", "strength", "fields", "whole", "calls"),
    [
        *((6, 0.75, {}, 6, 5), (6, 1.0, {}, 6, 6), (4, 0.3, {}, 4, 2), (10, 0.5, {}, 10, 6)),
        (7, 0.6, {"model": "flux", "cfg_scale": 1.0}, 7, 5),
        # Forge requests exactly 5 steps, the last of 9: the nearest grid runs.
        (5, 0.55, {"override_settings": {"img2img_fix_steps": True}}, 10, 6),
    ],
)
def test_image_to_image_runs_the_end_of_the_grid(forge, steps, strength, fields, whole, calls):
    job, flux = image_to_image(forge, steps, strength, **fields), "model" in fields
    solver, schedule, denoiser = DYWEIGHT, SD, CAT
    if flux:
        solver, schedule, denoiser = load_solver("dyweight_flux1-dev"), FlowNoise(tokens=16), guided(flow, 1.0)
    close(job.latents[-1], from_picture(solver.table(whole, schedule), denoiser, whole - calls, flux))
    assert len(job.calls) == calls and job.seen["sampling_steps"] == calls
    assert job.info["Learned solver calls"] == (str(steps) if calls == steps else f"{calls} of {whole}")
    remark = "9 steps: ran 6 of 10 instead of the last 5 of 9 steps (denoising strength 0.55)"
    assert (remark in job.seen["comments"]) == (steps == 5)


def test_inpainting_keeps_the_unmasked_half_and_samples_the_other(forge):
    mask = {"mask": encoded(255, 0), "mask_blur": 0, "inpainting_fill": 1, "inpaint_full_res": False}
    latent = image_to_image(forge, 8, 0.7, **mask).latents[-1]
    close(latent[..., :4], from_picture(DYWEIGHT.table(8, SD), CAT, 2)[..., :4])  # the networks answer per pixel
    close(latent[..., 4:], PICTURE[..., 4:])


# ---- hires fix


def hires(forge, steps, **fields):
    second = {"enable_hr": True, "hr_scale": 2.0, "hr_upscaler": "Latent", "hr_cfg": 3.0, "denoising_strength": 0.5}
    second["hr_additional_modules"] = ["Use same choices"]
    return forge.run("txt2img", steps=steps, **{**second, **fields})


@pytest.mark.parametrize(("steps", "whole", "calls"), [(4, 8, 4), (6, 10, 5)])
def test_hires_fix_runs_the_end_of_the_grid_that_forge_derives_or_of_the_nearest(forge, steps, whole, calls):
    job = hires(forge, steps)
    first = from_noise(DYWEIGHT.table(steps, SD), CAT)
    close(job.latents[-1], from_first(DYWEIGHT.table(whole, SD), first, CAT, whole - calls))
    assert len(job.calls) == steps + calls and job.seen["sampling_steps"] == calls
    assert job.info["Hires learned solver"] == "dyweight_sd15" and job.info["Learned solver calls"] == str(steps)
    assert job.info["Hires learned solver calls"] == f"{calls} of {whole}"
    assert ("instead of the last 6 of 12 steps" in job.seen["comments"]) == (steps == 6)
    assert "Schedule type" not in job.info and "Hires schedule type" not in job.info


@pytest.mark.parametrize(
    ("file", "nearest", "solver", "whole"),
    [
        ("dyweight_lsun-bedroom-ldm", False, "dyweight_lsun-bedroom-ldm", 7),
        ("dyweight_sd15", True, "dyweight_sd15", 8),
        ("dyweight_sd15", False, None, 0),
    ],
)
def test_a_detailers_job_keeps_file_and_policy(forge, file, nearest, solver, whole):
    inner = forge.run("txt2img", prompt="a detail", steps=4, file=file, nearest=nearest).seen["inner"]
    assert inner.get("Learned solver") == solver
    if solver:
        assert inner["Learned solver calls"].endswith(f" of {whole}")
    else:
        assert "dyweight_sd15 has 4, 6, 8 and 10 steps, not 7" in inner["refused"]


def test_auto_takes_the_file_of_the_checkpoint_and_names_the_others(forge):
    refiner = SimpleNamespace(diffusion_model=torch.nn.Module())
    refiner.diffusion_model.weight = torch.nn.Parameter(torch.tensor([-0.5]))  # of tiny_engine.py
    for name, facts in {
        "named": {"checkpoint": "eps.safetensors", "date": "2030-01-01"},
        "hashed": {"checkpoint": "other", "fingerprint": fingerprint(refiner), "date": "2030-02-01"},
        "newest": {"checkpoint": "unknown", "date": "2030-03-01"},
    }.items():
        replace(DYWEIGHT, card=replace(DYWEIGHT.card, **facts)).save(forge.solver(f"mine/{name}"))
    for model, chosen in (("eps", "named"), ("refiner", "hashed"), ("picture", "newest")):
        job = forge.run("txt2img", model=model, steps=4)
        assert job.info["Learned solver"] == f"mine/{chosen}.safetensors"
        assert "also fitted for SD15: mine/" in job.seen["comments"]
    comments = forge.run("txt2img", steps=4, file="mine/hashed.safetensors").seen["comments"]
    assert "fitted for other, you use another SD15 checkpoint" in comments and "also fitted" not in comments
    shutil.rmtree(forge.solver("mine/named").parent)


def test_auto_takes_the_users_own_file_first_and_hires_fix_keeps_it(forge):
    def solver(*counts):
        card = replace(DYWEIGHT.card, steps={n: DYWEIGHT.card.steps[n] for n in counts})
        return replace(DYWEIGHT, card=card, parameters={n: DYWEIGHT.parameters[n] for n in counts})

    folder = forge.solver("mine/fitted").parent
    solver(4, 6).save(folder / "fitted.safetensors")
    solver(6).save(folder / "another.safetensors")
    (folder / "broken.safetensors").write_bytes(b"no such thing")
    (folder / os.fsdecode(b"caf\xe9.safetensors")).write_bytes(b"a name that is not UTF-8")
    job = hires(forge, 4)
    assert job.info["Learned solver"] == job.info["Hires learned solver"] == "mine/fitted.safetensors"
    assert job.info["Hires learned solver calls"] == "3 of 6"  # the bundled file has the 8 steps that Forge derives
    assert re.search("skipped in automatic selection: .*broken.safetensors: ", forge.log)
    assert forge.log.count(r"the name of 'mine/caf\udce9.safetensors' in ") == 1


def test_one_pass_of_hires_fix_may_have_a_stock_sampler_and_schedule(forge):
    stock = {"sampler_name": "Euler", "scheduler": "Karras"}
    job = hires(forge, 8, **stock, hr_sampler_name="DS-Solver", hr_second_pass_steps=6)
    infos = {"Sampler": "Euler", "Schedule type": "Karras", "Hires learned solver": "ds_vp-dit"}
    assert job.info.items() >= {**infos, "Hires learned solver calls": "5 of 10"}.items()
    assert "Learned solver" not in job.info and len(job.calls) == 13
    job = hires(forge, 6, hr_sampler_name="Euler", hr_scheduler="Karras", hr_second_pass_steps=3)
    infos = {"Learned solver calls": "6", "Hires sampler": "Euler", "Hires schedule type": "Karras"}
    assert job.info.items() >= infos.items() and "Hires learned solver" not in job.info


# ---- guidance


@pytest.fixture
def knots(forge):
    """Solvers with parameters for guidance 2 and 8, as files: at CFG for eps and flow models, embedded for FLUX."""
    solvers = {"embedded": knotted_solver(kind="embedded"), "flow": knotted_solver()}
    solvers["vp"] = replace(solvers["flow"], card=replace(solvers["flow"].card, prediction="vp"))
    for name, solver in solvers.items():
        solver.save(forge.solver(name))
    return solvers


def test_each_pass_uses_the_parameters_for_its_own_cfg(forge, knots):
    job = hires(forge, 2, cfg_scale=4.0, hr_cfg=12.0, sampler_name="DS-Solver", file="vp.safetensors")
    first = from_noise(knots["vp"].table(2, SD, 4), guided(discrete, 4.0))
    close(job.latents[-1], from_first(knots["vp"].table(2, SD, 8), first, guided(discrete, 12.0), 1))
    assert "you use 12: the parameters for 8 are used" in job.seen["comments"]
    assert job.seen["comments"].count("fitted at") == 1  # the first pass is within the fitted range


@pytest.mark.parametrize(("file", "guidance"), [("embedded", 4.0), ("flow", None)])
def test_a_distilled_cfg_is_an_embedded_guidance(forge, knots, file, guidance):
    fields = {"cfg_scale": 1.0, "distilled_cfg_scale": 4.0, "sampler_name": "DS-Solver"}
    job = forge.run("txt2img", model="flux", steps=2, file=f"{file}.safetensors", **fields)
    table = knots[file].table(2, FlowNoise(tokens=16), guidance)
    close(job.latents[0], from_noise(table, guided(flow, 1.0), channels=16))
    remark = "flow.safetensors: fitted at CFG 2, 8, you use embedded guidance 4, CFG 1: the usual"
    assert (remark in job.seen["comments"]) == ("fitted at" in job.seen["comments"]) == (file == "flow")


# ---- the loader


def test_the_extension_is_loaded_next_to_others_with_packages_of_the_same_names(forge):
    owners = {"samplers": "a-clash", "training": "a-clash", "nodes": "zz-clash", "webui_extension": "zz-clash"}
    assert forge.get("/probe")["owners"] == owners
    first, *_ = re.findall("^Learned Solvers .*", forge.log, re.MULTILINE)
    assert first.startswith(f"Learned Solvers {VERSION}: samplers DyWeight, DS-Solver; {len(list_solvers())} bundled")
    samplers = {s["name"]: s for s in forge.get("/sdapi/v1/samplers")}
    assert samplers["DyWeight"]["options"] == {} and samplers["DS-Solver"]["aliases"] == []
    assert "learned solvers" in forge.get("/sdapi/v1/scripts")["img2img"]


def test_registration_needs_no_function_that_finds_a_sampler(forge):
    before = forge.get("/probe")["registered"]
    forge.request("/probe/classic", {})
    after = forge.get("/probe")["registered"]
    assert [name for name, _ in after] == [name for name, _ in before] and after != before


def test_reload_ui_registers_again_and_a_second_copy_is_refused_in_one_line(forge):
    def registered():
        samplers = forge.get("/probe")["registered"]
        return len(samplers), {name: mark for name, mark in samplers if name in ("DyWeight", "DS-Solver")}

    (count, before), loaded = registered(), forge.log.count(f"Learned Solvers {VERSION}")
    other = forge.base / "data" / "extensions" / "zz-second-copy"
    for folder in ("scripts", "samplers", "webui_extension", "solver_weights"):
        shutil.copytree(ROOT / folder, other / folder)
    try:
        forge.request("/probe/reload", {})
        deadline = time.time() + 60
        while forge.log.count(f"Learned Solvers {VERSION}") <= loaded and time.time() < deadline:
            time.sleep(0.2)
        time.sleep(0.5)
        forge.wait()
    finally:
        shutil.rmtree(other)
    count_after, after = registered()
    assert count_after == count and after.keys() == before.keys()
    assert all(after[name] != before[name] for name in after)
    (line,) = re.findall("^Learned Solvers is not available .*", forge.log, re.MULTILINE)
    assert f"({other.resolve()}): another copy is loaded from {ROOT}" in line
    job = forge.run("txt2img", steps=4)
    close(job.latents[0], from_noise(DYWEIGHT.table(4, SD), CAT))
