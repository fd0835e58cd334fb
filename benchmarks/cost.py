"""How the cost of a fit grows with steps, samples and model size, and how much memory it takes beside sampling."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from learned_solvers.samplers import EDMNoise, Grid, euler, sample_table
from learned_solvers.training import GaussNewton, GradientDescent, fit_solver

from .fidelity import Sizes, fit, unseen_of
from .networks.shapes import ShapesDenoiser
from .networks.unet import UNet
from .quality import error_and_median
from .subjects import SUBJECTS

__all__ = ["growth_with_samples", "growth_with_size", "growth_with_steps", "memory"]

_STEPS = 5


def growth_with_steps(name: str) -> list[dict[str, Any]]:
    """Returns calls and seconds, without the teacher's, of fits to as many samples as the command takes."""
    subject, sizes, records = SUBJECTS[name], Sizes(64, 22), []
    for steps in (3, 4, 5, 6, 8, 10):
        result = fit(subject, "dyweight", 3.0, (steps,), sizes)
        records.append({
            "steps": steps, "network_calls": result.report[steps].network_calls,
            "teacher_calls": result.teacher_calls, "seconds": result.report[steps].seconds,
        })  # fmt: skip
        print(records[-1], flush=True)
    return records


def growth_with_samples(cache: Path | None) -> list[dict[str, Any]]:
    """Returns calls, seconds and the error on unseen starts of fits for the digits, by steps and number of samples."""
    subject, records = SUBJECTS["digits"], []
    unseen = unseen_of(subject, 3.0, 512, cache)
    for steps in (_STEPS, 2 * _STEPS):
        for samples in (8, 16, 32, 64, 128, 256):
            result = fit(subject, "dyweight", 3.0, (steps,), Sizes(samples, 32))
            squares = unseen.errors(result.solver.table(steps, subject.noise))
            report = result.report[steps]
            records.append({
                "steps": steps, "samples": samples, "network_calls": report.network_calls,
                "teacher_calls": result.teacher_calls, "seconds": report.seconds,
                **error_and_median(squares),
            })  # fmt: skip
            print(records[-1], flush=True)
    return records


def growth_with_size() -> list[dict[str, Any]]:
    """Returns calls and seconds of a fit, and of sampling its starts, for U-Nets of growing width (random weights)."""
    records = []
    for width in (16, 32, 64):
        torch.manual_seed(0)
        model = _wide(width)
        x = 80 * torch.randn(32, 3, 16, 16)
        extra_args = {"tokens": torch.ones(32, 4, dtype=torch.long), "guidance": 1.0}
        table = euler(Grid("karras", {"rho": 7.0}).levels(_STEPS, EDMNoise()))
        seconds = _seconds(lambda m=model, a=extra_args, x=x, t=table: sample_table(m, x, t, a, disable=True))
        result = fit_solver(
            model, x, noise=EDMNoise(), steps=(_STEPS,), extra_args=extra_args, teacher="euler", held_out=8
        )
        report = result.report[_STEPS]
        records.append({
            "parameters": sum(p.numel() for p in model.parameters()), "network_calls": report.network_calls,
            "seconds": report.seconds, "microseconds_per_call": 1e6 * seconds / len(x) / _STEPS,
        })  # fmt: skip
        print(records[-1], flush=True)
    return records


def _wide(width: int) -> ShapesDenoiser:
    """Returns an EDM denoiser of random weights that does something at every level."""
    model = ShapesDenoiser()
    model.network = UNet(16, width)
    for parameter in model.parameters():
        if not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.02)
    return model.requires_grad_(False).eval()


def _seconds(run: Callable[[], Any]) -> float:
    run()
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def memory() -> dict[str, int]:
    """Returns the peak resident bytes of processes that sample, fit by Gauss-Newton and fit by Adam."""
    # glibc keeps what was freed between small blocks; mapped one by one, what is resident is what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20), "OMP_NUM_THREADS": "1"}
    peaks = {}
    for mode in ("nothing", "sample", "gauss-newton", "adam"):
        command = [sys.executable, "-m", "benchmarks.cost", mode]
        peaks[mode] = int(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
        )
        print(mode, peaks[mode], flush=True)
    return peaks


def _work(mode: str) -> None:
    """Samples or fits at 96x96, four samples at a time: a process of `memory`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, noise = _wide(32), EDMNoise()
    x = 80 * torch.randn(12, 3, 96, 96)
    extra_args = {"tokens": torch.ones(12, 4, dtype=torch.long), "guidance": 1.0}
    if mode == "sample":
        table = euler(Grid("karras", {"rho": 7.0}).levels(3, noise))
        for rows in x.split(4):
            sample_table(model, rows, table, {**extra_args, "tokens": extra_args["tokens"][:4]}, disable=True)
    elif mode != "nothing":
        optimizer = GaussNewton(iterations=2) if mode == "gauss-newton" else GradientDescent("adam", batch=4)
        fit_solver(
            model, x, noise=noise, steps=(3,), held_out=4, microbatch=4, teacher="euler", teacher_steps=6,
            initial="euler, karras 7", optimizer=optimizer, extra_args=extra_args,
        )  # fmt: skip
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    _work(sys.argv[1])
