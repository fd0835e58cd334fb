"""What can go wrong in a fit: memory ends, the network returns NaN or raises, the disk is full, two want one name."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from learned_solvers.samplers import FlowNoise, load_solver
from learned_solvers.samplers.files.write import write_tensors, write_whole
from learned_solvers.training import GaussNewton, GradientDescent, fit_solver
from learned_solvers.training.data.batch_limit import BatchLimit, is_out_of_memory
from learned_solvers.training.data.samples import CountedDenoiser, Samples
from learned_solvers.training.data.teacher import Teacher
from learned_solvers.training.models.conditioning import read_conditioning, write_conditioning
from learned_solvers.training.store.journal import Journal
from learned_solvers.training.store.output import Output, claimed
from torch import Tensor
from watch import memory_limit

FLOW = FlowNoise()
# Few iterations: more of them let rounding decide when a fit ends.
SETTINGS = {"noise": FLOW, "steps": (2,), "held_out": 4, "teacher_steps": 6, "optimizer": GaussNewton(iterations=4)}


def model(x: Tensor, sigma: Tensor, **extra_args: object) -> Tensor:
    """A smooth denoiser: it draws to the nearer of two points."""
    return torch.tanh(3 * x / (0.2 + sigma[:, None])) / (1 + 0.5 * sigma[:, None])


def starts(count: int) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(1))


def fitted(denoiser, **settings) -> tuple[torch.Tensor, list[str]]:
    """Returns the weights of a small fit, and what it said."""
    said: list[str] = []
    result = fit_solver(denoiser, starts(12), progress=said.append, **{**SETTINGS, **settings})
    return result.solver.parameters[2]["weights"], said


@pytest.fixture(scope="module")
def whole() -> Tensor:
    """The weights of a fit in which nothing went wrong."""
    weights, said = fitted(model)
    assert not any("memory" in line for line in said)
    return weights


# Memory.


def hungry(most: int):
    """Returns a denoiser that really asks for a terabyte of memory when a call has more than `most` samples."""

    def denoiser(x: Tensor, sigma: Tensor, **extra_args: object) -> Tensor:
        if len(x) > most:
            torch.empty(2**40 * len(x))
        return model(x, sigma, **extra_args)

    return denoiser


def test_the_allocators_own_errors_are_known_as_such():
    with memory_limit(2**30), pytest.raises(RuntimeError) as refused:
        torch.empty(2**40)
    assert is_out_of_memory(refused.value)
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 18 GB)"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x3 and 4x3)"))


@pytest.mark.parametrize("most", [1, 3])
def test_a_fit_goes_on_with_half_as_many_samples_where_memory_ends(whole, most):
    with memory_limit(2**34):
        halved, said = fitted(hungry(most))
    torch.testing.assert_close(halved, whole, rtol=1e-3, atol=1e-4)
    told = [line for line in said if "out of memory" in line]
    sizes = [8, 4, 2] if most == 1 else [8, 4]
    assert told == [f"out of memory with {n} samples at a time: going on with {n // 2}" for n in sizes]


def test_a_gradient_is_summed_over_the_halves():
    settings = {"optimizer": GradientDescent(batch=8, epochs=4), "initial": "euler, shift 1"}
    whole, _ = fitted(model, **settings)
    with memory_limit(2**34):
        halved, said = fitted(hungry(3), **settings)
    torch.testing.assert_close(halved, whole, rtol=1e-4, atol=1e-5)
    assert any("going on with" in line for line in said)


def test_what_needs_more_memory_for_one_sample_than_there_is_ends_in_the_allocators_error():
    said: list[str] = []
    with memory_limit(2**34), pytest.raises(RuntimeError, match="allocate"):
        list(BatchLimit(said.append).each(4, 4, lambda start, stop: torch.empty(2**40)))
    assert said[-1] == "out of memory with one sample at a time: a smaller picture takes less"


def test_another_error_is_not_taken_for_missing_memory():
    with pytest.raises(RuntimeError, match="shapes"):
        list(BatchLimit().each(4, 4, lambda start, stop: torch.ones(2, 3) @ torch.ones(2, 3)))


@pytest.mark.parametrize(("count", "size", "most"), [(7, 3, 99), (8, 8, 1), (9, 4, 3), (1, 5, 1), (0, 3, 1)])
def test_every_sample_is_worked_on_once_and_in_order(count, size, most):
    def work(start: int, stop: int) -> list[int]:
        if stop - start > most:
            raise MemoryError
        return list(range(start, stop))

    assert [i for part in BatchLimit().each(count, size, work) for i in part] == list(range(count))


def test_a_remainder_that_ran_out_of_memory_says_nothing_of_whole_parts():
    sizes, full = [], [True]

    def work(start: int, stop: int) -> None:
        sizes.append(stop - start)
        if stop - start == 2 and full:  # another program has the memory for a while
            full.clear()
            raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")

    limit = BatchLimit()
    list(limit.each(10, 4, work))
    list(limit.each(8, 4, work))
    assert sizes == [4, 4, 2, 1, 1, 4, 4]


def test_work_that_takes_more_of_a_sample_is_learned_after_two_ends():
    """A Jacobian takes more memory than a run, and both share the limit."""
    limit, ends = BatchLimit(), []

    def jacobian(start: int, stop: int) -> None:
        if stop - start > 8:
            ends.append(stop - start)
            raise MemoryError

    for _ in range(10):
        list(limit.each(64, 64, lambda start, stop: None))
        list(limit.each(64, 64, jacobian))
    assert limit.most == 8 and ends == [64, 32, 16, 64, 32, 16]


class Broken:
    """The denoiser, of which one call ends as `act` says."""

    def __init__(self, at: int, act: Callable[[Tensor], Tensor]) -> None:
        self.at, self.act, self.calls = at, act, 0

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: object) -> Tensor:
        self.calls += 1
        denoised = model(x, sigma, **extra_args)
        return self.act(denoised) if self.calls == self.at else denoised


# NaN.


@pytest.mark.parametrize("after", [1, 60, 400])
def test_a_network_that_returns_nan_ends_the_fit_by_naming_call_sigma_and_remedy(whole, after, tmp_path):
    broken = Broken(after, lambda denoised: denoised * float("nan"))
    told = r"not finite, in network call \d+, at sigma [0-9.]+, from a state of ordinary size .*: run the model in bf"
    with pytest.raises(ValueError, match=told):
        fitted(broken, journal=tmp_path / "journal", cache=tmp_path / "cache")
    assert broken.calls == after
    again, _ = fitted(model, journal=tmp_path / "journal", cache=tmp_path / "cache")
    torch.testing.assert_close(again, whole, rtol=0, atol=0)


def test_a_state_that_a_bad_table_led_to_may_overflow_the_network():
    counted = CountedDenoiser(lambda x, sigma: x.half().float(), torch.float32)
    assert not torch.isfinite(counted(torch.full((1, 4), 1e6), torch.ones(1))).any()
    with pytest.raises(ValueError, match=r"4 numbers of 4 that are not finite, in network call 2, at sigma 0\.5"):
        CountedDenoiser(lambda x, sigma: x / 0, torch.float32)(torch.ones(2, 2), 0.5 * torch.ones(2))


# A model that raises.


@pytest.mark.parametrize("after", [100, 250, 400])
def test_a_model_that_raises_loses_nothing(whole, after, tmp_path):
    def fail(denoised: Tensor) -> Tensor:
        raise LookupError("the model's own error")

    broken = Broken(after, fail)
    places = {"journal": tmp_path / "journal", "cache": tmp_path / "cache"}
    with pytest.raises(LookupError, match="the model's own error"):
        fitted(broken, **places)
    assert broken.calls == after and not list(tmp_path.rglob("*.part"))
    again, said = fitted(broken, **places)
    torch.testing.assert_close(again, whole, rtol=0, atol=0)
    assert "going on with the fit" in said[0]


# The disk.


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 256 kB, where this user may make one."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no small file system can be made here: mount needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_leaves_what_was_there_and_names_the_file(full_disk):
    file = full_disk / "journal.safetensors"
    write_tensors(file, {"x": torch.ones(100)})
    before = file.read_bytes()
    with pytest.raises(OSError, match=r"journal\.safetensors cannot be written \(No space left on device\): make room"):
        write_tensors(file, {"x": torch.ones(100_000)})
    assert file.read_bytes() == before and os.listdir(full_disk) == [file.name]


def test_a_fit_that_meets_a_full_disk_goes_on_when_there_is_room(full_disk, whole):
    places = {"journal": full_disk / "journal", "cache": full_disk / "cache"}
    ballast = full_disk / "ballast"

    def fill(denoised: Tensor) -> Tensor:  # another program takes what is left
        with pytest.raises(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 512)
        return denoised

    with pytest.raises(OSError, match="No space left on device") as refused:
        fitted(Broken(200, fill), **places)
    assert refused.value.errno == errno.ENOSPC
    ballast.unlink()
    again, said = fitted(model, **places)
    assert "going on with the fit" in said[0]
    torch.testing.assert_close(again, whole, rtol=0, atol=0)


def test_a_file_size_limit_leaves_what_was_there(tmp_path):
    code = """if True:
        import resource, signal, sys
        sys.path.append(sys.argv[2])
        import conftest
        from pathlib import Path
        from learned_solvers.samplers.files.write import write_whole
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_whole(Path(sys.argv[1]), b"x" * 2000)
        except OSError as error:
            print(error)"""
    file = tmp_path / "a"
    file.write_text("dear")
    ran = subprocess.run([sys.executable, "-c", code, str(file), str(Path(__file__).parents[1])], capture_output=True)
    assert b"cannot be written (File too large): make room for it" in ran.stdout
    assert file.read_text() == "dear" and os.listdir(tmp_path) == ["a"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write into a folder that is read-only")
def test_a_read_only_folder_is_named_at_the_start(tmp_path):
    tmp_path.chmod(0o500)
    output, told = Output(tmp_path / "a.safetensors", ""), r"a\.fit cannot be written \(Permission denied\): choose"
    with pytest.raises(OSError, match=told), output.claimed(0):
        pass


def test_a_read_only_file_system_is_named_at_the_start(full_disk):
    if subprocess.run(["mount", "-o", "remount,ro", str(full_disk)], capture_output=True).returncode:
        pytest.skip("cannot be made read-only here")
    output = Output(full_disk / "a.safetensors", "")
    with pytest.raises(OSError, match=r"a\.fit cannot be written \(Read-only file system\): choose"), output.claimed(0):
        pass
    with pytest.raises(OSError, match=r"a\.safetensors cannot be written \(Read-only file system\)"):
        load_solver("ds_flow-sit").save(full_disk / "a.safetensors")


def test_a_damaged_journal_is_refused_with_the_remedy(tmp_path):
    journal = Journal(tmp_path / "journal", "a")
    journal.put("x", {"y": torch.ones(3)})
    content = (tmp_path / "journal").read_bytes()
    for damaged in (b"", content[:20], content[:-1], b"\xff" * 100):
        (tmp_path / "journal").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"journal cannot be read .*: delete the file to start anew"):
            Journal(tmp_path / "journal", "a")


def test_a_damaged_cache_of_the_teacher_is_made_again(tmp_path, caplog):
    samples = Samples(starts(4), {}, 4)
    first = Teacher("heun", 5).reference(model, samples, FLOW, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for damaged in (b"", whole[:100], whole[:-4]):
        file.write_bytes(damaged)
        again = Teacher("heun", 5).reference(model, samples, FLOW, cache=tmp_path)
        torch.testing.assert_close(again.end, first.end, rtol=0, atol=0)
        assert file.read_bytes() == whole
    assert caplog.text.count("is damaged") == 3 and caplog.text.count("the teacher runs again") == 3


# A second process.


def test_a_name_that_exists_is_refused_and_kept(tmp_path):
    (tmp_path / "a").write_text("dear")
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "a", b"new", overwrite=False)
    assert (tmp_path / "a").read_text() == "dear" and os.listdir(tmp_path) == ["a"]


def test_where_there_are_no_hard_links_the_name_is_claimed_first(tmp_path, monkeypatch):
    def refuse(*names: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    write_whole(tmp_path / "a", b"new", overwrite=False)
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "a", b"newer", overwrite=False)
    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(PermissionError, match=r"b cannot be written \(Operation not permitted\)"):
        write_whole(tmp_path / "b", b"new", overwrite=False)
    assert (tmp_path / "a").read_bytes() == b"new" and os.listdir(tmp_path) == ["a"]


def test_a_claim_leaves_no_trace_but_what_was_put_there(tmp_path):
    with claimed(tmp_path / "a.fit", 0, name="a"):
        second = claimed(tmp_path / "a.fit", 0, name="a")
        with pytest.raises(OSError, match="another process is fitting a: wait for it, or choose another name"), second:
            pass
        assert (tmp_path / "a.fit").is_dir()
    assert os.listdir(tmp_path) == []
    with claimed(tmp_path / "a.fit", 0, name="a"):
        (tmp_path / "a.fit" / "journal").touch()
    assert os.listdir(tmp_path) == ["a.fit"] and os.listdir(tmp_path / "a.fit") == ["journal"]


def test_a_folder_that_is_a_file_is_named_as_such(tmp_path):
    (tmp_path / "file").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(
            NotADirectoryError, match=r"a\.safetensors cannot be written \(.*file is a file, not a folder"
        ):
            load_solver("ds_flow-sit").save(tmp_path / "file" / "a.safetensors", overwrite=overwrite)
    assert (tmp_path / "file").read_text() == "dear"


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="what is mapped into memory is told by Linux")
def test_no_file_of_a_fit_stays_mapped_when_it_was_read(tmp_path):
    # Windows neither replaces nor deletes a file that is.
    Journal(tmp_path / "journal", "").put("a", {"x": torch.ones(100_000)})
    write_conditioning(
        tmp_path / "prompts", [{"context": torch.ones(1, 77, i)} for i in (768, 768)], ["", "a cat"], "SD15"
    )
    samples = Samples(torch.randn(64, 1000), {}, 64)
    Teacher("euler", 2).reference(model, samples, FLOW, cache=tmp_path / "teacher")
    kept = [
        Journal(tmp_path / "journal", "").get("a"),
        read_conditioning(tmp_path / "prompts", "SD15"),
        Teacher("euler", 2).reference(model, samples, FLOW, cache=tmp_path / "teacher"),
    ]
    assert str(tmp_path) not in Path("/proc/self/maps").read_text() and all(kept)
