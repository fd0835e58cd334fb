"""Kills a fit with SIGKILL at random moments, restarts it, and checks the files each time.

A fit here does what training/fit_weights.py does with a loaded model. Kills alternate between a random moment and a
file operation. After each kill all files must be whole; a finished fit must have delivered the bytes of an undisturbed
one and nothing else. test_comfy_commands.py kills a real ComfyUI's fit. Windows has no SIGKILL.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from random import Random
from threading import RLock
from typing import Any

import torch
from learned_solvers.samplers import FlowNoise
from learned_solvers.training import fit_solver
from learned_solvers.training.store.output import Output
from PIL import Image
from safetensors import safe_open
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
FILE_OPERATIONS = ("replace", "link", "fsync", "unlink", "rmdir")
_RESUMED_OPERATIONS = 30  # file operations of a resumed fit, at least
_TIMEOUT = 300  # seconds for a fit of one second
_WORK = "0123456789abcdef"  # named like a working folder of a fit, which a delivery deletes
_CHILD = """
import sys, benchmarks  # which loads this checkout
sys.path.append("tests/fitting")
from killed_fits import Path, fit
fit(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "True")
"""


def fit(solver: Path, kill_at: int = 0, overwrite: bool = False) -> None:
    """Fits, delivers and prints the number of file operations; the process kills itself at number `kill_at`."""
    numbers = count(1)

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(numbers) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **options)

        return call

    def denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:  # draws to the nearer of two points
        return torch.tanh(2 * x / (0.3 + sigma[:, None])) / (1 + sigma[:, None])

    torch.set_num_threads(1)
    tqdm.set_lock(RLock())  # tqdm's default is a semaphore, which a killed process leaves behind
    for name in FILE_OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
    print("started", flush=True)
    output = Output(solver, "killed", overwrite)
    output.check()
    with output.claimed(2**20):
        output.check()
        work, starts = output.folder / _WORK, torch.randn(8, 6, generator=torch.Generator().manual_seed(2))
        result = fit_solver(
            denoiser, starts, noise=FlowNoise(), steps=(2,), teacher_steps=8, microbatch=4,
            cache=work / "teacher", journal=work / "journal.work",
            card={"date": "2026-01-31", "fit_id": output.fit_id},
        )  # fmt: skip
        output.deliver(result.solver, "report\n" * 1000)
        output.add_picture(Image.effect_mandelbrot((300, 200), (-2, -1, 1, 1), 50))
        output.clear()
    print(next(numbers) - 1)


def _start(*arguments: object) -> subprocess.Popen[str]:
    """A process of `fit` that has started to fit."""
    command = [sys.executable, "-c", _CHILD, *map(str, arguments)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "started\n", "a fit does not start"
    return process


def _state_of(solver: Path, reference: dict[str, bytes]) -> str:
    """The progress of a fit; AssertionError if a file is not whole."""
    folder = solver.with_suffix(".fit")
    files = {path.name: path for path in solver.parent.iterdir() if path.name.removesuffix(".lock") != folder.name}
    assert files.keys() <= reference.keys(), f"unexpected: {files}"
    delivered = not (folder / _WORK).exists()
    for name, path in files.items():  # the report's last paragraph is the picture
        whole, content = reference[name], path.read_bytes()
        assert content == whole or (path.suffix == ".md" and not delivered and content == whole.rpartition(b"\n!")[0])
    journal = folder / _WORK / "journal.work"
    if files:
        return "delivered" if delivered else "delivering"
    if not journal.exists():
        return "begun" if folder.exists() else "nothing yet"
    with safe_open(journal, framework="pt") as file:
        return f"{len({key.rpartition('|')[0] for key in file.keys()})} records"  # noqa: SIM118 - not a dict


def _finish(solver: Path, reference: dict[str, bytes]) -> None:
    """Runs a fit to its end, then compares and removes its files."""
    delivered, folder = solver.exists(), solver.with_suffix(".fit")  # perhaps without emptying the folder
    if not delivered or folder.exists():
        assert _start(solver, 0, delivered).wait(_TIMEOUT) == 0, "a killed fit does not resume or start again"
    _state_of(solver, reference)
    assert not folder.exists() and all((solver.parent / name).exists() for name in reference), "files are missing"
    for path in solver.parent.iterdir():
        path.unlink()


def kill_fits(kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """The record of a number of kills; AssertionError if something was lost."""
    random, runs, finished = Random(seed), [], 0
    whole, killed = folder / "whole" / "a.safetensors", folder / "killed" / "a.safetensors"
    killed.parent.mkdir()
    process, start = _start(whole, 0, False), time.monotonic()
    operations, seconds = int(process.communicate(timeout=_TIMEOUT)[0]), time.monotonic() - start
    reference = {path.name: path.read_bytes() for path in whole.parent.iterdir()}
    assert sorted(reference) == ["a.md", "a.png", "a.safetensors"], sorted(reference)
    while len(runs) < kills:
        latest = _RESUMED_OPERATIONS if killed.with_suffix(".fit").exists() else operations
        kill_at = random.randint(1, latest) if len(runs) % 2 else 0
        delay = random.uniform(0, seconds)
        process = _start(killed, kill_at, False)
        if not kill_at:
            time.sleep(delay)
            process.kill()
        process.communicate(timeout=_TIMEOUT)
        state = _state_of(killed, reference)
        assert process.returncode in (0, -signal.SIGKILL), f"a fit does not resume from: {state}"
        if process.returncode:
            runs.append({**({"operation": kill_at} if kill_at else {"seconds": round(delay, 3)}), "left": state})
        if state == "delivered" or len(runs) == kills:
            finished += 1
            _finish(killed, reference)
    record = {"kills": kills, "finished": finished, "seconds_of_a_fit": round(seconds, 2), "operations": operations}
    return {**record, "runs": runs}
