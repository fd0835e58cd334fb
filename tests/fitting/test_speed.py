"""What a fit asks of a device: no waiting within a run, little memory, and as many samples per call as pay off."""

from __future__ import annotations

import pytest
import torch
from device import Device, use_device
from fits import FLOW, GRIDS, Watched, make_problem, starts, theta_of
from learned_solvers.samplers import Solver
from learned_solvers.training import EFFORTS, FitJob, FitSettings, Teacher
from learned_solvers.training.cost import seconds_of_call, work_bytes
from learned_solvers.training.data import samples as samples_module
from learned_solvers.training.data.batch_limit import MEASURED, BatchLimit, Memory
from learned_solvers.training.data.dense_grid import dense_grid
from learned_solvers.training.data.samples import Samples
from learned_solvers.training.fit import fit
from learned_solvers.training.optimise.losses import LOSSES
from learned_solvers.training.starts.path import closed_loop
from oracles import curved, smooth
from torch import Tensor
from torch.testing import assert_close


def reads_of(loss: str, size: int, work) -> Device:
    """What `work(problem)` does on a device; all samples are in one microbatch."""
    problem = make_problem("flow", "dyweight", 3, loss, count=5, size=size)
    with use_device(problem.model.model) as device:
        problem.model.model = device
        work(problem)
    return device


WORKS = {
    "errors": lambda problem: problem.errors(problem.space.table(theta_of(problem))),
    "residuals": lambda problem: problem.residuals(theta_of(problem)),
    "a Jacobian": lambda problem: problem.linearise(theta_of(problem), 1e-3),
    "the pilot run": lambda problem: dense_grid(problem.model, problem.samples, FLOW, 30),
    "the teacher": lambda problem: Teacher("heun", 9).reference(problem.model, problem.samples, FLOW, path=True),
}


@pytest.mark.parametrize("size", [6, 5000])  # longer residuals are sketched
@pytest.mark.parametrize("work", WORKS)
def test_nothing_waits_for_the_device_before_the_last_call_of_a_microbatch(work, size):
    device = reads_of("l2", size, WORKS[work])
    assert device.calls >= 3 and set(device.reads) == {device.calls}


@pytest.mark.parametrize("loss", LOSSES)
def test_no_loss_waits_for_the_device_either(loss):
    device = reads_of(loss, 6, WORKS["a Jacobian"])
    assert device.calls > 8 and set(device.reads) == {device.calls}


def test_the_loss_on_the_trajectory_holds_few_of_the_teachers_states_on_the_device():
    device = reads_of("trajectory", 5000, WORKS["a Jacobian"])
    assert device.most < 30 * 5 * 5000 * 8  # the teacher has 41 states of 5 samples


def test_the_start_waits_once_per_step_because_its_next_step_depends_on_it():
    path = make_problem("flow", "dyweight", 3, "trajectory", count=5).reference
    levels = GRIDS["flow"].levels(4, FLOW)
    device = reads_of("l2", 6, lambda p: closed_loop(p.model, p.samples, path, levels, 3, free_sums=True))
    assert device.calls == 4 and sorted(set(device.reads)) == [1, 2, 3, 4]


def job_of(settings: FitSettings, x: Tensor, microbatch: int = 1, **extra_args: object) -> FitJob:
    return FitJob(settings, Samples(x, extra_args, microbatch), FLOW, {})


NUMBERS = 300_000  # of a state: more than a path keeps


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("microbatch", [1, 2])
def test_a_fit_holds_the_run_of_a_microbatch_on_the_device_and_small_paths_on_the_host(effort, microbatch, tmp_path):
    x = torch.randn(12, NUMBERS, generator=torch.Generator().manual_seed(0))
    settings = FitSettings(steps=(3,), effort=effort, samples=8, held_out=4)
    job, latent = job_of(settings, x, microbatch), 4 * NUMBERS
    with use_device(smooth) as device:
        fit(job, device, lambda line: None, cache=tmp_path)
    assert device.calls > 100 and device.most <= microbatch * (3 * 3 + 8) * latent
    files = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert files <= work_bytes(job) - 2**26
    assert files < (12 + 8 * job.path_teacher.steps / 4) * latent


def test_a_fit_for_wan_at_480p_and_81_frames_holds_less_than_half_a_gigabyte():
    """By the number of latents that the fit above may hold."""
    latent = torch.zeros(()).expand(14, 16, 21, 60, 104)
    for steps, together in ((4, 3), (6, 2), (8, 2), (10, 1), (18, 1)):
        job = job_of(FitSettings(steps=(steps,)), latent)
        assert job.most_together == together
        assert together * (3 * steps + 8) * latent[0].numel() * 4 < 2**29


def seconds(per_sample: dict[int, float], model=smooth):
    """A model whose calls take the seconds per sample of their size, and the clock that they advance."""
    now = [0.0]

    def run(x: Tensor, sigma: Tensor, **extra_args: object) -> Tensor:
        now[0] += per_sample[len(x)] * len(x)
        return model(x, sigma)

    return run, lambda: now[0]


GPU = {1: 1.0, 2: 0.6, 3: 0.55, 4: 0.5, 5: 0.5, 6: 0.5, 7: 0.5, 8: 0.49}


@pytest.mark.parametrize(
    ("per_sample", "size"),
    [(GPU, 4), ({**GPU, 2: 0.95}, 1), (dict.fromkeys(range(1, 9), 1.0), 1), ({k: 1 / k for k in range(1, 17)}, 8)],
    ids=["gains up to 4", "little gain", "no gain", "all gain"],
)
def test_the_fastest_number_of_samples_per_call_is_found_in_calls_that_a_fit_makes_anyway(
    per_sample, size, monkeypatch
):
    run, clock = seconds(per_sample)
    monkeypatch.setattr(samples_module.time, "perf_counter", clock)
    settings, x, log = FitSettings(steps=(3,)), starts("flow", 28, 32, torch.float32), list[str]()
    fixed, measured = Watched(model=smooth), Watched(model=run)
    one = fit(job_of(settings, x), fixed, log.append)
    found = fit(job_of(settings, x, MEASURED), measured, log.append)
    assert (fixed.most, measured.most) == (1, min(8, 2 * size)) and measured.samples == fixed.samples
    assert measured.calls < 2 * fixed.calls / size
    assert_close(dict(found.solver.parameters[3]), dict(one.solver.parameters[3]), rtol=1e-3, atol=1e-4)
    assert ("samples per call" in "".join(log)) == (size > 1)


def test_batches_of_one_and_of_eight_find_the_same_solver():
    found = [
        fit(job_of(FitSettings(steps=(3,)), starts("flow", 28, 32), size), curved, lambda line: None) for size in (1, 8)
    ]
    assert_close(*(dict(result.solver.parameters[3]) for result in found), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("part", [0.1, 0.3, 0.6, 0.9])
def test_a_resumed_fit_keeps_the_measured_size_its_clock_and_its_file(part, tmp_path, monkeypatch):
    run, clock = seconds(GPU)
    monkeypatch.setattr(samples_module.time, "perf_counter", clock)
    job = job_of(FitSettings(steps=(3,)), starts("flow", 28, 32, torch.float32), MEASURED)

    def file_of(solver: Solver) -> bytes:
        return solver.save(tmp_path / "solver.safetensors", overwrite=True).read_bytes()

    whole = Watched(model=run)
    expected = file_of(fit(job, whole, lambda line: None).solver)

    def stop(x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    paths = {"cache": tmp_path / "cache", "journal": tmp_path / "journal"}
    with pytest.raises(KeyboardInterrupt):
        fit(job, Watched(int(part * whole.calls), stop, run), lambda line: None, **paths)
    assert file_of(fit(job, run, lambda line: None, **paths).solver) == expected


def test_samples_of_one_prompt_length_share_calls():
    groups = ["long" if row % 3 else "short" for row in range(28)]
    passes: list[int] = []  # a host makes one per prompt length

    def model(x: Tensor, sigma: Tensor, row: list[int]) -> Tensor:
        passes.append(len({groups[i] for i in row}))
        return smooth(x, sigma)

    job = job_of(FitSettings(steps=(3,)), starts("flow", 28, 32), 4, row=list(range(28)))
    mixed = fit(job, model, lambda line: None).report[3].error_after
    most = sum(passes)
    passes.clear()
    grouped = fit(job.on(torch.device("cpu"), groups), model, lambda line: None).report[3].error_after
    assert max(passes) == 1 and sum(passes) < 0.85 * most
    assert grouped == pytest.approx(mixed, rel=0.2)  # it starts from other samples


def test_a_hosts_own_shortage_halves_the_calls_and_frees_its_cache(monkeypatch):
    class NoMemory(Exception):
        """A host's error."""

    freed, sizes = [], []

    def work(start: int, stop: int) -> int:
        sizes.append(stop - start)
        if stop - start > 2:
            raise NoMemory("allocation on device failed")
        return stop - start

    memory = Memory(lambda error: isinstance(error, NoMemory), lambda: freed.append(len(sizes)))
    limit = BatchLimit(memory=memory)
    assert sum(limit.each(10, 8, work)) == 10
    assert sizes[:3] == [8, 4, 2] and freed == [1, 2] and limit.limit == 2
    with pytest.raises(LookupError):
        list(limit.each(1, 1, lambda start, stop: {}[0]))

    run, clock = seconds(GPU)
    monkeypatch.setattr(samples_module.time, "perf_counter", clock)
    sizes.clear()

    def timed(x: Tensor, sigma: Tensor) -> Tensor:
        return run(x[: work(0, len(x))], sigma)

    assert seconds_of_call(timed, Samples(starts("flow", 8), {}, 8), "", memory) == pytest.approx(GPU[2])
    assert sizes == [8, 4, 2, 2, 2] and freed == [1, 2, 1, 2]
