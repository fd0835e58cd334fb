"""What a fit costs: its error by network calls, the growth with steps and model size, and its memory."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from math import prod
from operator import itemgetter
from statistics import geometric_mean
from typing import Any

import torch
from learned_solvers.samplers import EDMNoise, Grid, SolverTable, euler, sample_table
from learned_solvers.training import EFFORTS, GradientDescent, LevenbergMarquardt, fit_solver
from learned_solvers.training.data.teacher import Teacher
from learned_solvers.training.report import FitResult
from torch import Tensor

from .fidelity import points
from .networks.shapes import ShapesDenoiser
from .networks.unet import UNet
from .peers import best_value
from .quality import error_and_median
from .record import read_records
from .setting import SEEDS, fit, unseen_trial
from .suite import BENCHMARKS

__all__ = ["STEPS", "calls_alone", "error_by_calls", "error_curve", "growth_with_size", "memory"]

NOISE, STEPS, GUIDANCE = EDMNoise(), (5, 8), 3.0
Sizes = tuple[str, int | None]
"""An effort, and a number of samples in place of the one that it sets."""
_FITS: dict[str, tuple[Sizes, ...]] = {
    "emoji": (("default", 2), ("default", 4), ("default", 20), ("default", 40)),
}
_OTHER_FITS: tuple[Sizes, ...] = (("default", 14), ("default", 20), ("default", 40), ("thorough", 64))


def error_by_calls(
    name: str, steps: int, fits: Sequence[Sizes] = (), seeds: Sequence[int] = SEEDS, unseen: int | None = None
) -> dict[str, Any]:
    """Calls of fits and their errors on unseen starts, by effort and samples, in addition to those of `fidelity`."""
    benchmark, runs = BENCHMARKS[name], []
    trial = unseen_trial(benchmark, GUIDANCE, unseen)
    for effort, samples in fits or (("quick", None), *_FITS.get(name, _OTHER_FITS)):
        for seed in seeds[:2] if name == "emoji" or effort == "thorough" else seeds:
            result = fit(benchmark, steps, GUIDANCE, effort=effort, samples=samples, seed=seed)
            errors = error_and_median(trial.errors(result.solver.table(steps, benchmark.noise)))
            runs.append({"effort": effort, "samples": samples, "seed": seed, **_cost(result), **errors})
    return {"network": name, "steps": steps, "fits": runs}


def error_curve(name: str, steps: int) -> dict[Sizes, tuple[float, float]]:
    """Calls and error / best peer's by effort and samples, fewest calls first: geometric means over the seeds.

    Samples are None where the effort sets them. Empty if it has not been measured.
    """
    record, point = read_records("cost").get(f"error_by_calls-{name}-{steps}"), points().get((name, GUIDANCE, steps))
    if record is None or point is None:
        return {}
    groups: dict[Sizes, list[tuple[float, float]]] = {}
    for run in record["fits"]:
        calls = run["network_calls"] + run["teacher_calls"]
        groups.setdefault((run["effort"], run["samples"]), []).append((calls, run["error"]))
    for run in point["fits"]:
        if run["family"] == "dyweight":
            calls = calls_alone(name, steps, run["effort"], run)
            groups.setdefault((run["effort"], None), []).append((calls, run["error"]))
    peer = best_value(point, "error")
    curve = {
        key: (geometric_mean([calls for calls, _ in runs]), geometric_mean([error for _, error in runs]) / peer)
        for key, runs in groups.items()
    }
    return dict(sorted(curve.items(), key=itemgetter(1)))


def calls_alone(name: str, steps: int, effort: str, run: dict[str, Any]) -> int:
    """Calls of a recorded fit, with a teacher for its step count alone."""
    settings = EFFORTS[effort].for_numbers(prod(BENCHMARKS[name].shape))
    teacher = Teacher.of("ode", None, steps, settings.teacher)
    return run["network_calls"] + teacher.pilot_calls + teacher.calls * (run["samples"] + settings.held_out)


def growth_with_size() -> list[dict[str, Any]]:
    """Calls and seconds of a fit, and time per call in sampling, for U-Nets of growing width with random weights."""
    records = []
    for width in (16, 32, 64):
        torch.manual_seed(0)
        model = _wide_denoiser(width)
        x, extra_args = _starts(32, 16)
        for _ in range(2):  # the first warms up
            began = time.perf_counter()
            sample_table(model, x, _karras_euler(5), extra_args, disable=True)
            seconds = time.perf_counter() - began
        result = fit_solver(model, x, noise=NOISE, steps=(5,), extra_args=extra_args, teacher="euler", held_out=8)
        records.append({
            "parameters": sum(p.numel() for p in model.parameters()), **_cost(result),
            "microseconds_per_call": 1e6 * seconds / len(x) / 5,
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
