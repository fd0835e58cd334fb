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
from copy import copy
from pathlib import Path
from random import Random

import pytest
import torch
from authors_files import checkpoint, snapshot_bytes
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
    "a header of 8 exabytes": (with_header(b"{}" * 46, length=2**63), "no header's length at the beginning"),
    "a header of 16 exabytes": (with_header(b"{}" * 46, length=2**64 - 1), "no header's length at the beginning"),
    "a header as long as the file": (with_header(b"{" + b" " * 3_000_000 + b"}"), "a header of 3000002 bytes"),
    # Of the library's versions the old ones refuse it, the new ones make a tensor without entries.
    "a tensor of 2^63 columns": (sized([0, 2**63 - 1]), "must have timedeltas, coeffs|not a safetensors file"),
    "a tensor of 2^124 entries": (sized([2**62, 2**62]), "not a safetensors file"),
    "a tensor of negative size": (sized([-1, 8]), "not a safetensors file"),
    "65 dimensions": (sized([1] * 65), "no tensor of at most 2 dimensions"),
    "100,000 dimensions": (sized([1] * 100_000), "no tensor of at most 2 dimensions"),
    "numbers of 4 bits": (sized([2, 0], "F4"), "not a safetensors file"),
    "a name twice": (with_header(b'{"2/a":{"dtype":"F64","shape":[0],"data_offsets":[0,0]},"2/a":{}}'), "stands twice"),
    "a card twice": (with_header(b'{"__metadata__":{"format_version":"1"},"__metadata__":{}}'), "stands twice"),
    "steps twice": (card(steps='{"2": {}, "2": {"note": "the other"}}'), "JSON object .* '2' stands twice"),
    "ten thousand entries": (card(**{f"key {i}": "" for i in range(10_000)}), "the card has unknown"),
    "a note of a megabyte": (card(note="x" * 1_000_000), "not a safetensors file|note must be text of at most 2000"),
    "a note of 3000 characters": (card(note="x" * 3000), "note must be text of at most 2000 characters"),
    "a note with escapes": (card(note="\x1b[2J"), "note must be text .* without control characters"),
    "half a pair in a note": (card(steps=r'{"2": {"note": "\ud800"}}'), "note must be text .* without control"),
    "a number of 5000 digits": (
        card(steps='{"2": {"history": ' + "9" * 5000 + "}}"),
        "a number of 5000 digits: no figure has more than 1000",
    ),
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


def nested_tuples_hidden(levels: int, after: bytes) -> bytes:
    """Returns the same, with opcodes after each tuple that change nothing and end in no tuple's own opcode."""
    level = b"h\x00h\x00\x86" + after + b"q\x00"
    return b"\x80\x02}X\x01\0\0\0a](N\x85" + after + b"q\x00" + level * levels + b"esh\x00Ns."


def sized_by(size: bytes) -> bytes:
    """Returns a pickle of a tensor whose size is what a pickle of it left on the stack."""
    return b"\x80\x04}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n(NK\0" + size + b")\x89}tRs."


def nested_lists(levels: int) -> bytes:
    """Returns a pickle of an object whose class's name is a list of 2^levels leaves: of many the text has no end."""
    head = b"\x80\x02}X\x09\0\0\0predictorctorch_utils.persistence\n_reconstruct_persistent_obj\n}("
    names = b"X\x05\0\0\0state}X\x0a\0\0\0class_name"
    return head + names + b"](]q\x00" + b"](h\x00h\x00eq\x00" * levels + b"eu\x85Rs."


def storage_of(value: object) -> bytes:
    """Returns a pickle that holds a torch file of the old kind in a storage's place."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    content = buffer.getvalue()
    head = b"\x80\x03}X\x01\0\0\0actorch.storage\n_load_from_bytes\nB"
    return head + struct.pack("<I", len(content)) + content + b"\x85Rs."


def twice_in_itself(levels: int) -> list:
    """Returns a list of 2^levels leaves, which takes as many lists as it has levels."""
    nested: list = []
    for _ in range(levels):
        nested = [nested, nested]
    return nested


PICKLES = {
    "a hash without end": (nested_tuples(64), "refers to tuples again, more than 16 times"),
    "a hash without end, behind BUILD": (nested_tuples_hidden(64, b"Nb"), "refers to tuples again"),
    "a hash without end, behind APPENDS": (nested_tuples_hidden(64, b"(e"), "refers to tuples again"),
    "a hash that overflows the stack": (b"\x80\x04}N" + b"\x85" * 500_000 + b"Ns.", "more than 1000 tuples"),
    "a product of 400 MB": (sized_by(b"(C\x0a0123456789J" + struct.pack("<i", 40_000_000) + b"t"), "no whole numbers"),
    "a rho whose text has no end": (snapshot_bytes(schedule_rho=twice_in_itself(30)), "rho must be a number"),
    "a text without end": (nested_lists(64), "refers to tuples again, more than 16 times"),
    "a name that is a list": (nested_lists(8), "a class's name must be a text"),
    "a memo of 2^31 entries": (b"\x80\x02}r\xff\xff\xff\x7f.", "beyond its own size, 2147483647"),
    "a memo of 2^60 entries, in digits": (b"\x80\x02}p1152921504606846976\n.", "beyond its own size"),
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
    with zipfile.ZipFile(source) as file, zipfile.ZipFile(target, "w", compression) as other:
        for name in file.namelist():
            other.writestr(name, changed.get(name.rpartition("/")[2].replace(".", "_"), file.read(name)))
    return target.getvalue()


def behind(head: bytes, path: Path) -> bytes:
    """Returns a file that a zip reader takes for a sound checkpoint, and torch for the pickles before it."""
    magic, system = 0x1950A86A20F9469CFC6C, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    return b"".join(pickle.dumps(v, 2) for v in (magic, 1001, system)) + head + checkpoint(path).read_bytes()


def with_decoy(bomb: bytes, path: Path) -> bytes:
    """Returns a checkpoint with a bomb in its pickle's place, under a name in capitals, and the pickle beside it."""
    target = io.BytesIO()
    with zipfile.ZipFile(checkpoint(path)) as file, zipfile.ZipFile(target, "w") as other:
        for name in file.namelist():
            other.writestr(name.replace("data.pkl", "decoy.pkl"), file.read(name))
        other.writestr(file.namelist()[0].rpartition("/")[0] + "/data.PKL", bomb)
    return target.getvalue()


def shared_record(count: int) -> bytes:
    """Returns a zip of `count` entries of 600 kB that all stand for the same bytes."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as file:
        file.writestr("a/data.pkl", pickle.dumps({}, 2))
        file.writestr("a/data/0", bytes(600_000))
        one = file.infolist()[-1]
        for i in range(1, count):
            again = copy(one)
            again.filename = again.orig_filename = f"a/data/{i}"
            file.filelist.append(again)
        file._didModify = True
    return target.getvalue()


TORCH_FILES = {
    "a pickle beside its decoy": (lambda p: with_decoy(nested_tuples(64), p), "one pickle"),
    "500 names of one record": (lambda p: shared_record(500), "bytes together|Overlapped"),
    "a hash that overflows the stack": (
        lambda p: zipped(checkpoint(p), data_pkl=b"\x80\x02}N" + b"\x85" * 300_000 + b"Ns."),
        "more than 1000 tuples",
    ),
    "three million empty lists": (
        lambda p: checkpoint(p, dyweight_weights_raw=torch.empty(3_000_000, 0)).read_bytes(),
        "one or two dimensions",
    ),
    "90,000 dimensions": (
        lambda p: checkpoint(
            p, dyweight_weights_raw=torch.ones(1).as_strided((1,) * 90_000, (1,) * 90_000)
        ).read_bytes(),
        "one or two dimensions",
    ),
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
        "refused as no torch file of numbers alone",
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


def test_torch_reads_the_zip_that_was_checked_and_not_the_pickles_before_it(tmp_path):
    (sound,) = read_tables(checkpoint(tmp_path / "sound.pt"))
    path = tmp_path / "two.pt"
    path.write_bytes(behind(nested_tuples(64), path))
    (table,) = read_tables(path)
    assert all(torch.equal(table.tensors[key], tensor) for key, tensor in sound.tensors.items())


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
