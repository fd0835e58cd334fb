"""How the cost of a fit grows with steps and model size, and its memory compared with sampling."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from learned_solvers.samplers import EDMNoise, Grid, SolverTable, euler, sample_table
from learned_solvers.training import GradientDescent, LevenbergMarquardt, fit_solver
from learned_solvers.training.report import FitResult
from torch import Tensor

from .networks.shapes import ShapesDenoiser
from .networks.unet import UNet
from .setting import Setting, fit
from .suite import BENCHMARKS

__all__ = ["growth_with_size", "growth_with_steps", "memory"]

NOISE, STEPS = EDMNoise(), 5


def growth_with_steps(name: str) -> list[dict[str, Any]]:
    """Calls and seconds of fits with the default effort, 22 samples held out and a teacher of 60 calls."""
    counts = (3, 4, 5, 6, 8, 10)
    return [{"steps": n, **_cost(fit(BENCHMARKS[name], 3.0, Setting(64, 22, steps=(n,))))} for n in counts]


def growth_with_size() -> list[dict[str, Any]]:
    """Calls and seconds of a fit, and time per call in sampling, for U-Nets of growing width with random weights."""
    records = []
    for width in (16, 32, 64):
        torch.manual_seed(0)
        model = _wide_denoiser(width)
        x, extra_args = _starts(32, 16)
        for _ in range(2):  # the first warms up
            began = time.perf_counter()
            sample_table(model, x, _karras_euler(STEPS), extra_args, disable=True)
            seconds = time.perf_counter() - began
        result = fit_solver(model, x, noise=NOISE, steps=(STEPS,), extra_args=extra_args, teacher="euler", held_out=8)
        records.append({
            "parameters": sum(p.numel() for p in model.parameters()), **_cost(result),
            "microseconds_per_call": 1e6 * seconds / len(x) / STEPS,
        })  # fmt: skip
    return records


def _cost(result: FitResult) -> dict[str, Any]:
    """The calls and seconds of a fit at one step count."""
    ((steps, report),) = result.report.items()
    print(f"fit of {steps} steps: {report.network_calls} network calls, {report.seconds:.0f} seconds", flush=True)
    calls = {"network_calls": report.network_calls, "teacher_calls": result.teacher_calls}
    return {**calls, "seconds": report.seconds}


def _wide_denoiser(width: int) -> ShapesDenoiser:
    """An EDM denoiser with random weights; zero-initialised layers are filled too, so that its output varies."""
    model = ShapesDenoiser()
    model.network = UNet(16, width)
    for parameter in model.parameters():
        if not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.02)
    return model.requires_grad_(False).eval()


def _starts(count: int, side: int) -> tuple[Tensor, dict[str, Any]]:
    x = NOISE.sigma_max * torch.randn(count, 3, side, side)
    return x, {"tokens": torch.ones(count, 4, dtype=torch.long), "guidance": 1.0}


def _karras_euler(steps: int) -> SolverTable:
    return euler(Grid("karras", {"rho": 7.0}).levels(steps, NOISE))


def memory() -> dict[str, int]:
    """Peak resident bytes of processes that sample, fit by Levenberg-Marquardt and fit by Adam."""
    # glibc keeps freed memory between small blocks; with blocks mapped one by one, only memory in use is resident.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20), "OMP_NUM_THREADS": "1"}

    def peak(mode: str) -> int:
        command = [sys.executable, "-m", "benchmarks.cost", mode]
        return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout.split()[-1])

    return {mode: peak(mode) for mode in ("nothing", "sample", "gauss-newton", "adam")}


def _work(mode: str) -> None:
    """Samples or fits at 96x96, four samples at a time; runs in a subprocess of `memory`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, (x, extra_args) = _wide_denoiser(32), _starts(12, 96)
    if mode == "sample":
        for rows, tokens in zip(x.split(4), extra_args["tokens"].split(4), strict=True):
            sample_table(model, rows, _karras_euler(3), {**extra_args, "tokens": tokens}, disable=True)
    elif mode != "nothing":
        optimizer = LevenbergMarquardt(work=1.5) if mode == "gauss-newton" else GradientDescent("adam", batch=4)
        fit_solver(
            model, x, noise=NOISE, steps=(3,), held_out=4, microbatch=4, teacher="euler", teacher_steps=6,
            initial="euler, karras 7", optimizer=optimizer, extra_args=extra_args,
        )  # fmt: skip
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    _work(sys.argv[1])
