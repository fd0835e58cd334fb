"""The command fits a tiny model through a real ComfyUI's loaders; its file samples; kill -9 loses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from comfy_host import ROOT, WANTED, checkouts, make_base, python_of
from learned_solvers.samplers import FlowNoise, load_solver
from learned_solvers.training.models.comfy import write_conditioning
from PIL import Image

pytestmark = [pytest.mark.comfy, pytest.mark.slow]
CHECKOUT = next(iter(checkouts()), None)
if CHECKOUT is None:
    pytest.skip(f"no ComfyUI: {WANTED}", allow_module_level=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Tiny models, and encoded prompts for the SD3 among them."""
    base = tmp_path_factory.mktemp("fit") / "base"
    make_base(CHECKOUT, base)
    generator = torch.Generator().manual_seed(0)
    conds = [
        {
            "context": torch.randn(1, 8, 64, generator=generator),
            "pooled_output": torch.randn(1, 32, generator=generator),
        }
        for _ in range(5)
    ]
    write_conditioning(base / "prompts.safetensors", conds, [str(i) for i in range(5)])
    return base


def command(models: Path, output: Path, *more: str) -> list[str]:
    return [
        *(str(python_of(CHECKOUT)), str(ROOT / "training" / "fit_weights.py"), "--comfyui", str(CHECKOUT)),
        *("--diffusion-model", str(models / "models" / "diffusion_models" / "tiny_sd3.safetensors")),
        *("--conditioning", str(models / "prompts.safetensors"), "--size", "64x64", "--steps", "3", "--samples", "6"),
        *("--guidance", "2", "--teacher-steps", "6", "--microbatch", "3", "--threads", "2", "--output", str(output)),
        *more,
    ]


@pytest.fixture(scope="module")
def whole(models) -> Path:
    """The solver file of an uninterrupted run."""
    output = models / "whole.safetensors"
    ran = subprocess.run(command(models, output), capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "At most" in ran.stdout and "One call takes" in ran.stdout and "network calls of two passes" in ran.stdout
    return output


def test_the_command_writes_a_solver_a_report_and_a_picture(whole):
    solver = load_solver(whole)
    step = solver.card.steps[3]
    assert (solver.card.model_family, solver.card.checkpoint, solver.card.guidance) == ("SD3", "tiny_sd3", "2")
    assert step.error_after <= step.error_before and step.network_calls > 0
    assert solver.table(3, FlowNoise()).nfe == 3
    assert "| 3 |" in whole.with_suffix(".md").read_text()
    with Image.open(whole.with_suffix(".png")) as picture:
        assert len(picture.convert("L").getcolors(256) or []) > 20
    assert not whole.with_suffix(".fit").exists()


def test_a_dry_run_says_what_it_would_cost_and_writes_nothing(models):
    output = models / "dry.safetensors"
    ran = subprocess.run(command(models, output, "--dry-run"), capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "At most" in ran.stdout and "One call takes" in ran.stdout
    assert not list(models.glob("dry*"))


def test_an_existing_file_is_not_overwritten(models, whole):
    before = whole.read_bytes()
    ran = subprocess.run(command(models, whole), capture_output=True, text=True, timeout=300)
    assert ran.returncode == 1 and "exists already: choose another --output, or add --overwrite" in ran.stderr
    assert whole.read_bytes() == before


def test_kill_9_loses_nothing_and_the_resumed_file_is_the_same(models, whole):
    output = models / "killed.safetensors"
    process = subprocess.Popen(command(models, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 240
    while not list(output.with_suffix(".fit").glob("*/journal.safetensors")):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not output.exists()
    ran = subprocess.run(command(models, output), capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "going on with the fit" in ran.stdout
    assert output.read_bytes() == whole.read_bytes()
