"""The WebUI extension in a real Forge: its loader, API, samplers and files; only the networks are closed forms."""

from __future__ import annotations

import re
import shutil
import time
from functools import partial

import pytest
import torch
from host_server import ROOT
from learned_solvers.samplers import EDMNoise, FlowNoise, VPNoise, list_solvers, load_solver
from learned_solvers.samplers.files.card import VERSION
from webui_oracle import REFINED_MEAN, SD, SIGMAS, close, discrete, edm, flow, from_noise, guided

pytestmark = pytest.mark.forge
CAT = guided(discrete)
MODELS = {
    "eps": (discrete, SD, 4, "SD15"),
    "v": (partial(discrete, v=True), SD, 4, "SD20"),
    "flux": (flow, FlowNoise(tokens=4 * 7), 16, "Flux"),
    "edm": (edm, EDMNoise(0.002, 120.0), 4, "SDXL"),
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
    answer, schedule, channels, architecture = MODELS[model]
    fields = {"width": 104, "sampler_name": sampler, "steps": steps, "scheduler": "Karras"}
    job = forge.run("txt2img", model=model, file=file, **fields)
    solver = load_solver(file)
    close(job.latents[0], from_noise(solver.table(steps, schedule), guided(answer), channels=channels, width=104))
    assert len(job.calls) == steps and job.seen["sampling_steps"] == steps
    assert all(sorted(call["guide"]) == pytest.approx([0, 0.05]) for call in job.calls)  # both prompts
    assert job.info.items() >= {"Sampler": sampler, "Steps": str(steps)}.items()
    assert job.info["Learned solver"] == file and job.info["Learned solver calls"] == str(steps)
    assert "Schedule type" not in job.info
    assert (f"{file}: fitted for {solver.card.checkpoint} but used on {architecture}" in job.seen["comments"]) == (
        solver.card.architecture != architecture
    )


def test_each_picture_of_a_batch_has_its_own_seed_and_without_a_mismatch_no_comment(forge):
    fields = {"batch_size": 2, "n_iter": 2, "width": 512, "height": 512, "cfg_scale": 7.5}
    job = forge.run("txt2img", steps=4, **fields)
    table = load_solver("dyweight_sd15").table(4, SD)
    expected = from_noise(table, guided(discrete, 7.5), 1, 2, 3, 4, width=512, height=512)
    close(torch.cat(job.latents), expected)
    assert len(job.infotexts) == 4 and len(job.calls) == 8 and job.seen["comments"] == ""


@pytest.mark.parametrize(
    ("model", "sampler", "file", "steps", "words"),
    [
        ("eps", "DyWeight", "dyweight_sd15", 7, ("dyweight_sd15", "4, 6, 8 and 10 steps")),
        ("eps", "DyWeight", "auto", 7, ("has 7 steps", "dyweight_sd15 (4, 6, 8, 10 steps)")),
        ("flux", "DyWeight", "dyweight_sd15", 6, ("vp models", "flow")),
        ("eps", "DS-Solver", "dyweight_sd15", 6, ("DyWeight file", "sampler DyWeight")),
        ("eps", "DyWeight", "../my.safetensors", 6, ("'../my.safetensors'", "choose one of ds_flow-")),
        ("v", "DyWeight", "auto", 6, ("SD20 (vp)", "has 6 steps")),
    ],
)
def test_a_solver_that_cannot_run_the_job_is_refused(forge, model, sampler, file, steps, words):
    error = forge.run("txt2img", model=model, file=file, sampler_name=sampler, steps=steps).error
    assert all(word in error for word in words), error


# ---- the choice of file and steps


def test_nearest_sets_the_steps_before_the_prompt_schedule_is_made(forge):
    job = forge.run("txt2img", prompt="[aaaaaaaa:bb:0.5]", steps=7, nearest=True)
    guides = [max(call["guide"]) for call in job.calls]
    assert guides == pytest.approx(5 * [0.08] + 3 * [0.02])  # Forge switches after step 4, half of 8; of 7 after 3
    assert job.info["Steps"] == "8" and "7 steps" in job.seen["comments"]


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
    job = forge.run("txt2img", steps=6, refiner_checkpoint="refiner.safetensors", refiner_switch_at=0.5)
    assert [call["model"] for call in job.calls] == 3 * ["eps"] + 3 * ["refiner"]
    denoisers = 3 * [CAT] + 3 * [guided(discrete, mean=REFINED_MEAN)]
    close(job.latents[0], from_noise(load_solver("dyweight_sd15").table(6, SD), denoisers))


def zero_snr_products():
    """Cumulative alphas of arXiv 2305.08891, algorithm 1, with Forge's last value instead of 0."""
    roots = (1 / (SIGMAS.float() ** 2 + 1)).sqrt().double()
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


# ---- the loader


def test_the_extension_is_loaded_next_to_others_with_packages_of_the_same_names(forge):
    owners = {"samplers": "a-clash", "training": "a-clash", "nodes": "zz-clash", "webui_extension": "zz-clash"}
    assert forge.get("/probe")["owners"] == owners
    first, *_ = re.findall("^Learned Solvers .*", forge.log, re.MULTILINE)
    assert first.startswith(f"Learned Solvers {VERSION}: samplers DyWeight, DS-Solver; {len(list_solvers())} bundled")
    samplers = {s["name"]: s for s in forge.get("/sdapi/v1/samplers")}
    assert samplers["DyWeight"]["options"] == {} and samplers["DS-Solver"]["aliases"] == []
    assert "learned solvers" in forge.get("/sdapi/v1/scripts")["img2img"]


def test_reload_ui_registers_anew_and_a_second_copy_is_refused_in_one_line(forge):
    def registered():
        samplers = forge.get("/probe")["registered"]
        return len(samplers), {name: mark for name, mark in samplers if name in ("DyWeight", "DS-Solver")}

    count, before = registered()
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
    count_after, after = registered()
    assert count_after == count and after.keys() == before.keys()
    assert all(after[name] != before[name] for name in after)
    (line,) = re.findall("^Learned Solvers is not available .*", forge.log, re.MULTILINE)
    assert f"({other.resolve()}): another copy is loaded from {ROOT}" in line
    job = forge.run("txt2img", steps=4)
    close(job.latents[0], from_noise(load_solver("dyweight_sd15").table(4, SD), CAT))
