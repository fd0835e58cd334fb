"""Several processes: how samples are shared out, and real torchrun fits that equal the one of a single process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from host_process import free_port
from learned_solvers.samplers import load_solver
from learned_solvers.training.data.processes import Processes
from learned_solvers.training.data.samples import Samples

WORKER = """
import sys
sys.path.append({tests!r})
import conftest, torch
from learned_solvers.samplers import FlowNoise
from learned_solvers.training import GaussNewton, GradientDescent, fit_solver
from learned_solvers.training.data.processes import join_processes
from oracles import curved
torch.set_num_threads(1)
processes, calls = join_processes(), 0

def denoiser(x, sigma, shift):
    global calls
    calls += 1
    if {broken} and processes.rank == 1 and calls > 300:
        raise ValueError("rank 1 is broken")
    return curved(x, sigma, shift)

generator = torch.Generator().manual_seed(0)
x = torch.randn(13, 6, generator=generator, dtype=torch.float64)
shift = torch.randn(13, generator=generator, dtype=torch.float64)
settings = GradientDescent(batch=2, epochs=2) if {gradient} else GaussNewton(core=4, first=2)
result = fit_solver(
    denoiser, x, noise=FlowNoise(), steps=(3,), held_out=4, microbatch=2, teacher_steps=8,
    extra_args={{"shift": shift}}, processes=processes, optimizer=settings,
)
if processes.rank == 0:
    result.solver.save({output!r})
    print(result.report[3].network_calls)
processes.leave()
"""


def run(
    tmp_path: Path, count: int, *, broken: bool = False, gradient: bool = False
) -> subprocess.CompletedProcess[str]:
    output = tmp_path / f"of_{count}.safetensors"
    script = tmp_path / f"worker_{count}.py"
    script.write_text(
        WORKER.format(tests=str(Path(__file__).parents[1]), broken=broken, gradient=gradient, output=str(output))
    )
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(count), "--master-port", str(free_port())]
    command = [sys.executable, *(launch if count > 1 else []), str(script)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", [False, True], ids=["gauss-newton", "adam"])
def test_two_processes_with_uneven_shares_find_what_one_finds(tmp_path, gradient):
    ran = [run(tmp_path, count, gradient=gradient) for count in (1, 2)]
    assert [r.returncode for r in ran] == [0, 0], ran[0].stderr + ran[1].stderr
    one, two = (load_solver(tmp_path / f"of_{count}.safetensors") for count in (1, 2))
    torch.testing.assert_close(dict(two.parameters[3]), dict(one.parameters[3]), rtol=0, atol=1e-6)
    assert two.card.steps[3].error_after == pytest.approx(one.card.steps[3].error_after, abs=1e-6)
    assert ran[0].stdout == ran[1].stdout, "the network calls of all processes are counted"


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others(tmp_path):
    ran = run(tmp_path, 2, broken=True)
    assert ran.returncode != 0 and "rank 1 is broken" in ran.stderr
    assert not (tmp_path / "of_2.safetensors").exists()


@pytest.mark.parametrize(("total", "microbatch", "count"), [(9, 2, 2), (4, 3, 2), (7, 7, 3), (5, 1, 5), (64, 8, 3)])
def test_samples_are_shared_out_without_loss(total, microbatch, count):
    samples = Samples(torch.arange(float(total)), {"label": torch.arange(total)}, microbatch)
    shares = [Processes(rank, count).own(samples) for rank in range(count)]
    assert sorted(torch.cat([s.x for s in shares]).tolist()) == list(range(total))
    assert all(len(s) for s in shares)
    assert all(s.x.long().equal(s.extra_args["label"]) for s in shares)
    some = total - total // 3
    firsts = [Processes(rank, count).first(share, some) for rank, share in enumerate(shares)]
    assert sorted(torch.cat([s.x for s in firsts]).tolist()) == list(range(some))


def test_an_updates_samples_are_found_where_they_are():
    samples, chosen = Samples(torch.arange(7.0), {}, 2), torch.tensor([6, 0, 2, 3])
    shares = [(p, p.own(samples)) for p in (Processes(rank, 2) for rank in range(2))]
    found = [share.x[p.places(chosen, share, 7)].tolist() for p, share in shares]
    assert found == [[0.0], [6.0, 2.0, 3.0]]


def test_numbers_of_all_samples_are_put_where_they_belong():
    class Summing(Processes):
        def sums(self, tensor):
            return tensor

    samples, total = Samples(torch.arange(7.0), {}, 2), torch.zeros(7)
    for rank in range(3):
        own = Processes(rank, 3).own(samples)
        total += Summing(rank, 3).joined(10 * own.x, own, 7)
    assert total.tolist() == [10.0 * row for row in range(7)]


def test_each_share_consists_of_a_single_process_microbatches():
    samples = Samples(torch.arange(10.0), {}, 3)
    shares = [[b.x.tolist() for _, b in Processes(rank, 2).own(samples).batches()] for rank in range(2)]
    assert shares == [[[0, 1, 2], [6, 7, 8]], [[3, 4, 5], [9]]]


def test_fewer_samples_than_processes_are_refused():
    with pytest.raises(ValueError, match=r"3 processes need as many samples .* got 2"):
        Processes(0, 3).own(Samples(torch.zeros(2), {}, 1))
