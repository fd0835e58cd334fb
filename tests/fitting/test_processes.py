"""Several processes: how samples are distributed, and real torchrun fits that equal the one of a single process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from host_server import free_port
from learned_solvers.samplers import FlowNoise, load_solver
from learned_solvers.training import FitResult, GradientDescent, LevenbergMarquardt, fit_solver
from learned_solvers.training.data.processes import Processes, join_processes
from learned_solvers.training.data.samples import Samples, each_microbatch
from oracles import curved

OPTIMIZERS = {"gauss-newton": LevenbergMarquardt(first=4, batch=2), "adam": GradientDescent(batch=2, epochs=2)}


def fit(optimizer: str, processes: Processes | None = None, model=curved) -> FitResult:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(13, 6, generator=generator, dtype=torch.float64)
    shift = torch.randn(13, generator=generator, dtype=torch.float64)
    return fit_solver(
        model, x, noise=FlowNoise(), steps=(3,), held_out=4, microbatch=2, teacher_steps=8,
        extra_args={"shift": shift}, processes=processes, optimizer=OPTIMIZERS[optimizer],
    )  # fmt: skip


def run_worker(folder: Path) -> None:
    """Fits with both optimizers, then leaves the others waiting for a rank 1 that fails."""
    torch.set_num_threads(1)
    processes, calls = join_processes(), 0
    for optimizer in OPTIMIZERS:
        result = fit(optimizer, processes)
        if processes.rank == 0:
            result.solver.save(folder / f"{optimizer}.safetensors")
            print(f"{optimizer}: {result.report[3].network_calls} calls", flush=True)

    def broken(x, sigma, shift):
        nonlocal calls
        calls += 1
        if processes.rank == 1 and calls > 100:
            raise ValueError("rank 1 is broken")
        return curved(x, sigma, shift)

    fit("gauss-newton", processes, broken)
    (folder / "end").touch()


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Three real processes of `run_worker`, and their folder; the third has no sample of a batch of two."""
    folder = tmp_path_factory.mktemp("processes")
    code = f"import conftest, pathlib, test_processes; test_processes.run_worker(pathlib.Path({str(folder)!r}))"
    launch = ["torch.distributed.run", "--nproc-per-node", "3", "--master-port", str(free_port()), "--no-python"]
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])
    command = [sys.executable, "-m", *launch, sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment), folder


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_three_processes_with_uneven_shares_find_what_one_finds_and_one_that_fails_ends_the_others(launched, optimizer):
    (process, folder), one = launched, fit(optimizer)
    assert process.returncode != 0 and "rank 1 is broken" in process.stderr and not (folder / "end").exists()
    three = load_solver(folder / f"{optimizer}.safetensors")
    torch.testing.assert_close(dict(three.parameters[3]), dict(one.solver.parameters[3]), rtol=0, atol=1e-6)
    assert three.card.steps[3].error_after == pytest.approx(one.report[3].error_after, abs=1e-6)
    calls = re.search(rf"{optimizer}: (\d+) calls", process.stdout)
    assert calls and int(calls[1]) == one.report[3].network_calls, "the calls of all processes are counted"


@pytest.mark.parametrize(
    ("total", "microbatch", "count"), [(9, 2, 2), (4, 3, 2), (7, 7, 3), (5, 1, 5), (64, 8, 3), (3, 2, 5), (9, 0, 4)]
)
def test_every_sample_is_in_one_share(total, microbatch, count):
    samples = Samples(torch.arange(float(total)), {"label": torch.arange(total)}, microbatch)
    shares = [Processes(rank, count).share(samples) for rank in range(count)]
    assert sorted(torch.cat([share.x for share in shares]).tolist()) == list(range(total))
    assert sum(len(share) > 0 for share in shares) == min(total, count)
    assert all(share.x.long().equal(share.extra_args["label"]) for share in shares)
    some = total - total // 3
    firsts = [Processes(rank, count).first(share, some) for rank, share in enumerate(shares)]
    assert sorted(torch.cat([share.x for share in firsts]).tolist()) == list(range(some))


def test_shares_are_microbatches_of_a_single_process_and_global_rows_are_found_in_them():
    samples, batches, picked = Samples(torch.arange(7.0), {}, 2), [], []
    for processes in (Processes(0, 2), Processes(1, 2)):
        share = processes.share(samples)
        batches.append(list(each_microbatch(None, share, lambda i, j, share=share: share.rows(i, j).x.tolist())))
        picked.append(share.x[processes.local_rows(torch.tensor([6, 0, 2, 3]), share, 7)].tolist())
    assert batches == [[[0, 1], [4, 5]], [[2, 3], [6]]]
    assert picked == [[0.0], [6.0, 2.0, 3.0]]
