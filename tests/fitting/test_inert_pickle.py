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
from learned_solvers.training.published.inert_pickle import LARGEST, read_inert_pickle

EXTENSIONS = {"Bomb": 0xF0, "BombOf2": 0xF0F0, "BombOf4": 0xF0F0F0}


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
    for name, code in EXTENSIONS.items():
        setattr(module, name, type(name, (Bomb,), {"__module__": "bomb"}))
        copyreg.add_extension("bomb", name, code)
    monkeypatch.setitem(sys.modules, "bomb", module)
    yield
    for name, code in EXTENSIONS.items():
        copyreg.remove_extension("bomb", name, code)


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


def python(proof: Path) -> str:
    return f"open({str(proof)!r}, 'w').close()"


def nested(content: bytes) -> bytes:
    return b"\x80\x03ctorch.storage\n_load_from_bytes\n" + binary(content) + b"\x85R."


# Each of them makes a stock unpickler create the file `p`.
HOSTILE = {
    "os.system": lambda p: b"\x80\x03" + call("os", "system", shell(p)) + b".",
    "builtins.eval": lambda p: b"\x80\x03" + call("builtins", "eval", python(p)) + b".",
    "builtins.exec": lambda p: b"\x80\x03" + call("builtins", "exec", python(p)) + b".",
    "Python 2's eval": lambda p: call("__builtin__", "eval", python(p)) + b".",
    "GLOBAL, REDUCE": lambda p: call("bomb", "Bomb", p) + b".",
    "STACK_GLOBAL": lambda p: b"\x80\x04\x8c\x04bomb\x8c\x04Bomb\x93" + text(p) + b"\x85R.",
    "INST": lambda p: b"(" + text(p) + b"ibomb\nBomb\n.",
    "OBJ": lambda p: b"(cbomb\nBomb\n" + text(p) + b"o.",
    "NEWOBJ": lambda p: b"\x80\x02cbomb\nBomb\n" + text(p) + b"\x85\x81.",
    "NEWOBJ_EX": lambda p: b"\x80\x04cbomb\nBomb\n" + text(p) + b"\x85}\x92.",
    "BUILD": lambda p: b"\x80\x02cbomb\nBomb\n)\x81" + text(p) + b"b.",
    "EXT1": lambda p: b"\x80\x02\x82\xf0" + text(p) + b"\x85R.",
    "EXT2": lambda p: b"\x80\x02\x83\xf0\xf0" + text(p) + b"\x85R.",
    "EXT4": lambda p: b"\x80\x02\x84\xf0\xf0\xf0\x00" + text(p) + b"\x85R.",
    "dotted": lambda p: b"\x80\x04\x8c\x06shutil\x8c\x09os.system\x93" + text(shell(p)) + b"\x85R.",
    "memoised": lambda p: b"cbomb\nBomb\nq\x000}h\x00" + text(p) + b"\x85R0.",
    "inside a dictionary": lambda p: b"}" + text("predictor") + call("bomb", "Bomb", p) + b"s.",
    "as a key": lambda p: b"}" + call("bomb", "Bomb", p) + b"Ns.",
    "dropped before a dictionary": lambda p: call("bomb", "Bomb", p) + b"0}.",
    "nested old torch": lambda p: nested(old_torch_file(call("bomb", "Bomb", p) + b".")),
    "nested new torch": lambda p: nested(new_torch_file(call("bomb", "Bomb", p) + b".")),
    "nested bare pickle": lambda p: nested(call("bomb", "Bomb", p) + b"."),
    "oversize": lambda p: call("bomb", "Bomb", p) + b"." + b"0" * LARGEST,
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_a_stock_unpickler_would_execute_it(make, tmp_path):
    proof = tmp_path / "proof"
    with contextlib.suppress(Exception):
        pickle.loads(make(proof))
    assert proof.exists()


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_pickle_executes_nothing_and_is_refused_by_name(make, tmp_path):
    proof, path = tmp_path / "proof", tmp_path / "hostile.pkl"
    path.write_bytes(make(proof))
    with pytest.raises(ValueError, match=r"hostile\.pkl: .*refused"):
        read_inert_pickle(path)
    assert not proof.exists()


def in_dictionary(value: bytes) -> bytes:
    """Returns a pickle of {"x": value}, which would do as a snapshot if the value did."""
    return b"\x80\x02}" + text("x") + value + b"s."


# Each is refused for the reason beside it.
ODD = {
    "persistent id": (in_dictionary(b"Psomewhere\n"), "outside storage 'somewhere'"),
    "binary persistent id": (in_dictionary(text("somewhere") + b"Q"), "outside storage 'somewhere'"),
    "empty": (b"", "no pickle of protocol 2 or later"),
    "text": (b"hello", "no pickle of protocol 2 or later"),
    "cut off": (pickle.dumps({"predictor": [1] * 100})[:-20], "refused"),
    "an allowed name's globals": (
        b"\x80\x04}" + text("x") + text("torch._utils") + text("_rebuild_parameter.__globals__") + b"\x93s.",
        "names torch._utils._rebuild_parameter.__globals__, which is not on the allow-list",
    ),
    "an unknown solver": (in_dictionary(b"csolvers\nother_sampler\n"), "not on the allow-list"),
    "a solver called": (in_dictionary(call("solvers", "heun_sampler", "x")), "not callable"),
    "an object without state": (
        in_dictionary(b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n}\x85R"),
        "'state'",
    ),
    "a storage that is text": (in_dictionary(call("torch.storage", "_load_from_bytes", "x")), "must be bytes"),
    "a change of OrderedDict": (
        in_dictionary(b"ccollections\nOrderedDict\nN}" + text("update") + b"Ns\x86b"),
        "refused",
    ),
    "a tensor beyond its storage": (
        pickle.dumps({"x": torch.ones(8)}).replace(b"K\x08\x85", b"K\x09\x85"),
        "larger than its storage",
    ),
    "a tensor larger than its storage": (pickle.dumps({"x": torch.ones(1).expand(2**20)}), "larger than its storage"),
    "oversize": (pickle.dumps({"x": b"0" * LARGEST}), f"at most {LARGEST} bytes, this one"),
    "no dictionary": (pickle.dumps([1, 2, 3]), "must hold a dictionary, got list"),
}


@pytest.mark.parametrize(("content", "reason"), ODD.values(), ids=ODD)
def test_an_odd_pickle_is_refused_by_name(content, reason, tmp_path):
    path = tmp_path / "odd.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"odd\.pkl: .*{re.escape(reason)}"):
        read_inert_pickle(path)


def test_a_plain_dictionary_is_read(tmp_path):
    path = tmp_path / "plain.pkl"
    path.write_bytes(in_dictionary(b"csolvers\nheun_sampler\n"))
    assert read_inert_pickle(path) == {"x": "heun_sampler"}
