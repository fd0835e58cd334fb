"""Kills a fit with SIGKILL at random moments, starts the same fit again, and looks at what is left each time.

    python -m benchmarks.kill_fit            50 kills; writes benchmarks/results/kill_fit.json; some minutes

A fit here is what the command does between loading a model and its end (training/fit_weights.py): claim the output,
fit with journal and teacher's cache, make the files, deliver them. Every other kill comes at a random moment of a
whole fit's time, the others at a file operation. After each nothing but whole files may be there; a fit
that is let through must end with the very bytes of one that nobody disturbed, and leave nothing else. Each fit is a
forked process, so this needs Linux or macOS. A real ComfyUI's fit is killed in tests/test_comfy_fit.py.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import torch
from learned_solvers.samplers import FlowNoise, load_solver
from learned_solvers.training import fit_solver
from learned_solvers.training.output import Output
from safetensors import safe_open

from .record import RESULTS, Run, about, keep

WHOLE = 50  # kills of a run that is recorded
OPERATIONS = ("replace", "link", "fsync", "unlink", "rmdir")
_AFTER_RESUMING = 30  # file operations, at least
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
def killed_at(operation: int) -> Iterator[None]:
    """Kills this process at its n-th file operation."""
    real, seen = {name: getattr(os, name) for name in OPERATIONS}, 0

    def counted(name: str) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == operation:
                os.kill(os.getpid(), signal.SIGKILL)
            return real[name](*arguments, **more)

        return call

    for name in OPERATIONS:
        setattr(os, name, counted(name))
    yield
    if "KILL_FIT_COUNT" in os.environ:
        Path(os.environ["KILL_FIT_COUNT"]).write_text(str(seen))


def started(output: Output, operation: int = 0) -> int:
    """Returns the id of a new process that fits, and kills itself at a file operation if one is given."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        with killed_at(operation):
            fit(output)
        code = 0
    finally:
        os._exit(code)


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
    counting = folder / "count"
    began = time.monotonic()
    os.environ["KILL_FIT_COUNT"] = str(counting)
    _, status = os.waitpid(started(whole), 0)
    del os.environ["KILL_FIT_COUNT"]
    assert status == 0, "the fit itself fails"
    length, operations = time.monotonic() - began, int(counting.read_text())
    reference = {path.name: path.read_bytes() for path in whole.solver.parent.iterdir()}
    assert sorted(reference) == ["a.md", "a.png", "a.safetensors"], sorted(reference)
    output = Output(folder / "killed" / "a.safetensors", "fit")
    while len(records) < kills:
        last = _AFTER_RESUMING if output.folder.exists() else operations
        at_operation = random.randint(1, last) if len(records) % 2 else 0
        seconds = random.uniform(0, length)
        child = started(output, at_operation)
        if not at_operation:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        state = left_behind(output, reference)
        if os.WIFSIGNALED(status):
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
        _, status = os.waitpid(started(output), 0)
        assert status == 0, "a fit that was killed does not go on"
    assert left_behind(output, reference) == "delivered"
    if output.folder.exists():  # killed after the delivery, before the folder was emptied
        again = Output(output.solver, output.command, overwrite=True)
        _, status = os.waitpid(started(again), 0)
        assert status == 0 and left_behind(again, reference) == "delivered"
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
