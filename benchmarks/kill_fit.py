"""Kills a fit with SIGKILL at random moments, starts the same fit again, and looks at what is left each time.

    python -m benchmarks.kill_fit            50 kills; writes benchmarks/results/kill_fit.json; some minutes

A fit here is what the command does between loading a model and its end (training/fit_weights.py): claim the output,
fit with journal and teacher's cache, make the files, deliver them. Every other kill comes at a random moment of a
whole fit's time, the others at a file operation. After each nothing but whole files may be there; a fit
that is let through must end with the very bytes of one that nobody disturbed, and leave nothing else. Each fit is a
new process, not a fork: a fork of one with threads can wait forever for a lock that nobody holds any more. Windows
has no SIGKILL, so this needs Linux or macOS. A real ComfyUI's fit is killed in tests/test_comfy_fit.py.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from threading import RLock
from typing import Any

import torch
from learned_solvers.samplers import FlowNoise, load_solver
from learned_solvers.training import fit_solver
from learned_solvers.training.store.output import Output
from safetensors import safe_open
from tqdm import tqdm

from .record import RESULTS, Run, about, keep

WHOLE = 50  # kills of a run that is recorded
OPERATIONS = ("replace", "link", "fsync", "unlink", "rmdir")
_AFTER_RESUMING = 30  # file operations, at least
_PATIENCE = 300  # seconds for what takes three
WORK = "0123456789abcdef"  # what a fit leaves in its folder is called so, and nothing else is deleted
STARTS = torch.randn(8, 6, generator=torch.Generator().manual_seed(2))


def denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Draws to the nearer of two points."""
    return torch.tanh(2 * x / (0.3 + sigma[:, None])) / (1 + sigma[:, None])


def fit(output: Output) -> None:
    """Fits and delivers, as the command does."""
    output.check()
    with output.claimed(2**20):
        work = output.folder / WORK
        result = fit_solver(
            denoiser, STARTS, noise=FlowNoise(), steps=(2,), teacher_steps=8, microbatch=4,
            cache=work / "teacher", journal=work / "journal.safetensors", card={"date": "2026-01-31"},
        )  # fmt: skip
        picture, report, solver = (output.folder / file.name for file in output.files)
        result.solver.save(solver, overwrite=True)
        report.write_text("report\n" * 1000)
        picture.write_bytes(b"picture\n" * 10_000)
        output.deliver()


@contextmanager
def counted(kill_at: int) -> Iterator[list[int]]:
    """Counts this process's file operations in the one entry, and kills the process at one of them; 0: at none."""
    real, seen = {name: getattr(os, name) for name in OPERATIONS}, [0]

    def watched(name: str) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            seen[0] += 1
            if seen[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real[name](*arguments, **more)

        return call

    for name in OPERATIONS:
        setattr(os, name, watched(name))
    yield seen


def _fit_here(output: Output, kill_at: int, told: Connection) -> None:
    """What a fit's process does: tells that it begins, and how many file operations there were."""
    torch.set_num_threads(1)
    tqdm.set_lock(RLock())  # its own is a semaphore, which a killed process leaves behind
    told.send("begins")
    with counted(kill_at) as seen:
        fit(output)
    told.send(seen[0])


@dataclass
class Fit:
    """A process that fits from when it is made; it kills itself at a file operation if one is given."""

    output: Output
    kill_at: int = 0
    process: BaseProcess = field(init=False)
    told: Connection = field(init=False)

    def __post_init__(self) -> None:
        """Starts the process, and waits until it begins to fit."""
        context = multiprocessing.get_context("spawn")
        self.told, tell = context.Pipe(duplex=False)
        self.process = context.Process(target=_fit_here, args=(self.output, self.kill_at, tell), daemon=True)
        self.process.start()
        tell.close()
        if not self.told.poll(_PATIENCE):
            self.process.kill()
            raise TimeoutError(f"a fit did not begin in {_PATIENCE} seconds")
        self.told.recv()

    def ended(self) -> int:
        """Returns the exit code, negative for a signal's number, when the fit has ended."""
        self.process.join(_PATIENCE)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"a fit did not end in {_PATIENCE} seconds")
        return self.process.exitcode


def left_behind(output: Output, reference: dict[str, bytes]) -> str:
    """Returns where a fit stands; AssertionError where a file is there that is not whole."""
    there = sorted(path.name for path in output.solver.parent.iterdir())
    wrong = set(there) - set(reference) - {output.folder.name}
    assert not wrong, f"left behind: {wrong}"
    for name in set(there) & set(reference):
        assert (output.solver.parent / name).read_bytes() == reference[name], f"{name} is not what it should be"
    if output.solver.exists():
        load_solver(output.solver)
        return "delivered"
    if set(there) & set(reference):
        return "delivering"
    journal = output.folder / WORK / "journal.safetensors"
    if journal.exists():
        with safe_open(journal, framework="pt") as file:
            return f"{len({key.rpartition('|')[0] for key in file.keys()})} records"  # noqa: SIM118 - not a dict
    return "begun" if output.folder.exists() else "nothing yet"


def run(kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """Returns the record of so many kills; AssertionError where something was lost."""
    random, records, chains = Random(seed), [], 0
    whole = Output(folder / "whole" / "a.safetensors", "fit")
    undisturbed = Fit(whole)
    began = time.monotonic()
    assert undisturbed.ended() == 0, "the fit itself fails"
    length, operations = time.monotonic() - began, undisturbed.told.recv()
    reference = {path.name: path.read_bytes() for path in whole.solver.parent.iterdir()}
    assert sorted(reference) == ["a.md", "a.png", "a.safetensors"], sorted(reference)
    output = Output(folder / "killed" / "a.safetensors", "fit")
    while len(records) < kills:
        last = _AFTER_RESUMING if output.folder.exists() else operations
        at_operation = random.randint(1, last) if len(records) % 2 else 0
        seconds = random.uniform(0, length)
        killed = Fit(output, at_operation)
        if not at_operation:
            time.sleep(seconds)
            killed.process.kill()
        ended = killed.ended()
        state = left_behind(output, reference)
        assert ended in (0, -signal.SIGKILL), f"a fit does not go on from: {state}"
        if ended:
            how = {"operation": at_operation} if at_operation else {"seconds": round(seconds, 3)}
            records.append({**how, "left": state})
        if state == "delivered":
            chains += 1
            _finish(output, reference)
    if not output.solver.exists():
        chains += 1
        _finish(output, reference)
    return {"kills": kills, "finished": chains, "seconds_of_a_fit": round(length, 2), "operations": operations,
            "runs": records}  # fmt: skip


def _finish(output: Output, reference: dict[str, bytes]) -> None:
    """Lets a fit through, and makes the place free for the next."""
    if not output.solver.exists():
        assert Fit(output).ended() == 0, "a fit that was killed does not go on"
    assert left_behind(output, reference) == "delivered"
    if output.folder.exists():  # killed after the delivery, before the folder was emptied
        again = Output(output.solver, output.command, overwrite=True)
        assert Fit(again).ended() == 0 and left_behind(again, reference) == "delivered"
    assert not output.folder.exists(), "the folder is left"
    for path in output.solver.parent.iterdir():
        path.unlink()


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=WHOLE, help=f"fewer than {WHOLE} are a try, without a record")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.kills < 1:
        parser.error(f"--kills must be at least 1, got {args.kills}")
    began = about(f"python -m benchmarks.kill_fit --kills {args.kills} --seed {args.seed}")
    with tempfile.TemporaryDirectory() as folder:
        found = run(args.kills, args.seed, Path(folder))
    print(f"{found['kills']} kills, {found['finished']} fits finished with the same files")
    if args.kills >= WHOLE:
        keep("kill_fit", "kill_fit", Run(began, found), ["kill_fit"])
        print(f"recorded in {RESULTS}/kill_fit.json")


if __name__ == "__main__":
    main()
