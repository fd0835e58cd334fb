"""What a fit costs: its error by network calls, the growth with steps and model size, and its memory."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from operator import itemgetter
from statistics import geometric_mean
from typing import Any

import torch
from learned_solvers.samplers import EDMNoise, Grid, SolverTable, euler, sample_table
from learned_solvers.training import GradientDescent, LevenbergMarquardt, fit_solver
from learned_solvers.training.report import FitResult
from torch import Tensor

from .networks.shapes import ShapesDenoiser
from .networks.unet import UNet
from .peers import best_value, recorded_peers
from .quality import error_and_median
from .record import RESULTS, read_measurements, read_records
from .setting import SEEDS, TEACHER, Setting, fit_as_users_do, unseen_trial
from .suite import BENCHMARKS

__all__ = [
    "earlier_fits",
    "error_by_calls",
    "error_curve",
    "fits_by_calls",
    "growth_with_size",
    "growth_with_steps",
    "memory",
]

NOISE, STEPS = EDMNoise(), 5
FITS: tuple[tuple[str, int | None], ...] = (
    ("quick", None), ("default", 14), ("default", 20), ("default", None), ("default", 40), ("thorough", 64),
    ("thorough", None),
)  # fmt: skip
"""The efforts, and in between their settings with other numbers of samples."""


def error_by_calls(name: str, steps: int, setting: Setting) -> dict[str, Any]:
    """Calls of fits at guidance 3 and their errors on unseen starts, by effort and samples."""
    benchmark, fits = BENCHMARKS[name], []
    unseen = unseen_trial(benchmark, 3.0, setting)
    for effort, samples in FITS:
        for seed in SEEDS[:1] if (effort, samples) == ("thorough", None) else SEEDS:  # such a fit varies less
            result = fit_as_users_do(benchmark, steps, 3.0, effort=effort, samples=samples, seed=seed)
            errors = error_and_median(unseen.errors(result.solver.table(steps, benchmark.noise)))
            fits.append({"effort": effort, "samples": samples, "seed": seed, **_cost(result), **errors})
    return {"network": name, "steps": steps, "fits": fits}


def fits_by_calls() -> list[dict[str, Any]]:
    """The records of `error_by_calls`, by ascending steps."""
    records = [record for name, record in read_records("cost").items() if name.startswith(error_by_calls.__name__)]
    return sorted(records, key=itemgetter("steps"))


def error_curve(record: Mapping[str, Any]) -> dict[tuple[str, int | None], tuple[float, float]]:
    """Calls and error / best peer's by effort and samples, fewest calls first: geometric means over the seeds.

    `record` is one of `error_by_calls`; samples are None where the effort sets them.
    """
    peer = _best_error(record["network"], record["steps"])
    groups: dict[tuple[str, int | None], list[Any]] = {}
    for run in record["fits"]:
        groups.setdefault((run["effort"], run["samples"]), []).append(run)
    points = {
        key: (
            geometric_mean([run["network_calls"] + run["teacher_calls"] for run in runs]),
            geometric_mean([run["error"] / peer for run in runs]),
        )
        for key, runs in groups.items()
    }
    return dict(sorted(points.items(), key=itemgetter(1)))


def earlier_fits(name: str, steps: int) -> dict[int, tuple[float, float]]:
    """The same of fits by the earlier method, by samples; the teacher's calls for one step count are included."""
    fits = {}
    for samples in (96, 480):
        measurement = read_measurements(RESULTS / f"fidelity_{samples}.json")[f"fidelity-{name}-3.0"]
        sizes, points = measurement["about"]["samples"], measurement["record"]["records"]
        ours = next(point for point in points if point["steps"] == steps)["ours"]["dyweight"]
        calls = ours["network_calls"] + TEACHER.calls * (sizes["fitted"] + sizes["held_out"])
        fits[samples] = (calls, ours["error"] / _best_error(name, steps))
    return fits


def _best_error(name: str, steps: int) -> float:
    return best_value({"peers": recorded_peers(name, 3.0)[steps]}, "error")


def growth_with_steps(name: str) -> list[dict[str, Any]]:
    """Calls and seconds of fits with the default effort."""
    counts = (3, 4, 5, 6, 8, 10)
    return [{"steps": n, **_cost(fit_as_users_do(BENCHMARKS[name], n, 3.0))} for n in counts]


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
