"""Several writers and readers of one solver folder: nothing torn, nothing lost without a word."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from learned_solvers.samplers import load_solver
from oracles import ds_solver

HEAD = """if True:
    import sys
    sys.path.append(sys.argv[1])
    import conftest
    from pathlib import Path
    from learned_solvers.samplers import load_solver
    from learned_solvers.training.store.output import Output
    folder = Path(sys.argv[2])
"""
WRITER = """
    from oracles import ds_solver
    few, many = ds_solver(5), ds_solver(5, 6, 7, 8, 9, 10)
    print("ready", flush=True)
    for turn in range(10_000_000):
        (few, many)[turn % 2].save(folder / "shared.safetensors", overwrite=True)
"""
FIT = """
    output = Output(folder / "a.safetensors", sys.argv[3], overwrite=sys.argv[4] == "overwrite")
    print("ready", flush=True)
    input()
    try:
        output.check()
        with output.claimed(0):
            for file in output.files:
                (output.folder / file.name).write_text(sys.argv[3])
            output.deliver()
        print("delivered")
    except OSError as error:
        print(error)
"""


def process(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HEAD + code, str(Path(__file__).parents[1]), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def heard(of: subprocess.Popen[str]) -> str:
    assert of.stdout is not None
    return of.stdout.readline().strip()


def test_a_file_that_is_replaced_all_the_time_is_never_read_torn(tmp_path):
    writer, path = process(WRITER, tmp_path), tmp_path / "shared.safetensors"
    ds_solver(5).save(path)
    assert heard(writer) == "ready"
    seen: dict[tuple[int, ...], int] = {}
    try:
        for _ in range(5000):
            steps = load_solver(path).steps
            seen[steps] = seen.get(steps, 0) + 1
    finally:
        writer.kill()
        writer.wait()
    assert set(seen) == {(5,), (5, 6, 7, 8, 9, 10)} and min(seen.values()) > 50


def test_a_new_file_appears_whole(tmp_path):
    stop, path, torn = threading.Event(), tmp_path / "new.safetensors", []

    def read() -> None:
        while not stop.is_set():
            try:
                load_solver(path)
            except FileNotFoundError:
                pass
            except ValueError as error:
                torn.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    solver = ds_solver(5, 6, 7, 8, 9, 10)
    for _ in range(300):
        solver.save(path)
        path.unlink()
    stop.set()
    reader.join()
    assert torn == []


def test_of_many_that_write_one_name_at_once_one_does(tmp_path):
    told: list[str] = []
    start = threading.Barrier(8)

    def write() -> None:
        start.wait()
        try:
            told.append(str(ds_solver(5).save(tmp_path / "a.safetensors")))
        except FileExistsError as error:
            told.append(str(error))

    for turn in range(10):
        threads = [threading.Thread(target=write) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(told) == 8 * (turn + 1) and sum("exists already" not in line for line in told) == turn + 1
        assert os.listdir(tmp_path) == ["a.safetensors"]
        (tmp_path / "a.safetensors").unlink()


@pytest.mark.parametrize(
    "ways",
    [
        ("new", "new"),
        pytest.param(("overwrite", "overwrite"), marks=pytest.mark.slow),
        pytest.param(("new", "overwrite"), marks=pytest.mark.slow),
    ],
)
def test_of_two_fits_to_one_name_none_loses_its_files_without_a_word(tmp_path, ways):
    fits = [process(FIT, tmp_path, name, way) for name, way in zip(("one", "two"), ways, strict=True)]
    assert [heard(fit) for fit in fits] == ["ready", "ready"]
    for fit in fits:
        assert fit.stdin is not None
        fit.stdin.write("\n")
        fit.stdin.flush()
    told = [fit.communicate()[0].strip() for fit in fits]
    done = [name for name, line in zip(("one", "two"), told, strict=True) if line == "delivered"]
    refused = [line for line in told if line != "delivered"]
    contents = {path.read_text() for path in tmp_path.iterdir()}
    assert sorted(os.listdir(tmp_path)) == ["a.md", "a.png", "a.safetensors"]
    assert len(contents) == 1 and contents <= set(done), "files of both"
    assert all("another process is fitting" in line or "exists already" in line for line in refused)
    assert len(done) == 1 or "overwrite" in ways  # the later of two was told to overwrite
