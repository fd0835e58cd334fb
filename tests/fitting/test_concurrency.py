"""Several writers and readers of one solver folder: no torn file, and no loss without an error."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest
from learned_solvers.samplers import load_solver
from learned_solvers.training.store.output import Output
from oracles import ds_solver

FEW, MANY = ds_solver(5), ds_solver(5, 6, 7, 8, 9, 10)


def run_at_once(count: int, work: Callable[[int], str]) -> list[str]:
    """The results of `work` in `count` threads that start together; of an OSError its text."""
    start = threading.Barrier(count)

    def run(number: int) -> str:
        start.wait()
        try:
            return work(number)
        except OSError as error:
            return str(error)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


@contextmanager
def repeated(work: Callable[[], None]) -> Iterator[None]:
    """Repeats `work` in a thread; raises its error at the end."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.is_set():
            work()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(repeat)
        yield
        stop.set()
        future.result()


@pytest.mark.parametrize("new", [False, True])
def test_a_file_that_is_replaced_or_made_anew_continually_is_never_read_torn(new, tmp_path):
    path, seen = FEW.save(tmp_path / "shared.safetensors"), []

    def replace() -> None:
        for solver in (MANY, FEW):
            if new:
                path.unlink()
            solver.save(path, overwrite=not new)

    with repeated(replace):
        while len(seen) < 1500:
            with suppress(FileNotFoundError):
                seen.append(load_solver(path).steps)
    assert set(seen) == {FEW.steps, MANY.steps} and min(map(seen.count, set(seen))) > 50


@pytest.mark.parametrize("turn", range(10))
def test_of_many_writers_of_a_new_name_one_succeeds(tmp_path, turn):
    results = run_at_once(8, lambda number: str(FEW.save(tmp_path / "a.safetensors")))
    assert len([line for line in results if "already exists" not in line]) == 1
    assert os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("turn", range(10))
@pytest.mark.parametrize("overwrite", [(False, False), (True, True), (False, True)])
def test_of_two_fits_with_one_name_neither_loses_its_files_without_an_error(tmp_path, overwrite, turn):
    def deliver(number: int) -> str:
        output = Output(tmp_path / "a.safetensors", str(number), overwrite=overwrite[number])
        output.check()
        with output.claimed(0):
            for file in output.files:
                (output.folder / file.name).write_text(str(number))
            output.deliver()
        return "delivered"

    results = run_at_once(2, deliver)
    delivered = {str(number) for number, line in enumerate(results) if line == "delivered"}
    contents = {path.read_text() for path in tmp_path.iterdir()}
    assert sorted(os.listdir(tmp_path)) == ["a.md", "a.png", "a.safetensors"]
    assert len(contents) == 1 and contents <= delivered, "files of both"
    refusals = [line for line in results if line != "delivered"]
    assert all("another process is fitting" in line or "already exists" in line for line in refusals)
    assert len(delivered) == 1 or any(overwrite)  # the later of two may overwrite
