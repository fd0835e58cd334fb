"""A fit with forward passes only takes the memory that sampling takes: peak resident size of real processes."""

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
from learned_solvers.training import GaussNewton, fit_solver
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
up, down = torch.randn(512, 4, 1, 1, generator=generator) / 2, torch.randn(4, 512, 1, 1, generator=generator) / 512

def denoiser(x, sigma):  # activations 128 times as large as the latent: FLUX has 25 to 100, several of them
    return torch.conv2d(torch.relu(torch.conv2d(x, up)), down)

x, noise = torch.randn(3, 4, 112, 112, generator=generator), FlowNoise()
with torch.inference_mode():
    if sys.argv[1] == "fit":
        fit_solver(
            denoiser, x, noise=noise, steps=(2,), held_out=1, microbatch=1, teacher="euler", teacher_steps=6,
            initial="euler, shift 1", optimizer=GaussNewton(iterations=2),
        )
    else:
        levels = Grid("flow_shift", {{"shift": 1.0}}).levels(2, noise)
        for row in x.split(1):
            sample_table(denoiser, row, euler(levels), {{}}, disable=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell the peak resident size this way")
def test_a_fit_takes_no_more_than_a_tenth_above_plain_sampling(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(tests=str(Path(__file__).parents[1])))
    peak = {}
    # glibc keeps what was freed between small blocks, so the heap grows with nothing in it. With the blocks
    # of activations mapped one by one the resident size is what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    for mode in ("sample", "fit"):
        command = [sys.executable, str(script), mode]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert ran.returncode == 0, ran.stderr
        peak[mode] = int(ran.stdout)
    assert peak["fit"] <= 1.1 * peak["sample"], peak
