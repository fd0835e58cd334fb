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
from forge_oracle import SIGMAS, by_hand, edm, guided, noise
from learned_solvers.samplers import VPNoise, load_solver
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

pytestmark = pytest.mark.a1111
ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "tests" / "hosts" / "tiny_a1111" / "run.py"
WANTED = "set A1111_PATH to a checkout of stable-diffusion-webui v1.10.1 with a venv in it that has gradio 3.41.2"
SD = VPNoise.from_sigmas(SIGMAS.float())
ONE = {"prompt": "a cat", "seed": 1, "width": 64, "height": 64, "cfg_scale": 3.0, "sampler_name": "DyWeight"}
ONE |= {"scheduler": "Karras"}
INPAINT = {"mask_blur": 0, "inpainting_fill": 1, "inpaint_full_res": False}
HIRES = {"enable_hr": True, "hr_upscaler": "Latent", "denoising_strength": 0.5, "hr_scale": 2}
CAT = [guided(edm, "a cat", 3.0)]  # k-diffusion asks at fractional timesteps: the answer is exact
JOBS = {
    "dyweight": {"fields": {**ONE, "steps": 6}},
    "ds": {"fields": {**ONE, "steps": 8, "sampler_name": "DS-Solver"}},
    "v": {"fields": {**ONE, "steps": 6}, "v": True, "accordion": ["dyweight_sd15", False]},
    "missing": {"fields": {**ONE, "steps": 7}},
    "nearest": {"fields": {**ONE, "steps": 7}, "accordion": ["auto", True]},
    "img2img": {"fields": {**ONE, "steps": 8, "denoising_strength": 0.7}, "shade": 200},
    "inpaint": {"fields": {**ONE, **INPAINT, "steps": 8, "denoising_strength": 0.7}, "shade": 200, "mask": True},
    "hires": {"fields": {**ONE, **HIRES, "steps": 6}},
}


def checkout() -> Path | None:
    named = os.environ.get("A1111_PATH")
    place = Path(named) if named else Path.home() / "a1111"
    if named and not (place / "modules" / "sd_hijack.py").is_file():
        raise FileNotFoundError(f"A1111_PATH names {named}, which is no AUTOMATIC1111: name a checkout, or unset it")
    return place if (place / "modules" / "sd_hijack.py").is_file() and (place / "venv/bin/python").exists() else None


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Returns what all jobs left, which run.py runs in one process on a copy of the checkout."""
    if (place := checkout()) is None:
        pytest.skip(f"no AUTOMATIC1111: {WANTED}")
    k_diffusion = find_spec("k_diffusion")
    if k_diffusion is None or k_diffusion.origin is None:
        pytest.skip("no k-diffusion: pip install --no-deps k-diffusion")
    base = tmp_path_factory.mktemp("a1111")
    webui, data = base / "webui", base / "data"
    left_out = ("venv", ".git", "extensions-builtin", "__pycache__")
    shutil.copytree(place, webui, ignore=shutil.ignore_patterns(*left_out))
    # The files by which it finds its repositories; run.py stands in for what would be in them.
    repositories = {
        "stable-diffusion-stability-ai": "ldm/models/diffusion/ddpm.py",
        "generative-models": "sgm/__init__.py",
    }
    for name, file in {**repositories, "BLIP": "models/blip.py", "stable-diffusion-webui-assets": "empty"}.items():
        (webui / "repositories" / name / file).parent.mkdir(parents=True)
        (webui / "repositories" / name / file).touch()
    (webui / "repositories" / "k-diffusion").mkdir()
    (webui / "repositories" / "k-diffusion" / "k_diffusion").symlink_to(Path(k_diffusion.origin).parent)
    (webui / "extensions-builtin").mkdir()
    (data / "extensions").mkdir(parents=True)
    (data / "extensions" / "learned-solvers").symlink_to(ROOT, target_is_directory=True)
    (data / "models" / "Stable-diffusion").mkdir(parents=True)
    save_file({"weight": torch.zeros(1)}, data / "models" / "Stable-diffusion" / "tiny.safetensors")
    settings = {"live_previews_enable": False, "randn_source": "CPU", "samples_save": False, "grid_save": False}
    (data / "config.json").write_text(json.dumps(settings))
    (base / "jobs.json").write_text(json.dumps(list(JOBS.values())))
    command = [str(place / "venv/bin/python"), str(RUN), str(base / "jobs.json"), str(base), "--use-cpu", "all"]
    command += [
        "--no-half",
        "--precision",
        "full",
        "--skip-torch-cuda-test",
        "--no-prompt-history",
        "--no-download-sd-model",
    ]
    command += ["--data-dir", str(data), "--ui-settings-file", str(data / "config.json")]
    command += ["--ui-config-file", str(data / "ui-config.json")]
    own = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=webui, env={**os.environ, **own}, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    answer = json.loads((base / "told.json").read_text())
    tensors = load_file(base / "latents.safetensors")
    jobs = dict(zip(JOBS, answer.pop("jobs"), strict=True))
    for i, job in enumerate(jobs.values()):
        job["latents"] = [tensors[f"{i}/{j}"] for j in range(sum(key.startswith(f"{i}/") for key in tensors))]
    return {**answer, "jobs": jobs, "log": done.stdout + done.stderr}


def close(latent, expected):
    assert_close(latent.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("name", "file", "steps"),
    [
        ("dyweight", "dyweight_sd15", 6),
        ("ds", "ds_vp-dit", 8),
        ("v", "dyweight_sd15", 6),
        ("nearest", "dyweight_sd15", 8),
    ],
)
def test_txt2img_equals_the_table_by_hand(ran, name, file, steps):
    job = ran["jobs"][name]
    table = load_solver(file).table(steps, SD)
    close(job["latents"][0], by_hand(table, noise([1]) * table.sigma_start, CAT))
    assert len(job["calls"]) == steps == job["sampling_steps"]
    assert f"Steps: {steps}, " in job["infotext"] and "Schedule type" not in job["infotext"]
    assert f"Learned solver: {file}, Learned solver calls: {steps}" in job["infotext"]


def test_missing_steps_are_refused(ran):
    assert "has 7 steps: choose the steps of dyweight_sd15 (4, 6, 8, 10 steps)" in ran["jobs"]["missing"]["error"]
    assert ran["jobs"]["missing"]["calls"] == []
    assert "took the nearest count, 8" in ran["jobs"]["nearest"]["comments"]


def test_image_to_image_and_inpainting_run_the_end_of_the_grid(ran):
    table = load_solver("dyweight_sd15").table(8, SD)
    init = torch.full((1, 4, 8, 8), 200 / 255 * 2 - 1, dtype=torch.float64)
    expected = by_hand(table, init + noise([1]) * float(table.levels[2]), CAT, 2)
    close(ran["jobs"]["img2img"]["latents"][-1], expected)
    inpainted = ran["jobs"]["inpaint"]["latents"][-1]
    close(inpainted[..., :4], expected[..., :4])
    close(inpainted[..., 4:], init[..., 4:])


def test_hires_fix_runs_the_end_of_the_nearest_grid(ran):
    job, solver = ran["jobs"]["hires"], load_solver("dyweight_sd15")
    table, whole = solver.table(6, SD), solver.table(10, SD)
    first = by_hand(table, noise([1]) * table.sigma_start, CAT)
    upscaled = torch.nn.functional.interpolate(first, size=(16, 16), mode="bilinear", antialias=False)
    x = upscaled + noise([1], height=128, width=128) * float(whole.levels[5])
    close(job["latents"][-1], by_hand(whole, x, CAT, 5))
    assert "Hires learned solver calls: 5 of 10" in job["infotext"]
    assert "instead of the last 6 of 12 steps" in job["comments"]


def test_the_page_has_samplers_accordion_and_settings_once_after_a_reload(ran):
    assert [name for name in ran["samplers"] if name in ("DyWeight", "DS-Solver")] == ["DyWeight", "DS-Solver"]
    assert {"DyWeight", "DS-Solver"} <= {name for name, *_ in map(list_of, ran["dropdowns"]["txt2img_sampling"])}
    assert ran["labels"].count("Learned Solvers") >= 2  # in both tabs
    files = {name for name, *_ in map(list_of, ran["dropdowns"]["setting_learned_solvers_file"])}
    assert {"auto", "dyweight_sd15"} <= files
    assert "not available" not in ran["log"]


def list_of(choice):
    return choice if isinstance(choice, list) else [choice]
