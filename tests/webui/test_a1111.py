"""The WebUI extension in AUTOMATIC1111's own modules: loader, processing, samplers, settings and page; see run.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from forge_host import FIELDS
from host_server import HOSTS, ROOT, find_checkouts
from learned_solvers.samplers import load_solver
from safetensors.torch import load_file, save_file
from webui_oracle import PICTURE, SD, SHADE, close, edm, from_first, from_noise, from_picture, guided

pytestmark = pytest.mark.a1111
NO_A1111 = (
    "no AUTOMATIC1111: set A1111_PATH to a checkout of stable-diffusion-webui v1.10.1 with a venv in it that has "
    "gradio 3.41.2"
)
ONE = {**FIELDS, "scheduler": "Karras"}
INPAINT = {"mask_blur": 0, "inpainting_fill": 1, "inpaint_full_res": False}
HIRES = {"enable_hr": True, "hr_upscaler": "Latent", "denoising_strength": 0.5, "hr_scale": 2}
CAT = guided(edm)  # k-diffusion calls the model at fractional timesteps: the answer is exact
DYWEIGHT = load_solver("dyweight_sd15")
JOBS = {
    "dyweight": {"fields": {**ONE, "steps": 6}},
    "ds": {"fields": {**ONE, "steps": 8, "sampler_name": "DS-Solver"}},
    "v": {"fields": {**ONE, "steps": 6}, "v": True, "accordion": ["dyweight_sd15", False]},
    "missing": {"fields": {**ONE, "steps": 7}},
    "nearest": {"fields": {**ONE, "steps": 7}, "accordion": ["auto", True]},
    "img2img": {"fields": {**ONE, "steps": 8, "denoising_strength": 0.7}, "shade": SHADE},
    "inpaint": {"fields": {**ONE, **INPAINT, "steps": 8, "denoising_strength": 0.7}, "shade": SHADE, "mask": True},
    "hires": {"fields": {**ONE, **HIRES, "steps": 6}},
}


@pytest.fixture(scope="module")
def a1111(tmp_path_factory):
    """The results of all jobs, which run.py runs in one process on a copy of the checkout."""
    checkouts = find_checkouts("A1111_PATH", ("a1111",), "modules/sd_hijack.py")
    checkout = next((folder for folder in checkouts if (folder / "venv/bin/python").exists()), None)
    if checkout is None:
        pytest.skip(NO_A1111)
    k_diffusion = find_spec("k_diffusion")
    if k_diffusion is None or k_diffusion.origin is None:
        pytest.skip("no k-diffusion: pip install --no-deps k-diffusion")
    base = tmp_path_factory.mktemp("a1111")
    webui, data = base / "webui", base / "data"
    ignored = shutil.ignore_patterns("venv", ".git", "extensions-builtin", "__pycache__")
    shutil.copytree(checkout, webui, ignore=ignored)
    # The files by which it finds its repositories; run.py replaces their content.
    repositories = webui / "repositories"
    for file in (
        repositories / "stable-diffusion-stability-ai/ldm/models/diffusion/ddpm.py",
        repositories / "generative-models/sgm/__init__.py",
        repositories / "BLIP/models/blip.py",
        repositories / "stable-diffusion-webui-assets/empty",
    ):
        file.parent.mkdir(parents=True)
        file.touch()
    models = data / "models" / "Stable-diffusion"
    for folder in (repositories / "k-diffusion", webui / "extensions-builtin", data / "extensions", models):
        folder.mkdir(parents=True)
    (repositories / "k-diffusion" / "k_diffusion").symlink_to(Path(k_diffusion.origin).parent)
    (data / "extensions" / "learned-solvers").symlink_to(ROOT, target_is_directory=True)
    save_file({"weight": torch.zeros(1)}, models / "tiny.safetensors")
    settings = {"live_previews_enable": False, "randn_source": "CPU", "samples_save": False, "grid_save": False}
    (data / "config.json").write_text(json.dumps(settings))
    (base / "jobs.json").write_text(json.dumps(list(JOBS.values())))
    command = [str(checkout / "venv/bin/python"), str(HOSTS / "tiny_a1111" / "run.py"), str(base / "jobs.json")]
    command += [str(base), "--use-cpu", "all", "--no-half", "--precision", "full", "--skip-torch-cuda-test"]
    command += ["--no-prompt-history", "--no-download-sd-model", "--data-dir", str(data)]
    command += ["--ui-settings-file", str(data / "config.json"), "--ui-config-file", str(data / "ui-config.json")]
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    completed = subprocess.run(command, cwd=webui, env=environment, capture_output=True, text=True, timeout=400)
    assert completed.returncode == 0, completed.stdout[-2000:] + completed.stderr[-4000:]
    results = json.loads((base / "results.json").read_text())
    tensors = load_file(base / "latents.safetensors")
    jobs = dict(zip(JOBS, results.pop("jobs"), strict=True))
    for i, job in enumerate(jobs.values()):
        job["latents"] = [tensors[f"{i}/{j}"] for j in range(sum(key.startswith(f"{i}/") for key in tensors))]
    return {**results, "jobs": jobs, "log": completed.stdout + completed.stderr}


@pytest.mark.parametrize(
    ("name", "file", "steps"),
    [
        ("dyweight", "dyweight_sd15", 6),
        ("ds", "ds_vp-dit", 8),
        ("v", "dyweight_sd15", 6),
        ("nearest", "dyweight_sd15", 8),
    ],
)
def test_txt2img_equals_the_table_by_hand(a1111, name, file, steps):
    job = a1111["jobs"][name]
    close(job["latents"][0], from_noise(load_solver(file).table(steps, SD), CAT))
    assert len(job["calls"]) == steps == job["sampling_steps"]
    assert f"Steps: {steps}, " in job["infotext"] and "Schedule type" not in job["infotext"]
    assert f"Learned solver: {file}, Learned solver calls: {steps}" in job["infotext"]


def test_missing_steps_are_refused(a1111):
    missing = a1111["jobs"]["missing"]
    assert "dyweight_sd15 has 4, 6, 8 and 10 steps, not" in missing["error"] and missing["calls"] == []
    assert "7 steps" in a1111["jobs"]["nearest"]["comments"]


def test_image_to_image_and_inpainting_run_the_end_of_the_grid(a1111):
    expected = from_picture(DYWEIGHT.table(8, SD), CAT, 2)
    close(a1111["jobs"]["img2img"]["latents"][-1], expected)
    inpainted = a1111["jobs"]["inpaint"]["latents"][-1]
    close(inpainted[..., :4], expected[..., :4])
    close(inpainted[..., 4:], PICTURE[..., 4:])


def test_hires_fix_runs_the_end_of_the_nearest_grid(a1111):
    job, first = a1111["jobs"]["hires"], from_noise(DYWEIGHT.table(6, SD), CAT)
    close(job["latents"][-1], from_first(DYWEIGHT.table(10, SD), first, CAT, 5))
    assert "Hires learned solver calls: 5 of 10" in job["infotext"]
    assert "instead of the last 6 of 12 steps" in job["comments"]


def test_the_page_has_samplers_accordion_and_settings_once_after_a_reload(a1111):
    assert [name for name in a1111["samplers"] if name in ("DyWeight", "DS-Solver")] == ["DyWeight", "DS-Solver"]
    # A choice of a drop-down is a name, or a pair of name and value.
    choices = {
        box: {choice[0] if isinstance(choice, list) else choice for choice in a1111["dropdowns"][box]}
        for box in ("txt2img_sampling", "setting_learned_solvers_file")
    }
    assert choices["txt2img_sampling"] >= {"DyWeight", "DS-Solver"}
    assert choices["setting_learned_solvers_file"] >= {"auto", "dyweight_sd15"}
    assert a1111["labels"].count("Learned Solvers") >= 2  # in both tabs
    assert "not available" not in a1111["log"]
