"""Files that hypothesis changes at random are read, or refused with a clear message."""

from __future__ import annotations

import io
import json
import pickletools
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from authors_files import checkpoint_bytes, snapshot_bytes, with_entries
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from learned_solvers.samplers import EDMNoise, FlowNoise, VPNoise, list_solvers, load_solver
from learned_solvers.samplers.files.card import Card
from learned_solvers.samplers.files.solver import BUNDLED
from learned_solvers.training.published.read import read_tables
from solver_files import SOUND, with_header
from watch import check_message, harmless

NAN, INF = float("nan"), float("inf")
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
NOISES = {"flow": [FlowNoise(4096)], "vp": [VPNoise.stable_diffusion(), VPNoise.linear_beta()], "edm": [EDMNoise()]}
FIXED = settings(max_examples=300, derandomize=True, deadline=None, database=None, suppress_health_check=[*HealthCheck])


def values_in(tree):
    """(container, key) of every value inside a JSON tree."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    return [value for key in keys for value in ((tree, key), *values_in(tree[key]))]


@st.composite
def changed_tree(draw, tree):
    """A JSON tree with up to three values replaced, removed or renamed."""
    for _ in range(draw(st.integers(1, 3))):
        if not (values := values_in(tree)):
            return draw(JSON)
        container, key = draw(st.sampled_from(values))
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
    """Bytes with a piece instead of those between two cuts, or after one."""
    cut = st.integers(0, len(raw)) if cuts is None else st.sampled_from(cuts)
    start, stop = sorted((draw(cut), draw(cut)))
    stop = draw(st.sampled_from([start, stop, min(start + 8, len(raw)), len(raw)]))
    return raw[:start] + draw(st.sampled_from([b"", *pieces]) | st.binary(max_size=16)) + raw[stop:]


def changed_pickle(raw):
    return changed_bytes(raw, [position for _, _, position in pickletools.genops(raw)], OPCODES)


@st.composite
def solver_files(draw):
    bundled = st.sampled_from(list_solvers()).map(lambda name: (BUNDLED / f"{name}.safetensors").read_bytes())
    raw = draw(st.sampled_from([*SOUND.values()]) | bundled)
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    card = header["__metadata__"]
    part = draw(st.sampled_from(["bytes", "header", "texts", "steps", "guidance"]))
    if part == "bytes":
        return draw(changed_bytes(raw))
    if part == "header":
        header = draw(changed_tree(header))
    elif part == "texts":
        card |= draw(st.dictionaries(st.sampled_from(sorted(card)) | TEXT, TEXT, max_size=2))
    else:
        card[part] = json.dumps(draw(changed_tree(json.loads(card.get(part, '{"kind": "cfg", "values": [5]}')))))
    return with_header(header, raw[8 + length :])


@st.composite
def json_files(draw):
    name = draw(st.sampled_from(["dyweight.json", "ds_solver.json"]))
    tables = json.loads((Path(__file__).parents[1] / "data" / name).read_text("utf-8"))["tables"]
    tree = {"tables": dict(list(tables.items())[:2])}
    if draw(st.booleans()):
        return draw(changed_bytes(json.dumps(tree).encode()))
    return json.dumps(draw(changed_tree(tree))).encode()


@st.composite
def torch_files(draw):
    sound = checkpoint_bytes()
    with zipfile.ZipFile(io.BytesIO(sound)) as file:
        name = draw(st.sampled_from(file.namelist()))
        entry = draw((changed_pickle if name.endswith(".pkl") else changed_bytes)(file.read(name)))
    name = draw(st.sampled_from([name, name, name, "../../x", "archive/data.PKL"]))
    return draw(st.just(with_entries({name: entry})) | changed_bytes(sound))


def use(solver):
    """Stores the card of a solver and makes all its tables; a refusal starts with the solver's name."""
    assert Card.from_metadata(solver.card.to_metadata()) == solver.card
    for steps in solver.steps:
        for noise in NOISES[solver.prediction]:
            try:
                table = solver.table(steps, noise)
            except ValueError as error:
                assert str(error).startswith(solver.name) and len(str(error)) < 2000
            else:
                assert all(bool(torch.isfinite(part).all()) for part in (table.sigmas, table.scale, table.coeffs))


FILES = {".safetensors": solver_files(), ".json": json_files(), ".pt": torch_files()}
FILES[".pkl"] = changed_pickle(snapshot_bytes())


@pytest.mark.parametrize("suffix", FILES)
@FIXED
@given(data=st.data())
def test_a_changed_file_is_read_or_refused_clearly(suffix, tmp_path, data):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(data.draw(FILES[suffix]))
    with harmless():
        try:
            solvers = [load_solver(path)] if suffix == ".safetensors" else read_tables(path)
        except ValueError as error:
            solvers, refused = [], error
    if not solvers:
        assert not isinstance(refused, UnicodeError | json.JSONDecodeError)
        check_message(str(refused), path)
    for solver in solvers:
        use(solver)
