"""Several processes write and read one solver folder: no torn file, and no loss without an error."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

import pytest
from learned_solvers.samplers import load_solver
from learned_solvers.training.store.output import Output
from oracles import ds_solver
from PIL import Image

FEW, MANY = ds_solver(5), ds_solver(5, 6, 7, 8, 9, 10)
PROCESSES, TURNS = 3, 10


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Processes that import this checkout as the tests do."""
    with ProcessPoolExecutor(PROCESSES, get_context("spawn"), import_module, ("conftest",)) as pool:
        list(pool.map(time.sleep, PROCESSES * [0.5]))  # starts them all
        yield pool


def at_once(pool: ProcessPoolExecutor, count: int, work: Callable[[int], str]) -> list[str]:
    """The results of `work` in processes that start together; of an OSError its text."""
    return list(pool.map(partial(_start_at, time.time() + 0.1, work), range(count)))


def _start_at(moment: float, work: Callable[[int], str], number: int) -> str:
    while time.time() < moment:
        pass
    try:
        return work(number)
    except OSError as error:
        return str(error)


def write_in_turn(path: Path, overwrite: bool) -> None:
    """Writes FEW and MANY until a file `stop` appears; without `overwrite` each is deleted before the next."""
    while not path.with_name("stop").exists():
        for solver in (MANY, FEW):
            if not overwrite:
                path.unlink()
            solver.save(path, overwrite=overwrite)


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_file_that_is_replaced_or_appears_continually_is_never_read_torn(pool, tmp_path, overwrite):
    path, reads = FEW.save(tmp_path / "shared.safetensors"), Counter()
    writer = pool.submit(write_in_turn, path, overwrite)
    try:
        while min(reads[FEW.steps], reads[MANY.steps]) < 50 and not writer.done():
            with suppress(() if overwrite else FileNotFoundError):
                reads[load_solver(path).steps] += 1
    finally:
        path.with_name("stop").touch()
    writer.result()
    assert set(reads) == {FEW.steps, MANY.steps} and min(reads.values()) >= 50


def save_few(folder: Path, number: int) -> str:
    return str(FEW.save(folder / "a.safetensors"))


def test_of_many_writers_of_a_new_name_one_succeeds(pool, tmp_path):
    for turn in range(TURNS):
        folder = tmp_path / str(turn)
        results = at_once(pool, PROCESSES, partial(save_few, folder))
        assert len([line for line in results if "already exists" not in line]) == 1
        assert os.listdir(folder) == ["a.safetensors"]


def deliver(folder: Path, overwrite: tuple[bool, bool], number: int) -> str:
    output = Output(folder / "a.safetensors", f"fit {number}", overwrite=overwrite[number])
    output.check()
    with output.claimed(0):
        output.deliver(replace(FEW, card=replace(FEW.card, fit_id=output.fit_id)), output.fit_id)
        output.add_picture(Image.new("RGB", (8, 8), (number, 0, 0)))
        output.clear()
    return output.fit_id


@pytest.mark.parametrize("overwrite", [(False, False), (True, True), (False, True)])
def test_of_two_fits_with_one_name_neither_loses_its_files_without_an_error(pool, tmp_path, overwrite):
    for turn in range(TURNS):
        folder = tmp_path / str(turn)
        results = at_once(pool, 2, partial(deliver, folder, overwrite))
        delivered = {line for line in results if re.fullmatch(r"fit \d", line)}
        assert sorted(os.listdir(folder)) == ["a.md", "a.png", "a.safetensors"]
        owner = load_solver(folder / "a.safetensors").card.fit_id
        number = Image.open(folder / "a.png").getpixel((0, 0))[0]
        assert owner in delivered and owner in (folder / "a.md").read_text() and owner == f"fit {number}"
        refusals = [line for line in results if line not in delivered]
        assert all("another process is fitting" in line or "already exists" in line for line in refusals)
        assert len(delivered) == 1 or any(overwrite)  # the later of two may overwrite
