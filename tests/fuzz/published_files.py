"""Hostile figures, pickles and torch files for the importer: structured changes of valid ones."""

from __future__ import annotations

import io
import json
import pickletools
import zipfile
from random import Random

from .junk import changed_tree, nested, with_duplicate_key
from .solver_files import changed_bytes

__all__ = ["BOMB", "changed_figures", "changed_pickle", "changed_torch_file"]

BOMB = "fuzz_bomb"
"""A module that a payload names; the runner watches whether anything imports or calls it."""

_LENGTHS = (b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\0\0\0\0\x7f", b"\0\0\0\x10\0\0\0\0")
_PAYLOADS = [
    b"cos\nsystem\nX\x04\0\0\0true\x85R",
    b"cbuiltins\neval\nX\x01\0\0\x001\x85R",
    b"c" + BOMB.encode() + b"\nrun\n)R",
    b"\x8c\x02os\x8c\x06system\x93X\x04\0\0\0true\x85R",
    b"(X\x04\0\0\0trueios\nsystem\n",
    b"(cos\nsystem\nX\x04\0\0\0trueo",
    b"cos\nsystem\n)\x81",
    b"\x82\xf0",
    b"cbuiltins\ngetattr\n",
    b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch.storage\n_load_from_bytes\n",
]
_PIECES = [
    *_PAYLOADS,
    *(b"r" + n for n in _LENGTHS[:2]),  # LONG_BINPUT
    *(b"\x96" + n for n in _LENGTHS[2:]),  # BYTEARRAY8
    *(b"\x8e" + n for n in _LENGTHS[2:]),  # BINBYTES8
    *(b"B" + n for n in _LENGTHS[:2]),
    b"p2147483647\n",
    b"\x8a\xff" + b"\x7f" * 255,  # LONG1
    b"(" * 1000,
    b"]" * 1000 + b"a" * 999,
    b")" + b"2\x86" * 64,  # a tuple of 2^64 leaves
    b")q\xf0" + b"h\xf0h\xf0\x86q\xf0" * 64 + b"N}h\xf0Nsb",
    b")" + b"\x85" * 100_000 + b"}h\xf0",  # a tuple nested so deep that its hash overflows the stack
    b")q\xf0" + b"h\xf0h\xf0\x86Nbq\xf0" * 64 + b"N}h\xf0Ns",
    b")q\xf0" + b"h\xf0h\xf0\x86(eq\xf0" * 64 + b"N}h\xf0Ns",
    b"0", b"1", b"2", b"N", b"}", b"]", b")", b"(", b".", b"a", b"e", b"s", b"u", b"b", b"R", b"\x81", b"\x85", b"\x86",
    b"\x90", b"\x91", b"\x8f", b"\x94", b"h\x00", b"q\x00", b"Q", b"K\x05", b"G\x7f\xf0\0\0\0\0\0\0", b"X\x01\0\0\0a",
]  # fmt: skip


def changed_figures(content: bytes, random: Random) -> bytes:
    """Returns JSON figures after one change: of a value, a key, the nesting or the bytes."""
    try:
        tree = json.loads(content)
        kind = random.randrange(6)
        if kind == 0:
            return changed_bytes(content, random)
        if kind == 1:
            return with_duplicate_key(json.dumps(tree), random).encode("utf-8", "surrogatepass")
        if kind == 2:
            return random.choice([nested(4000).encode(), b'{"tables": ' + nested(3000).encode() + b"}"])
        return json.dumps(changed_tree(tree, random)).encode("utf-8", "surrogatepass")
    except (ValueError, TypeError, RecursionError, KeyError, IndexError):
        return changed_bytes(content, random)


def changed_pickle(content: bytes, random: Random) -> bytes:
    """Returns a pickle after one change: a piece put in, an opcode removed, doubled or moved, or bytes changed."""
    try:
        places = [place for _, _, place in pickletools.genops(content) if place is not None]
    except Exception:  # an earlier change left no stream of opcodes
        places = []
    if len(places) < 3 or random.random() < 0.2:
        return changed_bytes(content, random)
    start, stop = sorted(random.sample(places, 2))
    change = random.randrange(5)
    if change < 2:
        return content[:start] + random.choice(_PIECES) + content[start:]
    if change == 2:
        return content[:start] + content[places[min(places.index(start) + 1, len(places) - 1)] :]
    if change == 3:
        return content[:stop] + content[start : min(stop, start + 200)] + content[stop:]
    return content[:start] + content[stop:]


def changed_torch_file(content: bytes, random: Random) -> bytes:
    """Returns a torch zip after one change: of its pickle, of its bytes, or of what it says about sizes."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as source:
            entries = {entry.filename: source.read(entry) for entry in source.infolist() if entry.file_size < 2**20}
        name = next(n for n in entries if n.endswith("data.pkl"))
    except Exception:  # no longer a zip
        return changed_bytes(content, random)
    kind = random.randrange(6)
    if kind == 0:
        return changed_bytes(content, random)
    if kind == 1:
        other = random.choice(list(entries))
        entries[other] = changed_bytes(entries[other], random)
    elif kind == 2:
        entries[random.choice(["../../x", "/etc/x", "data.pkl", name, "archive/code/x.py"])] = b"x"
    elif kind == 3:
        entries.pop(random.choice(list(entries)))
    else:
        entries[name] = changed_pickle(entries[name], random)
    changed = io.BytesIO()
    with zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED if random.random() < 0.1 else zipfile.ZIP_STORED) as target:
        for entry, value in entries.items():
            target.writestr(entry, value)
    return changed.getvalue()
