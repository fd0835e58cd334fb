"""Hostile files, by the hundred and by hand: refused in our own words, in bounded time and memory, with nothing done.

`tests/fuzz/run.py` feeds the same readers a hundred thousand of them, guided by coverage.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import resource
import struct
import time
import zipfile
from pathlib import Path
from random import Random

import pytest
import torch
from authors_files import checkpoint
from fuzz.readers import READERS
from fuzz.watch import memory_limit, watched
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from learned_solvers.samplers import load_solver
from learned_solvers.training.import_weights import main, read_tables
from safetensors.torch import save

linux = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="limits of memory are Linux's")
ROOM, SECONDS = 2**29, 5


@pytest.mark.parametrize("name", READERS)
@settings(
    max_examples=150, derandomize=True, deadline=SECONDS * 1000, suppress_health_check=list(HealthCheck), database=None
)
@given(random=st.randoms(use_true_random=False), chosen=st.integers(0, 100))
def test_a_spoilt_file_is_read_or_refused_in_our_own_words(name, tmp_path_factory, random: Random, chosen):
    reader = READERS[name]
    seeds = SEEDS.setdefault(name, reader.seeds())
    folder = FOLDERS.setdefault(name, tmp_path_factory.mktemp(name))
    content = reader.spoilt(seeds[chosen % len(seeds)], random)
    with memory_limit(4 * ROOM):
        reader.accepts(content, folder)


SEEDS: dict[str, list[bytes]] = {}
FOLDERS: dict[str, Path] = {}


@pytest.mark.parametrize("name", READERS)
def test_the_files_that_the_spoilt_ones_are_made_of_are_sound(name, tmp_path):
    assert all(READERS[name].accepts(content, tmp_path) for content in READERS[name].seeds())


def test_a_watched_reader_that_writes_executes_or_raises_is_noticed(tmp_path):
    with watched() as seen:
        (tmp_path / "new").write_text("x")
        eval("1 + 1")
        os.system("true")
    assert {entry.split()[0] for entry in seen} >= {"open", "compile", "exec", "os.system"}


# Bombs, each made to fill the memory or to run for ever in a reader that trusts it.

METADATA = {"format_version": "1", "family": "ds", "prediction": "flow", "model_family": "m", "checkpoint": "c"}


def with_header(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def card(**entries: str) -> bytes:
    tensors = {"2/timedeltas": torch.tensor([0.5, 0.5]), "2/coeffs": torch.zeros(2, 2)}
    return save(tensors, metadata={**METADATA, "steps": '{"2": {}}', **entries})


def sized(shape: list[int], dtype: str = "F64") -> bytes:
    tensor = {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}
    return with_header({"__metadata__": {**METADATA, "steps": '{"2": {}}'}, "2/coeffs": tensor})


SOLVER_FILES = {
    "a header of 8 exabytes": (with_header(b"{}" * 46, length=2**63), "a header of 9223372036854775808 bytes"),
    "a header of 16 exabytes": (with_header(b"{}" * 46, length=2**64 - 1), "a header of 18446744073709551615 bytes"),
    "a header as long as the file": (with_header(b"{" + b" " * 3_000_000 + b"}"), "a header of 3000002 bytes"),
    # Of the library's versions the old ones refuse it, the new ones make a tensor without entries.
    "a tensor of 2^63 columns": (sized([0, 2**63 - 1]), "must have timedeltas, coeffs|not a safetensors file"),
    "a tensor of 2^124 entries": (sized([2**62, 2**62]), "not a safetensors file"),
    "a tensor of negative size": (sized([-1, 8]), "not a safetensors file"),
    "numbers of 4 bits": (sized([2, 0], "F4"), "not a safetensors file"),
    "a name twice": (with_header(b'{"2/a":{"dtype":"F64","shape":[0],"data_offsets":[0,0]},"2/a":{}}'), "stands twice"),
    "a card twice": (with_header(b'{"__metadata__":{"format_version":"1"},"__metadata__":{}}'), "stands twice"),
    "steps twice": (card(steps='{"2": {}, "2": {"note": "the other"}}'), "JSON object .* '2' stands twice"),
    "ten thousand entries": (card(**{f"key {i}": "" for i in range(10_000)}), "the card has unknown"),
    "a note of a megabyte": (card(note="x" * 1_000_000), "not a safetensors file|note must be text of at most 2000"),
    "a note of 3000 characters": (card(note="x" * 3000), "note must be text of at most 2000 characters"),
    "a note with escapes": (card(note="\x1b[2J"), "note must be text .* without control characters"),
    "half a pair in a note": (card(steps=r'{"2": {"note": "\ud800"}}'), "note must be text .* without control"),
    "a number of 5000 digits": (card(steps='{"2": {"history": ' + "9" * 5000 + "}}"), "integer string conversion"),
    "lists in lists": (card(steps="[" * 400_000), "nested too deeply|JSON object"),
    "a thousand steps": (card(steps=json.dumps({n: {} for n in range(1, 1001)})), "the parameters are for"),
}


def refused_cheaply(read, path: Path, rule: str) -> None:
    """Asserts that a reader refuses a file in little time, and in little memory beside that it had."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    told = rf"{re.escape(path.name)}: .*({rule})"
    with memory_limit(ROOM), watched() as seen, pytest.raises(ValueError, match=told) as refused:
        read(path)
    assert time.process_time() - began < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < ROOM / 1024
    assert not isinstance(refused.value.__cause__, MemoryError)
    assert not seen


def nested_tuples(levels: int) -> bytes:
    """Returns a pickle of a dictionary with a key of 2^levels leaves, whose hash asks all of them."""
    return b"\x80\x02}X\x01\0\0\0a]()q\x00" + b"h\x00h\x00\x86q\x00" * levels + b"esh\x00Ns."


def nested_lists() -> bytes:
    """Returns a pickle of an object whose class's name is a list of 2^64 leaves, whose text has no end."""
    head = b"\x80\x02}X\x09\0\0\0predictorctorch_utils.persistence\n_reconstruct_persistent_obj\n}("
    names = b"X\x05\0\0\0state}X\x0a\0\0\0class_name"
    return head + names + b"](]q\x00" + b"](h\x00h\x00eq\x00" * 64 + b"eu\x85Rs."


def storage_of(value: object) -> bytes:
    """Returns a pickle that holds a torch file of the old kind in a storage's place."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    content = buffer.getvalue()
    head = b"\x80\x03}X\x01\0\0\0actorch.storage\n_load_from_bytes\nB"
    return head + struct.pack("<I", len(content)) + content + b"\x85Rs."


PICKLES = {
    "a hash without end": (nested_tuples(64), "refers to tuples again, more than 16 times"),
    "a text without end": (nested_lists(), "a class's name must be a text"),
    "a memo of 2^31 entries": (b"\x80\x02}r\xff\xff\xff\x7f.", "beyond its own size, 2147483647"),
    "a memo of 2^60 entries, in digits": (b"}p1152921504606846976\n.", "beyond its own size"),
    "16 GB of bytes": (b"\x80\x05}\x96\0\0\0\0\4\0\0\0Ns.", "but only 3 remain"),
    "a storage that is a tensor of stride 0": (storage_of(torch.zeros(1).expand(2**34)), "nothing but that"),
    "a storage of the new kind": (
        b"\x80\x03}X\x01\0\0\0actorch.storage\n_load_from_bytes\nB\x04\0\0\0PK\3\4\x85Rs.",
        "torch's old layout",
    ),
    "a number of 2040 bits": (b"\x80\x02}\x8a\xff" + b"\x7f" * 255 + b"Ns.", "a number beyond"),
    "popped": (pickle.dumps({})[:-1] + b"N0.", "moves what is on the stack"),
}


def zipped(source: Path, compression: int = zipfile.ZIP_STORED, **changed: bytes) -> bytes:
    """Returns a torch file whose entries of the given endings are others."""
    target = io.BytesIO()
    with zipfile.ZipFile(source) as file, zipfile.ZipFile(target, "w", compression) as copy:
        for name in file.namelist():
            copy.writestr(name, changed.get(name.rpartition("/")[2].replace(".", "_"), file.read(name)))
    return target.getvalue()


TORCH_FILES = {
    "64 MB, compressed": (
        lambda p: zipped(checkpoint(p), zipfile.ZIP_DEFLATED, version=b"3\n" + b" " * 2**26),
        "must not be compressed",
    ),
    "a hash without end": (lambda p: zipped(checkpoint(p), data_pkl=nested_tuples(64)), "refers to tuples again"),
    "a tensor of stride 0": (
        lambda p: checkpoint(p, dyweight_t_scales=torch.zeros(1).expand(2**34)).read_bytes(),
        "at most 10000 numbers",
    ),
    "the old kind": (
        lambda p: torch.save({}, p, _use_new_zipfile_serialization=False) or p.read_bytes(),
        "refused by torch.load",
    ),
}


BOMBS = [
    *(pytest.param(load_solver, ".safetensors", *entry, id=name) for name, entry in SOLVER_FILES.items()),
    *(pytest.param(read_tables, ".pkl", *entry, id=f"pickle: {name}") for name, entry in PICKLES.items()),
    *(pytest.param(read_tables, ".pt", *entry, id=f"torch: {name}") for name, entry in TORCH_FILES.items()),
]


@linux
@pytest.mark.parametrize(("read", "suffix", "content", "rule"), BOMBS)
def test_a_bomb_is_refused_in_little_time_and_memory(read, suffix, content, rule, tmp_path):
    path = tmp_path / f"bomb{suffix}"
    path.write_bytes(content(path) if callable(content) else content)
    refused_cheaply(read, path, rule)


# Names.


@pytest.mark.parametrize(
    "name", ["a\0b.safetensors", "x" * 5000 + ".safetensors", "/" * 100 + "x.safetensors", "\udcff"]
)
def test_a_name_that_is_no_files_is_refused(name):
    with pytest.raises((ValueError, FileNotFoundError), match=r"does not exist|no bundled solver is called") as refused:
        load_solver(name)
    assert len(str(refused.value)) < 2000 and str(refused.value).isprintable()


def test_a_link_in_a_circle_is_no_file(tmp_path):
    path = tmp_path / "a.safetensors"
    path.symlink_to(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_solver(path)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no /dev/zero")
@pytest.mark.parametrize("target", ["/dev/zero", "/dev/stdin", "/proc/self/environ", "/etc/passwd"])
def test_a_link_to_something_else_tells_nothing_of_it(tmp_path, target):
    path = tmp_path / "a.safetensors"
    path.symlink_to(target)
    with pytest.raises((FileNotFoundError, ValueError)) as refused:
        load_solver(path)
    assert "root" not in str(refused.value).replace(str(path), "") and len(str(refused.value)) < 400


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_link_is_never_written_through(tmp_path, overwrite):
    (tmp_path / "dear").write_text("something dear")
    path = tmp_path / "a.safetensors"
    path.symlink_to(tmp_path / "dear")
    if overwrite:
        load_solver("ds_flow-sit").save(path, overwrite=True)
        assert not path.is_symlink() and load_solver(path).steps
    else:
        with pytest.raises(FileExistsError):
            load_solver("ds_flow-sit").save(path)
    assert (tmp_path / "dear").read_text() == "something dear"


@pytest.mark.parametrize("name", ["../../outside", "/outside", "dyweight_cifar10/../../outside", ["a"], {"a": 1}, 1.5])
def test_figures_cannot_choose_where_they_are_written(name, tmp_path, capsys):
    figures = {"timedeltas": [0.5, 0.5], "coeffs": [[0, 0], [0, 0]]}
    table = {"weights": [[1]], "t_scale": [1], "dataset": name, "schedule": "discrete", "afs": False, "history": 3}
    table |= {"teacher": "heun", "teacher_steps": 3, "loss": "l2"}
    content = {"tables": {"x": table} if not isinstance(name, str) else {name: {"two": figures}, "x": table}}
    (tmp_path / "figures.json").write_text(json.dumps(content))
    (tmp_path / "in").mkdir()
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "figures.json"), "--output", str(tmp_path / "in" / "deep")])
    assert stopped.value.code == 1 and capsys.readouterr().err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["figures.json", "in"]
