"""A fit with forward passes takes little more memory than sampling: peak resident size of a real process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = """
import sys
sys.path.append({tests!r})
import conftest, resource, torch
from learned_solvers.samplers import FlowNoise, Grid, euler, sample_table
from learned_solvers.training import LevenbergMarquardt, fit_solver
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
up, down = torch.randn(512, 4, 1, 1, generator=generator) / 2, torch.randn(4, 512, 1, 1, generator=generator) / 512

def denoiser(x, sigma):  # activations 128 times as large as the latent: FLUX has 25 to 100, several of them
    return torch.conv2d(torch.relu(torch.conv2d(x, up)), down)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

x, noise = torch.randn(3, 4, 112, 112, generator=generator), FlowNoise()
with torch.inference_mode():
    levels = Grid("flow_shift", {{"shift": 1.0}}).levels(2, noise)
    for row in x.split(1):
        sample_table(denoiser, row, euler(levels), {{}}, disable=True)
    print(peak())
    fit_solver(
        denoiser, x, noise=noise, steps=(2,), held_out=1, microbatch=1, teacher="euler", teacher_steps=3,
        initial="euler", optimizer=LevenbergMarquardt(work=1.5),
    )
    print(peak())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not report the peak resident size this way")
def test_a_fit_takes_at_most_a_tenth_more_memory_than_sampling(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(tests=str(Path(__file__).parents[1])))
    # glibc keeps freed blocks between small ones, so the heap grows although it is empty. With large blocks mapped one
    # by one the resident size is what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    worker = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, env=environment)
    assert worker.returncode == 0, worker.stderr
    sampling, fit = map(int, worker.stdout.split())
    assert fit <= 1.1 * sampling, worker.stdout
