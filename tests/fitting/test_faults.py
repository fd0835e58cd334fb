"""Faults during a fit: memory runs out, the network returns NaN or raises, a kill, a file that cannot be written."""

from __future__ import annotations

import errno
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from fits import FLOW, Watched, quick_fit, starts
from killed_fits import kill_fits
from learned_solvers.samplers.files.write import write_whole
from learned_solvers.training import GradientDescent, LevenbergMarquardt
from learned_solvers.training.data.batch_limit import BatchLimit, is_out_of_memory
from learned_solvers.training.data.probe import PROBE_CALLS, check_is_function
from learned_solvers.training.data.samples import CountedDenoiser, Samples
from learned_solvers.training.data.teacher import Teacher
from learned_solvers.training.models.conditioning import read_conditioning, write_conditioning
from learned_solvers.training.store.journal import Journal
from learned_solvers.training.store.output import claimed
from torch import Tensor
from torch.testing import assert_close
from watch import memory_limit

TERABYTE = 2**40
# Few steps: after more of them rounding decides when a fit ends.
SETTINGS = {"steps": (2,), "held_out": 4, "teacher_steps": 6, "optimizer": LevenbergMarquardt(work=1.5)}
BY_GRADIENT = {"optimizer": GradientDescent(batch=8, epochs=4), "initial": "euler, shift 1"}


def smooth(x: Tensor, sigma: Tensor) -> Tensor:
    """A denoiser that draws to the nearer of two points."""
    return torch.tanh(3 * x / (0.2 + sigma[:, None])) / (1 + 0.5 * sigma[:, None])


def fit_weights(model, **settings) -> tuple[Tensor, list[str]]:
    """The weights of a small fit, and its log."""
    log: list[str] = []
    x = starts("flow", 12, 5, torch.float32)
    result = quick_fit(model, x, progress=log.append, **{**SETTINGS, **settings})
    return result.solver.parameters[2]["weights"], log


@pytest.fixture(scope="module")
def undisturbed() -> Tensor:
    """The weights of a fit without faults."""
    weights, log = fit_weights(smooth)
    assert not any("memory" in line for line in log)
    return weights


def test_errors_of_gpu_allocators_mean_out_of_memory():
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 18 GB)"))


@pytest.mark.parametrize(
    ("most", "sizes", "settings", "tolerance"),
    [
        (1, [8, 4, 2], {"teacher": "heun"}, 1e-3),
        (1, [2], {}, 1e-3),
        (3, [8, 4], {}, 1e-3),
        (3, [8, 4], BY_GRADIENT, 1e-4),
    ],
)
def test_a_fit_halves_its_calls_when_memory_runs_out(most, sizes, settings, tolerance):
    def hungry(x: Tensor, sigma: Tensor) -> Tensor:
        if len(x) > most:
            torch.empty(TERABYTE * len(x))  # really requested
        return smooth(x, sigma)

    whole, _ = fit_weights(smooth, **settings)
    with memory_limit(2**34):
        halved, log = fit_weights(hungry, **settings)
    assert_close(halved, whole, rtol=tolerance, atol=tolerance / 10)
    lines = [line for line in log if "out of memory" in line]
    assert lines == [f"out of memory with {n} samples per call: continuing with {n // 2}" for n in sizes]


@pytest.mark.parametrize(("size", "message"), [(TERABYTE, "allocate"), (-1, "negative")])
def test_an_error_that_halving_cannot_help_is_raised(size, message):
    log: list[str] = []
    with memory_limit(2**34), pytest.raises(RuntimeError, match=message):
        list(BatchLimit(log.append).each(4, 4, lambda start, stop: torch.empty(size)))
    advice = "close what else uses the memory, or choose a smaller image size"
    assert log[-1:] == [f"out of memory with a single sample: {advice}"] * (message == "allocate")


@pytest.mark.parametrize(("count", "size", "most"), [(7, 3, 99), (8, 8, 1), (9, 4, 3), (1, 5, 1), (0, 3, 1)])
def test_every_sample_is_worked_on_once_and_in_order(count, size, most):
    def work(start: int, stop: int) -> list[int]:
        if stop - start > most:
            raise MemoryError
        return list(range(start, stop))

    assert [i for part in BatchLimit().each(count, size, work) for i in part] == list(range(count))


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_single_sample_is_tried_once_more_where_one_fitted_before(most):
    failures = []

    def work(start: int, stop: int) -> int:
        if start <= 3 < stop and len(failures) < most:
            failures.append(stop - start)
            raise MemoryError
        return stop - start

    if most < 3:
        assert sum(BatchLimit().each(7, 2, work)) == 7
    else:
        with pytest.raises(MemoryError):
            list(BatchLimit().each(7, 2, work))
        assert failures == [2, 1, 1]


def test_a_shortage_in_a_remainder_does_not_limit_whole_parts():
    sizes, shortage = [], [True]

    def work(start: int, stop: int) -> None:
        sizes.append(stop - start)
        if stop - start == 2 and shortage:  # another program has the memory for a while
            shortage.clear()
            raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")

    limit = BatchLimit()
    list(limit.each(10, 4, work))
    list(limit.each(8, 4, work))
    assert sizes == [4, 4, 2, 1, 1, 4, 4]


def test_a_second_failure_of_a_size_limits_it_although_other_work_fits():
    """A Jacobian takes more memory than a run, and both share the limit."""
    limit, failures = BatchLimit(), []

    def jacobian(start: int, stop: int) -> None:
        if stop - start > 8:
            failures.append(stop - start)
            raise MemoryError

    for _ in range(10):
        list(limit.each(64, 64, lambda start, stop: None))
        list(limit.each(64, 64, jacobian))
    assert limit.limit == 8 and failures == [64, 32, 16, 64, 32, 16]


def fail(denoised: Tensor) -> Tensor:
    raise LookupError("the model's own error")


NAN = r"network call \d+ \(sigma [0-9.]+\) returned \d+ non-finite values out of \d+ for a state of normal magnitude"


@pytest.mark.parametrize(
    ("at", "act", "error", "message"),
    [*((at, lambda d: d * math.nan, ValueError, NAN) for at in (1, 30, 60)), (40, fail, LookupError, "own error")],
    ids=["nan 1", "nan 30", "nan 60", "error 40"],
)
def test_a_fit_whose_model_fails_resumes_without_loss(undisturbed, at, act, error, message, tmp_path):
    broken, paths = Watched(at, act, smooth), {"journal": tmp_path / "journal", "cache": tmp_path / "cache"}
    with pytest.raises(error, match=message):
        fit_weights(broken, **paths)
    # Numbers are checked at the end of a microbatch, so that nothing waits for the device in between.
    assert at <= broken.calls < at + (100 if error is ValueError else 1) and not list(tmp_path.rglob("*.part"))
    weights, log = fit_weights(broken, **paths)
    assert_close(weights, undisturbed, rtol=0, atol=0)
    assert log[0].startswith("resuming the fit in")


@pytest.mark.parametrize("at", [1, PROBE_CALLS])
def test_a_result_that_is_not_finite_is_no_memory_of_earlier_calls(at):
    broken, samples = Watched(at, lambda d: d * math.nan, smooth), Samples(starts("flow", 2, 5, torch.float32), {}, 1)
    with pytest.raises(ValueError, match=NAN):
        check_is_function(broken, samples, FLOW, lambda line: None)


def test_a_state_or_a_level_far_out_may_overflow_the_network():
    counted = CountedDenoiser(lambda x, sigma: x.half().float(), torch.float32)
    assert not torch.isfinite(counted(torch.full((1, 4), 1e6), torch.ones(1))).any()
    counted.check()
    counted.model, counted.highest = lambda x, sigma: x / 0, 1.0
    for level in (1.5, math.inf):  # above the model's levels, where a bad table may lead
        counted(torch.ones(1, 2), level * torch.ones(1))
        counted.check()
    counted(torch.ones(2, 2), 0.5 * torch.ones(2))
    message = r"network call 5 \(sigma 0\.5\) returned 4 non-finite values out of 4 .*: run the model in bfloat16"
    with pytest.raises(ValueError, match=message):
        counted.check()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills with SIGKILL, which Windows does not have")
def test_killed_fits_leave_whole_files_and_end_like_an_undisturbed_one(tmp_path):
    record = kill_fits(2, 1, tmp_path)
    assert len(record["runs"]) == 2 and record["finished"] >= 1


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="Windows has no limit of the file size")
def test_a_file_size_limit_leaves_the_file_unchanged(tmp_path):
    import resource

    file = tmp_path / "a"
    file.write_text("before")
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot be written \(File too large\): free up disk space") as refused:
            write_whole(file, b"x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert refused.value.errno == errno.EFBIG
    assert file.read_text() == "before" and os.listdir(tmp_path) == ["a"]


def test_an_existing_name_is_kept_without_overwrite_and_an_error_names_the_file(tmp_path, monkeypatch):
    def refuse(*names: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    write_whole(tmp_path / "a", b"new", overwrite=False)
    with pytest.raises(NotADirectoryError, match=r"b cannot be written \(.*a is a file, not a folder"):
        write_whole(tmp_path / "a" / "b", b"new")
    for turn in ("with hard links", "without"):
        with pytest.raises(FileExistsError):
            write_whole(tmp_path / "a", turn.encode(), overwrite=False)
        monkeypatch.setattr("os.link", refuse)
    write_whole(tmp_path / "b", b"new", overwrite=False)
    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(PermissionError, match=r"c cannot be written \(Operation not permitted\)"):
        write_whole(tmp_path / "c", b"new", overwrite=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"new", "b": b"new"}


def test_a_claimed_folder_is_locked_and_deleted_if_empty(tmp_path):
    with claimed(tmp_path / "a.fit", 0, name="a"):
        second = claimed(tmp_path / "a.fit", 0, name="a")
        with pytest.raises(OSError, match="another process is fitting a: wait for it, or choose another name"), second:
            pass
        assert (tmp_path / "a.fit").is_dir()
    assert os.listdir(tmp_path) == []
    with claimed(tmp_path / "a.fit", 0, name="a"):
        (tmp_path / "a.fit" / "journal").touch()
    assert os.listdir(tmp_path) == ["a.fit"] and os.listdir(tmp_path / "a.fit") == ["journal"]


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="Linux reports what is mapped into memory")
def test_no_file_of_a_fit_stays_mapped_after_reading(tmp_path):
    # Windows neither replaces nor deletes a mapped file.
    Journal(tmp_path / "journal", "").put("a", {"x": torch.ones(100_000)})
    conditions = [{"context": torch.ones(1, 77, 768)} for _ in range(2)]
    write_conditioning(tmp_path / "prompts", conditions, ["", "a cat"], "SD15")
    samples = Samples(torch.randn(64, 1000), {}, 64)
    Teacher("euler", 2).reference(smooth, samples, FLOW, cache=tmp_path / "teacher")
    kept = [
        Journal(tmp_path / "journal", "").get("a"),
        read_conditioning(tmp_path / "prompts", "SD15"),
        Teacher("euler", 2).reference(smooth, samples, FLOW, cache=tmp_path / "teacher"),
    ]
    assert str(tmp_path) not in Path("/proc/self/maps").read_text() and all(kept)
