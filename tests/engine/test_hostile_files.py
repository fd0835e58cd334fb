"""Hostile files: read, or refused in our own words, in bounded time and memory, with nothing done.

Tables of broken files, each with the rule that it breaks; then files that hypothesis breaks.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import re
import struct
import time
import zipfile
from contextlib import contextmanager
from copy import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from authors_files import checkpoint, snapshot_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from learned_solvers.samplers import EDMNoise, FlowNoise, VPNoise, list_solvers, load_solver
from learned_solvers.samplers.files.card import Card, StepCard
from learned_solvers.samplers.files.solver import BUNDLED
from learned_solvers.samplers.guidance import Guidance
from learned_solvers.training.import_weights import main
from learned_solvers.training.published.read import read_tables
from safetensors.torch import save
from watch import memory_limit, watched

ROOM, SECONDS = 2**29, 5  # bytes and seconds that a reader may take for any file
REMEDIES = ("update Learned Solvers", "get the file again", "put it where models belong")
NAN, INF, DEEP = float("nan"), float("inf"), "[" * 100_000 + "]" * 100_000

# Solver files.

GRID = {"rule": "polynomial", "rho": 7.0}
CARD = {"format_version": "2", "architecture": "EDM", "checkpoint": "test"}
DYWEIGHT = (
    {**CARD, "family": "dyweight", "prediction": "edm", "steps": {"3": {"grid": GRID}}},
    {"3/weights": torch.eye(3).double()[None], "3/t_scale": torch.ones(1, 3).double()},
)
DS = (
    {**CARD, "family": "ds", "prediction": "flow", "steps": {"3": {}}},
    {"3/timedeltas": torch.tensor([[0.5, 0.25, 0.25]]).double(), "3/coeffs": torch.zeros(1, 3, 3).double()},
)


def content(base, tensors=None, /, **card):
    """Returns a sound file after changes of its tensors and of its card, where None leaves an entry out."""
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in {**base[0], **card}.items() if v is not None}
    return save({**base[1], **(tensors or {})}, metadata=texts)


dyweight, ds = partial(content, DYWEIGHT), partial(content, DS)


def step(**entry):
    return dyweight(steps={"3": {"grid": GRID, **entry}})


def knots(*values, sets=None, **card):
    """Returns a file with guidance knots, and as many sets of parameters."""
    tensors = {name: torch.cat([tensor] * (sets or len(values))) for name, tensor in DS[1].items()}
    return ds(tensors, **{"guidance": {"kind": "cfg", "values": [5]}, "steps": {"3": {"knots": list(values)}}, **card})


def changed(base, name, value, index):
    tensor = base[1][name].clone()
    tensor[0][index] = value
    return content(base, {name: tensor})


def with_header(header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def sized(shape, dtype="F64"):
    return with_header({"3/coeffs": {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}})


NO_CONTAINER = "not a safetensors file"
NO_JSON = ["", "{", '{"3": ' * 100_000, DEEP, "[" * 900 + "]" * 900, "9" * 5000]
GUIDANCES = [
    *("cfg", "7.5", "null", [], {"kind": "both"}, {"kind": []}, {"kind": "none", "values": [1]}, {"colour": "red"}),
    *({"kind": "cfg", "values": v} for v in ([2, 1], [1, 1], [-1], [NAN], [INF], [True], ["1"], [[1]], 5)),
    *({"kind": "cfg", "usual": v} for v in ([], "7", 10**400, -1)),
    *({"kind": kind, "cfg": v} for kind, v in (("embedded", -1), ("embedded", INF), ("embedded", "1"), ("cfg", 1))),
]
KNOTS = [[0, 1], [-1, 1], [2, 1], [1, 1], [NAN], [1, INF], ["1", "2"], [True, 2], [[1], [2]]]
STEP_COUNTS = ["-1", "0", "1e9", "3.0", "", "three", " 3", "03", "٣", "3_0", "9" * 5000, "1000000000"]
STEP_ENTRIES = {
    "history": ["x", 1.5, -1, True],
    "network_calls": [[], INF],
    "error_before": ["low", NAN, 10**400],
    "note": [{"a": 1}, "\ud800", "x" * 3000],
    "options": [5, "x", [1]],
    "knots": [5, {}, "x"],
}
GRIDS = [
    (5, "grid must be"),
    ({"rho": 7}, "grid rule must be one of"),
    ({"rule": "cosine"}, "grid rule must be one of .*'cosine'"),
    ({"rule": []}, "grid rule must be one of"),
    ({"rule": "polynomial"}, "polynomial needs rho, got none"),
    ({"rule": "flow_shift", "shift": 1}, "does not exist for edm models"),
    *(({**GRID, "rho": v}, "rho must be a positive finite number") for v in (-7, 0, INF, NAN, "7", True, 10**400, [])),
]
OPTIONS = [
    ("analytic_first", 1, "analytic_first must be true or false, got 1"),
    ("divisor", ["state"], "divisor must be"),
    ("colour", "red", "DyWeight has no options colour"),
]
TENSOR_NAMES = ["weights", "3/", *(f"{count}/weights" for count in ("", "-1", "1e9", "²", "03", "٣", "9" * 5000))]
NUMBERS = [
    *((DYWEIGHT, "3/weights", place, value, "hold finite") for place, value in (((1, 0), NAN), ((0, 2), INF))),
    *((DYWEIGHT, "3/t_scale", place, value, "hold finite") for place, value in ((1, NAN), (2, -INF))),
    *((DYWEIGHT, "3/t_scale", 1, value, "hold 3 positive factors") for value in (0.0, -1.0)),
    (DYWEIGHT, "3/weights", (0, 2), 1e-9, "be lower-triangular"),
    *((DS, "3/timedeltas", 1, value, "hold 3 positive steps") for value in (-0.25, 0.0)),
    (DS, "3/timedeltas", 1, 0.3, "sum to 1, got 1.05"),
    (DS, "3/coeffs", (1, 0), -INF, "hold finite"),
    *((DS, "3/coeffs", place, 1e-9, "be strictly lower-triangular") for place in ((1, 1), (0, 2))),
]
TENSORS = [
    *((DYWEIGHT, "3/weights", torch.eye(3)[None].to(d), f"hold .*{d}") for d in (torch.int64, torch.uint8, torch.bool)),
    (DYWEIGHT, "3/weights", torch.eye(4)[None], r"be .*\[3, 3\] for 3 calls, got \[4, 4\]"),
    (DYWEIGHT, "3/weights", torch.ones(1, 3), r"be .*\[3, 3\] for 3 calls, got \[3\]"),
    *((DYWEIGHT, "3/weights", tensor, r"have shape \[1, ...\]") for tensor in (torch.eye(3), torch.tensor(1.0))),
    *((DYWEIGHT, "3/t_scale", torch.ones(1, n), "hold 3 positive factors") for n in (4, 9999)),
    (DS, "3/timedeltas", torch.ones(1, 3).int(), "hold .*int32"),
    (DS, "3/coeffs", torch.zeros(1, 2, 2), r"be .*\[3, 3\], got \[2, 2\]"),
]
SOLVER_FILES = {
    # The container.
    "empty": (b"", NO_CONTAINER),
    "zip": (b"PK\x03\x04" + b"0" * 1000, NO_CONTAINER),
    "cut in the header": (dyweight()[:100], NO_CONTAINER),
    "cut in the data": (dyweight()[:-8], NO_CONTAINER),
    "more than the header says": (dyweight() + b"xx", NO_CONTAINER),
    "text": (b"once upon a time", "no header's length at the beginning, in a file of 16: it has 2 to 1048576"),
    "header of 16 exabytes": (with_header(b"{}" * 46, length=2**64 - 1), "no header's length at the beginning"),
    "header as long as the file": (with_header(b"{" + b" " * 3_000_000 + b"}"), "a header of 3000002 bytes"),
    "header no JSON": (with_header(b"notjson!"), NO_CONTAINER),
    "header nested deeply": (with_header(b'{"__metadata__":' + DEEP.encode() + b"}"), NO_CONTAINER),
    "oversize": (dyweight() + b"\0" * 16 * 2**20, r"at most 16777216 bytes, this one has \d+"),
    # Of the library's versions the old ones refuse it, the new ones make a tensor without entries.
    "tensor of 2^63 columns": (sized([0, 2**63 - 1]), f"format_version|{NO_CONTAINER}"),
    "tensor of 2^124 entries": (sized([2**62, 2**62]), NO_CONTAINER),
    "tensor of negative size": (sized([-1, 8]), NO_CONTAINER),
    "tensor of 100,000 dimensions": (sized([1] * 100_000), "no tensor of at most 3 dimensions"),
    "tensor of numbers of 4 bits": (sized([2, 0], "F4"), NO_CONTAINER),
    # The card.
    "no card": (save(DYWEIGHT[1]), "format_version must be 2, got none"),
    "older version": (dyweight(format_version="1"), "format_version must be 2, got 1"),
    "newer version": (dyweight(format_version="3"), "format_version must be 2, got 3: update"),
    **{f"no {entry}": (dyweight(**{entry: None}), entry) for entry in DYWEIGHT[0]},
    "empty checkpoint": (dyweight(checkpoint=""), "checkpoint must not be empty"),
    "unknown entry": (dyweight(colour="red"), "the card has unknown .*colour"),
    "ten thousand entries": (dyweight(**{f"key {i}": "" for i in range(10_000)}), "the card has unknown"),
    "unknown family": (dyweight(family="unipc"), "family must be one of dyweight, ds, got 'unipc'"),
    "unknown prediction": (dyweight(prediction="eps"), "prediction must be .*, got 'eps'"),
    "doubtful truth": (dyweight(transferable="yes"), "transferable must be true or false, got 'yes'"),
    "note of 3000 characters": (dyweight(note="x" * 3000), "note must be text of at most 2000 characters"),
    "note of a megabyte": (dyweight(note="x" * 1_000_000), f"{NO_CONTAINER}|note must be text of at most 2000"),
    "note with escapes": (dyweight(note="\x1b[2J"), "note must be text .* without control characters"),
    # Its guidance, the knots of its steps.
    **{f"guidance {str(v)[:40]!r}": (dyweight(guidance=v), "guidance") for v in [*NO_JSON[1:], *GUIDANCES]},
    **{f"knots {values}": (knots(*values), "knots must") for values in KNOTS},
    "knots without guidance": (knots(1, 2, guidance=None), "knots need a guidance"),
    "knots of no guidance": (knots(1, 2, guidance={"kind": "none"}), "knots need a guidance"),
    "knots more than sets": (knots(1, 2, 3, sets=2), r"must have shape \[3, ...\], one set per knot, got \[2, 3"),
    "knots fewer than sets": (knots(1, 2, sets=3), r"must have shape \[2, ...\], one set per knot"),
    "knots none, sets two": (knots(sets=2), r"must have shape \[1, ...\]"),
    # Its steps.
    **{f"steps {str(v)[:20]!r}": (dyweight(steps=v), "steps must be") for v in [*NO_JSON, [3], "null"]},
    "steps nested in a note": (dyweight(steps='{"3": {"note": ' + DEEP + "}}"), "steps must be"),
    "steps none": (dyweight(steps={}), r"step counts of at least 1, got \[\]"),
    **{f"steps key {key[:9]!r}": (dyweight(steps={key: {"grid": GRID}}), "step counts") for key in STEP_COUNTS},
    "steps too many": (ds(steps={"3": {}, "5": {}}), r"lists steps \[3, 5\], .* for \[3\]"),
    "steps a thousand": (ds(steps={n: {} for n in range(1, 1001)}), "the parameters are for"),
    **{f"step {v!r}": (ds(steps={"3": v}), "must be an? .*object") for v in ([], None, 5, "abc")},
    "step unknown entry": (step(colour=1), "unknown entries colour"),
    **{f"{k} {str(v)[:9]!r}": (step(**{k: v}), f"{k} must be") for k, own in STEP_ENTRIES.items() for v in own},
    **{f"grid {str(value)[:40]}": (step(grid=value), rule) for value, rule in GRIDS},
    "grid none": (dyweight(steps={"3": {}}), "needs a grid rule, the card has none"),
    **{f"option {name} {value}": (step(options={name: value}), rule) for name, value, rule in OPTIONS},
    "option of another family": (ds(steps={"3": {"options": {"divisor": "call"}}}), "no options divisor"),
    # The tensors.
    "no tensors": (content((DYWEIGHT[0], {})), r"lists steps \[3\], the parameters are for \[\]"),
    "tensors of another family": (content((DS[0], DYWEIGHT[1])), "tensors must be timedeltas, coeffs, got"),
    "tensor too many": (dyweight({"3/bias": torch.ones(1)}), "tensors must be weights, t_scale, got .*bias"),
    "tensor of other steps": (dyweight({"5/weights": torch.eye(5)}), r"lists steps \[3\], .* for \[3, 5\]"),
    **{f"tensor {key[:9]!r}": (dyweight({key: torch.eye(3)}), 'are called "<steps>/<name>"') for key in TENSOR_NAMES},
    **{f"{k} {v} in {i}": (changed(b, k, v, i), f"{k[2:]} must {rule}") for b, k, i, v, rule in NUMBERS},
    **{f"{k} {list(t.shape)} {t.dtype}": (content(b, {k: t}), f"{k[2:]} must {rule}") for b, k, t, rule in TENSORS},
    "ds for edm": (ds(prediction="edm"), "DS-Solver does not exist for edm models"),
}
SOUND = {
    "dyweight": dyweight(),
    "ds": ds(),
    **{str(d): dyweight({"3/weights": torch.eye(3)[None].to(d)}) for d in (torch.float16, torch.bfloat16)},
    "safetensors' own metadata entry": dyweight(format="pt"),
    "knots": knots(2, 5.5, 8),
    "embedded guidance": knots(2, 5, guidance={"kind": "embedded", "values": [2, 5], "usual": 3.5, "cfg": 1}),
}


@contextmanager
def harmless():
    """Asserts that a reader takes little time and memory, and does nothing but read."""
    began = time.process_time()
    with memory_limit(ROOM), watched() as seen:
        yield
    assert time.process_time() - began < SECONDS
    assert not seen


def check_words(message, path):
    assert message.startswith(f"{path}: ") and len(message) < 1200 + len(str(path)) and message.isprintable()
    # What a newer version may have, a model, and all else: one of them.
    assert path.suffix != ".safetensors" or sum(message.count(remedy) for remedy in REMEDIES) == 1, message


def refusal(read, path, raw):
    path.write_bytes(raw)
    with harmless(), pytest.raises(ValueError) as refused:
        read(path)
    assert not isinstance(refused.value.__cause__, MemoryError)
    check_words(str(refused.value), path)
    return str(refused.value)


@pytest.mark.parametrize(("raw", "rule"), SOLVER_FILES.values(), ids=SOLVER_FILES)
def test_a_solver_file_that_breaks_a_rule_is_refused_with_its_name_the_rule_and_the_remedy(raw, rule, tmp_path):
    message = refusal(load_solver, tmp_path / "solver.safetensors", raw)
    assert re.search(rule, message), message


@pytest.mark.parametrize("raw", SOUND.values(), ids=SOUND)
def test_the_solver_files_that_the_broken_ones_are_made_of_are_sound(raw, tmp_path):
    (tmp_path / "solver.safetensors").write_bytes(raw)
    solver = load_solver(tmp_path / "solver.safetensors")
    assert solver.steps == (3,) and all(t.dtype == torch.float64 for t in solver.parameters[3].values())


def test_complex_numbers_are_refused(tmp_path):
    try:
        raw = dyweight({"3/weights": torch.eye(3)[None].to(torch.complex64)})
    except KeyError:
        pytest.skip("this safetensors writes no complex numbers")
    assert "weights must hold floating-point" in refusal(load_solver, tmp_path / "solver.safetensors", raw)


# Published figures: bombs, each made to fill the memory or to run for ever in a reader that trusts it.


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


def of_the_old_kind(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def storage_of(value: object) -> bytes:
    """Returns a pickle that holds a torch file of the old kind in a storage's place."""
    content = of_the_old_kind(value)
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
    "a rho whose text has no end": (snapshot_bytes(schedule_rho=twice_in_itself(30)), "rho must be a positive"),
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


def saved(**changed) -> bytes:
    return checkpoint(io.BytesIO(), **changed).getvalue()


def with_entries(changed: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Returns a checkpoint after changes of its zip's entries."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved())) as file, zipfile.ZipFile(target, "w", compression) as other:
        for name, entry in {**{name: file.read(name) for name in file.namelist()}, **changed}.items():
            other.writestr(name, entry)
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


MANY_DIMENSIONS = torch.ones(1).as_strided((1,) * 9000, (1,) * 9000)
TORCH_FILES = {
    "a pickle beside its decoy": (with_entries({"archive/data.PKL": nested_tuples(64)}), "one pickle"),
    "500 names of one record": (shared_record(500), "bytes together|Overlapped"),
    "a hash without end": (with_entries({"archive/data.pkl": nested_tuples(64)}), "refers to tuples again"),
    "a hash that overflows the stack": (
        with_entries({"archive/data.pkl": b"\x80\x02}N" + b"\x85" * 300_000 + b"Ns."}),
        "more than 1000 tuples",
    ),
    "3 million empty lists": (saved(dyweight_weights_raw=torch.empty(3_000_000, 0)), "one or two dimensions"),
    "9000 dimensions": (saved(dyweight_weights_raw=MANY_DIMENSIONS), "one or two dimensions"),
    "a tensor of stride 0": (saved(dyweight_t_scales=torch.zeros(1).expand(2**34)), "at most 10000 numbers"),
    "64 MB, compressed": (with_entries({"archive/data/9": bytes(2**26)}, zipfile.ZIP_DEFLATED), "not be compressed"),
    "the old kind": (of_the_old_kind({}), "torch file of numbers alone"),
}
PUBLISHED = {
    **{f"{name}.pkl": entry for name, entry in PICKLES.items()},
    **{f"{name}.pt": entry for name, entry in TORCH_FILES.items()},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_that_is_a_bomb_is_refused_in_little_time_and_memory(name, tmp_path):
    raw, rule = PUBLISHED[name]
    path = tmp_path / f"bomb{Path(name).suffix}"
    message = refusal(read_tables, path, raw)
    assert re.search(rule, message), message


def test_torch_reads_the_zip_that_was_checked_and_not_the_pickles_before_it(tmp_path):
    # A zip reader takes it for a sound checkpoint, torch for an old file.
    magic, system = 0x1950A86A20F9469CFC6C, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = b"".join(pickle.dumps(value, 2) for value in (magic, 1001, system)) + nested_tuples(64)
    (tmp_path / "two.pt").write_bytes(head + saved())
    (table,), (sound,) = read_tables(tmp_path / "two.pt"), read_tables(checkpoint(tmp_path / "sound.pt"))
    assert all(torch.equal(table.parameters[3][key], tensor) for key, tensor in sound.parameters[3].items())


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


# What hypothesis makes of sound files.

ODD_NUMBERS = [0, -1, 1, 9999, 10_000, 2**63, 10**400, -0.0, 1e-320, 1e308, NAN, INF]
ODD_TEXTS = ["", "..", "a\0b", "\x1b[2J", "\u202e", "\ud800", "٣", "03", "3/weights", "x" * 300, "9" * 5000]
TEXT = st.sampled_from(ODD_TEXTS) | st.text(max_size=8)
NUMBER = st.sampled_from(ODD_NUMBERS) | st.integers() | st.floats()
JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
)
OPCODES = [  # of pickles: calls, classes, lengths beyond the file, tuples and lists without end
    *(b"cos\nsystem\nX\x04\0\0\0true\x85R", b"cbuiltins\neval\nX\x01\0\0\x001\x85R", b"(X\x04\0\0\0trueios\nsystem\n"),
    *(b"\x8c\x02os\x8c\x06system\x93X\x04\0\0\0true\x85R", b"(cos\nsystem\nX\x04\0\0\0trueo", b"cos\nsystem\n)\x81"),
    *(b"\x82\xf0", b"ctorch.storage\n_load_from_bytes\n", b"ccollections\nOrderedDict\n", b"p2147483647\n"),
    *(b"r\xff\xff\xff\x7f", b"\x96" + b"\0" * 7 + b"\x7f", b"\x8a\xff" + b"\x7f" * 255, b"(" * 1000, b")" * 1000),
    *(b"]" * 1000 + b"a" * 999, b")" + b"2\x86" * 64, b")" + b"\x85" * 100_000 + b"}h\xf0"),
    *(b")q\xf0" + (b"h\xf0h\xf0\x86" + after + b"q\xf0") * 64 + b"N}h\xf0Nsb" for after in (b"", b"Nb", b"(e")),
]


def places(tree):
    """Returns (container, key) of every value inside a JSON tree."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    return [place for key in keys for place in ((tree, key), *places(tree[key]))]


@st.composite
def changed_tree(draw, tree):
    """A JSON tree with up to three values replaced, removed or under another name."""
    for _ in range(draw(st.integers(1, 3))):
        if not (inside := places(tree)):
            return draw(JSON)
        container, key = draw(st.sampled_from(inside))
        change = draw(st.sampled_from(["replace", "remove", "rename"]))
        if change == "remove":
            del container[key]
        elif change == "rename" and isinstance(container, dict):
            container[draw(TEXT)] = container.pop(key)
        else:
            container[key] = draw(JSON)
    return tree


@st.composite
def changed_bytes(draw, raw, cuts=None, pieces=()):
    """Bytes with a piece in the place of some of them, from one cut to another, or to the end."""
    cut = st.integers(0, len(raw)) if cuts is None else st.sampled_from(cuts)
    start, stop = sorted((draw(cut), draw(cut)))
    stop = draw(st.sampled_from([start, stop, min(start + 8, len(raw)), len(raw)]))
    return raw[:start] + draw(st.sampled_from([b"", *pieces]) | st.binary(max_size=16)) + raw[stop:]


def changed_pickle(raw):
    return changed_bytes(raw, [place for _, _, place in pickletools.genops(raw)], OPCODES)


@st.composite
def solver_files(draw):
    bundled = st.sampled_from(list_solvers()).map(lambda name: (BUNDLED / f"{name}.safetensors").read_bytes())
    raw = draw(st.sampled_from([*SOUND.values()]) | bundled)
    (length,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    card = header["__metadata__"]
    part = draw(st.sampled_from(["bytes", "header", "texts", "steps", "guidance", "numbers"]))
    if part == "bytes":
        return draw(changed_bytes(raw))
    if part == "header":
        header = draw(changed_tree(header))
    elif part == "texts":
        card |= draw(st.dictionaries(st.sampled_from(sorted(card)) | TEXT, TEXT, max_size=2))
    elif part == "numbers":
        at = 8 * draw(st.integers(0, len(data) // 8 - 1))
        data = data[:at] + struct.pack("<d", draw(st.floats())) + data[at + 8 :]
    else:
        card[part] = json.dumps(draw(changed_tree(json.loads(card.get(part, '{"kind": "cfg", "values": [5]}')))))
    return with_header(header, data)


@st.composite
def figures(draw):
    name = draw(st.sampled_from(["dyweight.json", "ds_solver.json"]))
    tables = json.loads((Path(__file__).parents[1] / "data" / name).read_text("utf-8"))["tables"]
    tree = {"tables": dict(list(tables.items())[:2])}
    if draw(st.booleans()):
        return draw(changed_bytes(json.dumps(tree).encode()))
    return json.dumps(draw(changed_tree(tree))).encode()


@st.composite
def torch_files(draw):
    with zipfile.ZipFile(io.BytesIO(saved())) as file:
        name = draw(st.sampled_from(file.namelist()))
        entry = draw((changed_pickle if name.endswith(".pkl") else changed_bytes)(file.read(name)))
    name = draw(st.sampled_from([name, name, name, "../../x", "archive/data.PKL"]))
    return draw(st.just(with_entries({name: entry})) | changed_bytes(saved()))


NOISES = {"flow": [FlowNoise(4096)], "vp": [VPNoise.stable_diffusion(), VPNoise.linear_beta()], "edm": [EDMNoise()]}
REPEATABLE = settings(
    max_examples=300, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def use(solver):
    """Stores the card of a solver and makes all its tables, which it may refuse in its own name."""
    assert Card.from_metadata(solver.card.to_metadata()) == solver.card
    for steps in solver.steps:
        for noise in NOISES[solver.prediction]:
            try:
                table = solver.table(steps, noise)
            except ValueError as error:
                assert str(error).startswith(solver.name) and len(str(error)) < 2000
            else:
                assert all(bool(torch.isfinite(own).all()) for own in (table.sigmas, table.scale, table.coeffs))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


MADE = {
    ".safetensors": solver_files(),
    ".json": figures(),
    ".pkl": changed_pickle(snapshot_bytes()),
    ".pt": torch_files(),
}


@pytest.mark.parametrize("suffix", MADE)
@REPEATABLE
@given(data=st.data())
def test_a_changed_file_is_read_or_refused_in_our_own_words(suffix, folder, data):
    path = folder / f"file{suffix}"
    path.write_bytes(data.draw(MADE[suffix]))
    with harmless():
        try:
            solvers = [load_solver(path)] if suffix == ".safetensors" else read_tables(path)
        except ValueError as error:
            solvers, refused = [], error
    if not solvers:
        assert not isinstance(refused, UnicodeError | json.JSONDecodeError)
        check_words(str(refused), path)
    for solver in solvers:
        use(solver)


LIMITS = st.sampled_from(ODD_NUMBERS) | st.floats(-1, 20)
ENTRIES = {  # of a card: names and values that an honest file may have
    Guidance: {
        "kind": st.sampled_from(["cfg", "embedded", "none"]),
        "values": st.lists(LIMITS, max_size=3).map(sorted),
        "usual": LIMITS,
        "cfg": LIMITS,
    },
    StepCard: {
        "grid": st.fixed_dictionaries({"rule": st.sampled_from(["polynomial", 5])}, optional={"rho": LIMITS}),
        "knots": st.lists(LIMITS, max_size=3).map(sorted),
        "options": st.dictionaries(TEXT, JSON, max_size=2),
        "error_after": LIMITS,
        "note": TEXT,
    },
}


@pytest.mark.parametrize("kind", ENTRIES)
@REPEATABLE
@given(data=st.data())
def test_a_cards_entry_is_refused_or_comes_back_as_it_is(kind, data):
    known = {name: value | JSON for name, value in ENTRIES[kind].items()}
    try:
        plain = kind.from_json(data.draw(st.fixed_dictionaries({}, optional=known) | JSON)).to_json()
    except ValueError:
        return
    text = json.dumps(plain)
    assert json.dumps(kind.from_json(json.loads(text)).to_json()) == text


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
