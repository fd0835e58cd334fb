"""Hostile published files: nothing in them is executed, and they are refused quickly and by name."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from copy import copy
from functools import reduce
from pathlib import Path

import pytest
import torch
from authors_files import MASK, T_SCALE, WEIGHTS, Call, checkpoint_bytes, snapshot_bytes, with_entries
from learned_solvers.training.published.inert_pickle import load_inert_pickle
from learned_solvers.training.published.read import read_tables
from watch import refusal

PERSISTENT = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def call(module: str, name: str, argument: str) -> bytes:
    """module.name(argument)."""
    return f"c{module}\n{name}\n".encode() + text(argument) + b"\x85R"


def entry(value: bytes) -> bytes:
    """A pickle of {"x": value}."""
    return b"\x80\x03}" + text("x") + value + b"s."


def storage(content: bytes) -> bytes:
    """A pickle of a dictionary with a tensor storage, whose torch file is `content`."""
    content = b"B" + struct.pack("<I", len(content)) + content
    return entry(b"ctorch.storage\n_load_from_bytes\n" + content + b"\x85R")


def old_torch_file(value: object) -> bytes:
    """A torch file of the old layout."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


TOUCH = "echo > proof"
CALLED = Call(os.system, TOUCH)
BOMB = b"\x80\x02" + call("os", "system", TOUCH) + b"."
HOSTILE = {  # a stock loader creates the file `proof` from each of them
    "GLOBAL, REDUCE.pkl": BOMB,
    "Python 2's eval.pkl": b"\x80\x02" + call("__builtin__", "eval", "open('proof', 'w').close()") + b".",
    "STACK_GLOBAL.pkl": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + text(TOUCH) + b"\x85R.",
    "INST.pkl": b"\x80\x02(" + text(TOUCH) + b"ios\nsystem\n.",
    "OBJ.pkl": b"\x80\x02(cos\nsystem\n" + text(TOUCH) + b"o.",
    "dotted.pkl": b"\x80\x04\x8c\x06shutil\x8c\x09os.system\x93" + text(TOUCH) + b"\x85R.",
    "memoised.pkl": b"\x80\x02cos\nsystem\nq\x000}h\x00" + text(TOUCH) + b"\x85R0.",
    "inside a dictionary.pkl": b"\x80\x02}" + text("predictor") + call("os", "system", TOUCH) + b"s.",
    "nested old torch.pkl": storage(old_torch_file({}).replace(pickle.dumps({}, protocol=2), BOMB)),
    "nested new torch.pkl": storage(with_entries({"archive/data.pkl": BOMB})),
    "nested bare pickle.pkl": storage(BOMB),
    "zip.pt": checkpoint_bytes(dyweight_weights_raw=CALLED),
    "old.pt": old_torch_file({"window_size": 2, "dyweight_weights_raw": CALLED}),
    "pickle.pt": pickle.dumps({"window_size": 2, "dyweight_weights_raw": CALLED}, protocol=2),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_a_stock_loader_executes_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refusal(read_tables, tmp_path / f"hostile{Path(name).suffix}", HOSTILE[name])
    assert ": rejected" in message and not Path("proof").exists()
    assert "weights_only" not in message  # torch's advice, which would run the file
    assert name != "zip.pt" or "system" in message
    load = pickle.loads if name.endswith(".pkl") else lambda raw: torch.load(io.BytesIO(raw), weights_only=False)
    with contextlib.suppress(Exception):
        load(HOSTILE[name])
    assert Path("proof").exists()


# Files that break a rule, and bombs, which fill the memory or run forever in a reader that trusts them.

DATA = Path(__file__).resolve().parents[1] / "data" / "dyweight.json"
TYPES = "its entries' types differ from those of published files"
NAME = "00000-cifar-nfe3"


def json_table(**changed: object) -> bytes:
    table = json.loads(DATA.read_text())["tables"][NAME]
    return json.dumps({"tables": {NAME: {**table, **changed}}}).encode()


def ds_table(model: str, coeff: float = 0.0) -> bytes:
    table = {"timedeltas": [0.5, 0.5], "coeffs": [[0.0, coeff], [0.0, 0.0]]}
    return json.dumps({"tables": {model: {"a": table}}}).encode()


def nested_tuples(levels: int, after: bytes = b"") -> bytes:
    """A pickle of a dictionary with a key of 2^levels leaves, which its hash visits.

    `after` are opcodes after each tuple that change nothing, so that no tuple's opcode comes last.
    """
    first = (b"N\x85" + after if after else b")") + b"q\x00"
    level = b"h\x00h\x00\x86" + after + b"q\x00"
    return b"\x80\x02}X\x01\0\0\0a](" + first + level * levels + b"esh\x00Ns."


def nested_lists(levels: int) -> bytes:
    """A pickle of an object whose class name is a list of 2^levels leaves, with a huge text."""
    head = b"\x80\x02}" + text("predictor") + PERSISTENT + b"}("
    names = text("state") + b"}" + text("class_name")
    return head + names + b"](]q\x00" + b"](h\x00h\x00eq\x00" * levels + b"eu\x85Rs."


def sized_by(size: bytes) -> bytes:
    """A pickle of a tensor whose size is made by these opcodes."""
    return b"\x80\x04}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n(NK\0" + size + b")\x89}tRs."


def shared_record(count: int) -> bytes:
    """A zip whose `count` entries of 600 kB share their bytes."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as file:
        file.writestr("a/data.pkl", pickle.dumps({}, 2))
        file.writestr("a/data/0", bytes(600_000))
        record = file.infolist()[-1]
        for i in range(1, count):
            other = copy(record)
            other.filename = other.orig_filename = f"a/data/{i}"
            file.filelist.append(other)
        file._didModify = True
    return target.getvalue()


REFUSED_OPCODES = {
    **{"EXT1": b"\x82\xf0.", "EXT2": b"\x83\xf0\x01.", "EXT4": b"\x84\xf0\0\0\x01."},
    **{"NEWOBJ": b"cbuiltins\nobject\n)\x81.", "NEWOBJ_EX": b"cbuiltins\nobject\n)}\x92."},
    **{"POP": b"N0.", "DUP": b"2.", "POP_MARK": b"(N1.", "FROZENSET": b"(\x91.", "NEXT_BUFFER": b"\x97."},
}
TWICE_IN_ITSELF = reduce(lambda nested, _: [nested, nested], range(30), [])  # a list of 2^30 leaves and 30 lists
MODELS = ("nope", "../../outside", "/outside", "dyweight_cifar10/../../outside")
MANY_DIMENSIONS = torch.ones(1).as_strided((1,) * 9000, (1,) * 9000)
REFUSED = {  # name: (bytes, key words of the message)
    "text.JSON": (b"hello", "Expecting value"),  # suffixes are read in either case
    "a list.json": (b"[]", TYPES),
    "no tables.json": (b"{}", "no entry 'tables'"),
    "empty tables.json": (b'{"tables": {}}', "it has no tables"),
    "no dataset.json": (b'{"tables": {"ms_coco": {"weights": [[1.0]]}}}', "no entry 'dataset'"),
    "nested deeply.json": (b"[" * 100_000, TYPES),
    "not UTF-8.json": (b"\xff\xff{}", "rejected"),
    "unknown schedule.json": (json_table(schedule="cosine"), "schedule must be one of .*, got 'cosine'"),
    "negative rho.json": (json_table(rho=-1), "rho must be a positive"),
    "ragged weights.json": (json_table(weights=[[1], [1, 2]]), "expected sequence of length 1"),
    "history text.json": (json_table(history="3"), "history must be of type int"),
    "unknown dataset.json": (json_table(dataset="my_own"), "model 'my_own' is unknown"),
    **{f"dataset {value}.json": (json_table(dataset=value), "dataset must be of type str") for value in ([1], {}, 1.5)},
    **{f"model {model!r}.json": (ds_table(model), "model '.*' is unknown") for model in MODELS},
    "uses later entries.json": (ds_table("flow-sit", 1.0), "2 steps: coeffs must"),
    # Snapshots of another layout.
    "no weights.pkl": (snapshot_bytes(_parameters=OrderedDict()), "no entry 'hybrid_weights'"),
    "mask text.pkl": (snapshot_bytes(_buffers=OrderedDict(mask="x")), "parameters must be tensors"),
    "a list of steps.pkl": (snapshot_bytes(teacher_steps=[]), "teacher_steps must be of type int"),
    "a number for a solver.pkl": (snapshot_bytes(solver_tea=5), TYPES),
    # Other pickles.
    "persistent id.pkl": (entry(b"Psomewhere\n"), "persistent id instruction"),
    "empty.pkl": (b"", "not a pickle of protocol 2"),
    "cut off.pkl": (pickle.dumps({"predictor": [1] * 100})[:-20], "not enough data"),
    "globals.pkl": (entry(text("torch._utils") + text("_rebuild_parameter.__globals__") + b"\x93"), "__globals__"),
    "an unknown solver.pkl": (entry(b"csolvers\nother_sampler\n"), "refers to solvers.other_sampler"),
    "a solver called.pkl": (entry(call("solvers", "heun_sampler", "x")), TYPES),
    "an object without state.pkl": (entry(PERSISTENT + b"}\x85R"), "no entry 'class_name'"),
    "a storage that is text.pkl": (entry(call("torch.storage", "_load_from_bytes", "x")), TYPES),
    "a change of OrderedDict.pkl": (entry(b"ccollections\nOrderedDict\nN}" + text("update") + b"Ns\x86b"), TYPES),
    "beyond a storage.pkl": (pickle.dumps({"x": torch.ones(8)}).replace(b"K\x08\x85", b"K\x09\x85"), "integers within"),
    "a tensor larger than its storage.pkl": (pickle.dumps({"x": torch.ones(1).expand(2**20)}), "within its storage"),
    "not a dictionary.pkl": (pickle.dumps([1, 2, 3]), "must hold a dictionary, got list"),
    **{f"{name}.pkl": (b"\x80\x04}" + opcodes, rf"\({name}\)") for name, opcodes in REFUSED_OPCODES.items()},
    # Bombs as pickles.
    "a hash without end.pkl": (nested_tuples(64), "reuses tuples more than 16 times"),
    "a hash without end, behind BUILD.pkl": (nested_tuples(64, b"Nb"), "reuses tuples"),
    "a hash without end, behind APPENDS.pkl": (nested_tuples(64, b"(e"), "reuses tuples"),
    "a hash that overflows the stack.pkl": (b"\x80\x04}N" + b"\x85" * 500_000 + b"Ns.", "more than 1000 tuples"),
    "a product of 400 MB.pkl": (sized_by(b"(C\x0a0123456789J\x00\x5a\x62\x02t"), "must be positive integers"),
    "a rho whose text has no end.pkl": (snapshot_bytes(schedule_rho=TWICE_IN_ITSELF), "rho must be a positive"),
    "a text without end.pkl": (nested_lists(64), "reuses tuples more than 16 times"),
    "a name that is a list.pkl": (nested_lists(8), "a class name must be text"),
    "a memo of 2^31 entries.pkl": (b"\x80\x02}r\xff\xff\xff\x7f.", "memo index 2147483647"),
    "a memo of 2^60 entries, in digits.pkl": (b"\x80\x02}p1152921504606846976\n.", "memo index"),
    "16 GB of bytes.pkl": (b"\x80\x05}\x96\0\0\0\0\4\0\0\0Ns.", "but only 3 remain"),
    "a storage of stride 0.pkl": (storage(old_torch_file(torch.zeros(1).expand(2**34))), "TypedStorage"),
    "a storage of the new layout.pkl": (storage(b"PK\3\4"), "torch's old layout"),
    "a number of 2040 bits.pkl": (b"\x80\x02}\x8a\xff" + b"\x7f" * 255 + b"Ns.", "a number beyond"),
    # Checkpoints.
    "weights number.pt": (checkpoint_bytes(dyweight_weights_raw=5), "parameters must be tensors"),
    "window list.pt": (checkpoint_bytes(window_size=[]), "history must be of type int"),
    "4 MB.pt": (checkpoint_bytes(padding=torch.zeros(2**20)), "more than 1048576 bytes"),
    "a pickle next to its decoy.pt": (with_entries({"archive/data.PKL": nested_tuples(64)}), "one pickle"),
    "500 names of one record.pt": (shared_record(500), "bytes together|Overlapped"),
    "a hash without end.pt": (with_entries({"archive/data.pkl": nested_tuples(64)}), "reuses tuples"),
    "3 million empty lists.pt": (checkpoint_bytes(dyweight_weights_raw=torch.empty(3_000_000, 0)), "one or two dim"),
    "9000 dimensions.pt": (checkpoint_bytes(dyweight_weights_raw=MANY_DIMENSIONS), "one or two dimensions"),
    "a tensor of stride 0.pt": (checkpoint_bytes(dyweight_t_scales=torch.zeros(1).expand(2**34)), "10000 numbers"),
    "64 MB, compressed.pt": (with_entries({"archive/data/9": bytes(2**26)}, zipfile.ZIP_DEFLATED), "uncompressed"),
    "the old layout.pt": (old_torch_file({}), "not a torch file of plain tensors"),
    "another suffix.ckpt": (b"", r"files end in \.json, \.pt, \.pkl"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_broken_file_or_bomb_is_refused_with_its_fault(name, tmp_path):
    content, words = REFUSED[name]
    message = refusal(read_tables, tmp_path / f"file{Path(name).suffix}", content)
    assert re.search(words, message), message


def test_torch_reads_the_zip_that_was_checked_and_not_the_pickles_before_it(tmp_path):
    # A zip reader takes it for a sound checkpoint, torch for an old file.
    magic, system = 0x1950A86A20F9469CFC6C, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = b"".join(pickle.dumps(value, 2) for value in (magic, 1001, system)) + nested_tuples(64)
    (tmp_path / "two.pt").write_bytes(head + checkpoint_bytes())
    (tmp_path / "sound.pt").write_bytes(checkpoint_bytes())
    (table,), (sound,) = read_tables(tmp_path / "two.pt"), read_tables(tmp_path / "sound.pt")
    assert all(torch.equal(table.parameters[3][key], tensor) for key, tensor in sound.parameters[3].items())


def test_objects_become_dictionaries_of_their_state_although_a_pickle_before_changed_the_stand_ins():
    set_defaults = b"N}U\x0c__defaults__(U\x01aU\x01aU\x01ats\x86b."
    with pytest.raises(ValueError, match="must hold a dictionary, got function"):
        load_inert_pickle(b"\x80\x02ctorch._utils\n_rebuild_parameter\n" + set_defaults)
    content = load_inert_pickle(snapshot_bytes())
    predictor, fit = content["predictor"], content["loss_fn"]
    tensors = {**predictor["_parameters"], **predictor["_buffers"]}
    expected = {"hybrid_weights": WEIGHTS, "t_scale": T_SCALE, "mask": MASK}
    torch.testing.assert_close(tensors, expected, rtol=0, atol=0)
    assert (predictor["class_name"], predictor["num_steps"]) == ("Predictor", 5)
    assert (fit["solver_stu"], fit["solver_tea"]) == ("dyweight_sampler", "heun_sampler")
