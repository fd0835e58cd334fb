"""Hostile pickles execute nothing: a stock unpickler would run each of them, ours refuses them by name."""

from __future__ import annotations

import contextlib
import copyreg
import io
import pickle
import re
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
from authors_files import snapshot_bytes
from learned_solvers.training.published.inert_pickle import load_inert_pickle
from learned_solvers.training.published.read import read_tables

EXTENSION = 0xF0  # of the registry of copyreg


class Bomb:
    """Creates the file that it is given, whichever way an unpickler comes to it."""

    def __new__(cls, proof: str | None = None) -> Bomb:
        if proof is not None:
            Path(proof).touch()
        return super().__new__(cls)

    def __setstate__(self, proof: str) -> None:
        Path(proof).touch()


@pytest.fixture(autouse=True)
def bomb(monkeypatch):
    """Makes Bomb importable as bomb.Bomb, and known to the extension registry, for the time of a test."""
    module = ModuleType("bomb")
    module.Bomb = type("Bomb", (Bomb,), {"__module__": "bomb"})
    copyreg.add_extension("bomb", "Bomb", EXTENSION)
    monkeypatch.setitem(sys.modules, "bomb", module)
    yield
    copyreg.remove_extension("bomb", "Bomb", EXTENSION)


def text(value: object) -> bytes:
    """Returns the opcode of a string."""
    encoded = str(value).encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def call(module: str, name: str, argument: object) -> bytes:
    """Returns the opcodes of module.name(argument)."""
    return f"c{module}\n{name}\n".encode() + text(argument) + b"\x85R"


def binary(value: bytes) -> bytes:
    """Returns the opcode of a bytes object."""
    return b"B" + len(value).to_bytes(4, "little") + value


def old_torch_file(content: bytes) -> bytes:
    """Returns a torch file of the old kind around pickled content."""
    buffer = io.BytesIO()
    torch.save({}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue().replace(pickle.dumps({}, protocol=2), content)


def new_torch_file(content: bytes) -> bytes:
    """Returns a torch file of the new kind around pickled content."""
    saved, changed = io.BytesIO(), io.BytesIO()
    torch.save({}, saved)
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(changed, "w") as target:
        for entry in source.namelist():
            target.writestr(entry, content if entry.endswith("/data.pkl") else source.read(entry))
    return changed.getvalue()


def shell(proof: Path) -> str:
    return f"echo > {proof}"


def nested(content: bytes) -> bytes:
    return b"\x80\x03ctorch.storage\n_load_from_bytes\n" + binary(content) + b"\x85R."


# Each of them makes a stock unpickler create the file `p`.
HOSTILE = {
    "os.system": lambda p: b"\x80\x03" + call("os", "system", shell(p)) + b".",
    "Python 2's eval": lambda p: b"\x80\x02" + call("__builtin__", "eval", f"open({str(p)!r}, 'w').close()") + b".",
    "GLOBAL, REDUCE": lambda p: b"\x80\x02" + call("bomb", "Bomb", p) + b".",
    "STACK_GLOBAL": lambda p: b"\x80\x04\x8c\x04bomb\x8c\x04Bomb\x93" + text(p) + b"\x85R.",
    "INST": lambda p: b"\x80\x02(" + text(p) + b"ibomb\nBomb\n.",
    "OBJ": lambda p: b"\x80\x02(cbomb\nBomb\n" + text(p) + b"o.",
    "NEWOBJ": lambda p: b"\x80\x02cbomb\nBomb\n" + text(p) + b"\x85\x81.",
    "NEWOBJ_EX": lambda p: b"\x80\x04cbomb\nBomb\n" + text(p) + b"\x85}\x92.",
    "BUILD": lambda p: b"\x80\x02cbomb\nBomb\n)\x81" + text(p) + b"b.",
    "EXT1": lambda p: b"\x80\x02\x82\xf0" + text(p) + b"\x85R.",
    "dotted": lambda p: b"\x80\x04\x8c\x06shutil\x8c\x09os.system\x93" + text(shell(p)) + b"\x85R.",
    "memoised": lambda p: b"\x80\x02cbomb\nBomb\nq\x000}h\x00" + text(p) + b"\x85R0.",
    "inside a dictionary": lambda p: b"\x80\x02}" + text("predictor") + call("bomb", "Bomb", p) + b"s.",
    "nested old torch": lambda p: nested(old_torch_file(b"\x80\x02" + call("bomb", "Bomb", p) + b".")),
    "nested new torch": lambda p: nested(new_torch_file(b"\x80\x02" + call("bomb", "Bomb", p) + b".")),
    "nested bare pickle": lambda p: nested(b"\x80\x02" + call("bomb", "Bomb", p) + b"."),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_a_pickle_that_a_stock_unpickler_executes_is_refused_by_name(make, tmp_path):
    proof, path = tmp_path / "proof", tmp_path / "hostile.pkl"
    path.write_bytes(make(proof))
    with pytest.raises(ValueError, match=r"hostile\.pkl: refused"):
        read_tables(path)
    assert not proof.exists()
    with contextlib.suppress(Exception):
        pickle.loads(path.read_bytes())
    assert proof.exists()


def in_dictionary(value: bytes) -> bytes:
    """Returns a pickle of {"x": value}, which would do as a snapshot if the value did."""
    return b"\x80\x02}" + text("x") + value + b"s."


# Each is refused for its reason.
ODD = {
    "persistent id": (in_dictionary(b"Psomewhere\n"), "persistent id instruction"),
    "empty": (b"", "no pickle of protocol 2 or later"),
    "text": (b"hello", "no pickle of protocol 2 or later"),
    "cut off": (pickle.dumps({"predictor": [1] * 100})[:-20], "not enough data"),
    "an allowed name's globals": (
        b"\x80\x04}" + text("x") + text("torch._utils") + text("_rebuild_parameter.__globals__") + b"\x93s.",
        "names torch._utils._rebuild_parameter.__globals__, which is not on the allow-list",
    ),
    "an unknown solver": (in_dictionary(b"csolvers\nother_sampler\n"), "not on the allow-list"),
    "a solver called": (in_dictionary(call("solvers", "heun_sampler", "x")), "not callable"),
    "an object without state": (
        in_dictionary(b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n}\x85R"),
        "class_name",
    ),
    "a storage that is text": (in_dictionary(call("torch.storage", "_load_from_bytes", "x")), "bytes-like"),
    "a change of OrderedDict": (
        in_dictionary(b"ccollections\nOrderedDict\nN}" + text("update") + b"Ns\x86b"),
        "immutable",
    ),
    "a tensor beyond its storage": (
        pickle.dumps({"x": torch.ones(8)}).replace(b"K\x08\x85", b"K\x09\x85"),
        "larger than its storage",
    ),
    "a tensor larger than its storage": (pickle.dumps({"x": torch.ones(1).expand(2**20)}), "larger than its storage"),
    "no dictionary": (pickle.dumps([1, 2, 3]), "must hold a dictionary, got list"),
}


@pytest.mark.parametrize(("content", "reason"), ODD.values(), ids=ODD)
def test_an_odd_pickle_is_refused(content, reason):
    with pytest.raises(Exception, match=re.escape(reason)):
        load_inert_pickle(content)


def test_objects_become_dictionaries_of_their_state_and_solvers_their_names():
    content = load_inert_pickle(snapshot_bytes())
    assert (content["predictor"]["class_name"], content["predictor"]["num_steps"]) == ("Predictor", 5)
    assert (content["loss_fn"]["solver_stu"], content["loss_fn"]["solver_tea"]) == ("dyweight_sampler", "heun_sampler")
