"""A fit with forward passes only takes the memory that sampling takes: peak resident size of real processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WORKER = """
import sys
sys.path.append({tests!r})
import conftest, resource, torch
from learned_solvers.samplers import FlowNoise, Grid, euler, sample_table
from learned_solvers.training import fit_solver
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
up, down = torch.randn(256, 4, 1, 1, generator=generator) / 2, torch.randn(4, 256, 1, 1, generator=generator) / 256

def denoiser(x, sigma):  # activations 64 times as large as the latent
    return torch.conv2d(torch.tanh(torch.conv2d(x, up)), down)

x, noise = torch.randn(6, 4, 160, 160, generator=generator), FlowNoise()
with torch.inference_mode():
    if sys.argv[1] == "fit":
        fit_solver(denoiser, x, noise=noise, steps=(3,), held_out=2, microbatch=2, teacher="euler", teacher_steps=6)
    else:
        levels = Grid("flow_shift", {{"shift": 1.0}}).levels(3, noise)
        for i in (0, 2, 4):
            sample_table(denoiser, x[i : i + 2], euler(levels), {{}}, disable=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell the peak resident size this way")
def test_a_fit_takes_no_more_than_a_tenth_above_plain_sampling(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(tests=str(Path(__file__).parent)))
    peak = {}
    for mode in ("sample", "fit"):
        ran = subprocess.run([sys.executable, str(script), mode], capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
        peak[mode] = int(ran.stdout)
    assert peak["fit"] <= 1.1 * peak["sample"], peak
