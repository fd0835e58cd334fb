"""Broken and hostile solver files are refused with a clear message, quickly, and without any side effect."""

from __future__ import annotations

import os
import re

import pytest
import torch
from learned_solvers.samplers import load_solver
from safetensors.torch import save
from solver_files import DS, DYWEIGHT, GRID, SOUND, content, ds, dyweight, knots, with_header
from watch import refusal

NAN, INF, DEEP = float("nan"), float("inf"), "[" * 100_000 + "]" * 100_000


def step(tensors=None, **entry):
    return dyweight(tensors, steps={"3": {"grid": GRID, **entry}})


def changed(base, name, index, value):
    tensor = base[1][name].clone()
    tensor[0][index] = value
    return content(base, {name: tensor})


def with_shape(shape, dtype="F64"):
    return with_header({"3/coeffs": {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}})


NO_CONTAINER = "not a safetensors file"
NO_JSON = ["", "{", '{"3": ' * 100_000, DEEP, "[" * 900 + "]" * 900, "9" * 5000]
GUIDANCES = [
    *("cfg", "7.5", "null", [], {"kind": "both"}, {"kind": []}, {"kind": "none", "values": [1]}),
    *({"kind": "cfg", "values": v} for v in ([2, 1], [1, 1], [-1], [NAN], [INF], [True], ["1"], [[1]], [1e9], 5)),
    *({"kind": "cfg", "usual": v} for v in ([], "7", 10**400, -1, INF)),
    *({"kind": "cfg", "values": [5, 7], "usual": 8}, {"kind": "cfg", "red": 3}),
    *({"kind": kind, "cfg": v} for kind, v in (("embedded", -1), ("embedded", INF), ("embedded", "1"), ("cfg", 1))),
]
KNOTS = [[0, 1], [-1, 1], [2, 1], [1, 1], [NAN], [1, INF], ["1", "2"], [True, 2], [[1], [2]]]
STEP_COUNTS = ["-1", "0", "1e9", "3.0", "", "three", " 3", "03", "٣", "3_0", "9" * 5000, "1000000000"]
STEP_ENTRIES = {
    **{"history": ["x", 1.5, -1, True], "network_calls": [[], INF], "error_before": ["low", NAN, 10**400]},
    **{"note": [{"a": 1}, "\ud800", "x" * 3000], "options": [5, "x", [1]], "knots": [5, {}, "x"]},
}
GRIDS = [
    (5, "grid must be"),
    ({"rho": 7}, "grid rule must be one of"),
    ({"rule": "cosine"}, "grid rule must be one of .*'cosine'"),
    ({"rule": []}, "grid rule must be one of"),
    ({"rule": "polynomial"}, "polynomial needs rho, got none"),
    ({**GRID, "end": 1}, "polynomial needs rho, got rho, end"),
    ({"rule": "flow_shift", "shift": 1}, "is not defined for edm models"),
    *(({**GRID, "rho": v}, "rho must be a positive finite") for v in (-7, 0, INF, NAN, "7", True, None, 10**400, [])),
]
OPTIONS = [
    ("analytic_first", 1, "analytic_first must be true or false, got 1"),
    *(("divisor", value, "divisor must be") for value in (["state"], "sigma")),
    ("colour", "red", "DyWeight has no options colour"),
]
ANALYTIC, FOUR = {"analytic_first": True}, {"3/weights": torch.eye(4)[None], "3/t_scale": torch.ones(1, 4)}
TENSOR_NAMES = ["weights", "3/", *(f"{count}/weights" for count in ("", "-1", "1e9", "²", "03", "٣", "9" * 5000))]
NUMBERS = [
    *((DYWEIGHT, "3/weights", place, value, "hold finite") for place, value in (((1, 0), NAN), ((0, 2), INF))),
    *((DYWEIGHT, "3/t_scale", place, value, "hold finite") for place, value in ((1, NAN), (2, -INF))),
    *((DYWEIGHT, "3/t_scale", 1, value, "hold 3 positive factors") for value in (0.0, -1.0)),
    (DYWEIGHT, "3/weights", (0, 2), 1e-9, "be lower-triangular"),
    *((DS, "3/timedeltas", 1, value, "hold 3 positive steps") for value in (-0.25, 0.0)),
    (DS, "3/timedeltas", 1, 0.2501, "sum to 1, got 1.000100"),
    (DS, "3/coeffs", (1, 0), -INF, "hold finite"),
    *((DS, "3/coeffs", place, 1e-9, "be strictly lower-triangular") for place in ((1, 1), (0, 2))),
]
TENSORS = [
    *((DYWEIGHT, "3/weights", torch.eye(3)[None].to(d), f"hold .*{d}") for d in (torch.int64, torch.uint8, torch.bool)),
    (DYWEIGHT, "3/weights", torch.eye(4)[None], r"be .*\[3, 3\] for 3 calls, got \[4, 4\]"),
    (DYWEIGHT, "3/weights", torch.ones(1, 3), r"be .*\[3, 3\] for 3 calls, got \[3\]"),
    *((DYWEIGHT, "3/weights", tensor, r"have shape \[1, ...\]") for tensor in (torch.eye(3), torch.tensor(1.0))),
    *((DYWEIGHT, "3/t_scale", torch.ones(s), "hold 3 positive factors") for s in ((1, 4), (1, 9999), (1, 3, 1))),
    *((DS, "3/timedeltas", torch.ones(s) / 3, "hold 3 positive steps") for s in ((1, 2), (1, 3, 1))),
    (DS, "3/timedeltas", torch.ones(1, 3).int(), "hold .*int32"),
    *((DS, "3/coeffs", torch.zeros(s), rf"be .*\[3, 3\], got {re.escape(str(s[1:]))}") for s in ([1, 2, 2], [1])),
]
BROKEN = {  # name: (bytes, key words of the message)
    # The container.
    "empty": (b"", NO_CONTAINER),
    "zip": (b"PK\x03\x04" + b"0" * 1000, NO_CONTAINER),
    "cut in the header": (dyweight()[:100], NO_CONTAINER),
    "cut in the data": (dyweight()[:-8], NO_CONTAINER),
    "longer than the header says": (dyweight() + b"xx", NO_CONTAINER),
    "text": (b"once upon a time", r"header length missing or out of range \(2 to 1048576\); the file has 16 bytes"),
    "header of 16 exabytes": (with_header(b"{}" * 46, length=2**64 - 1), "header length missing"),
    "header of 3 megabytes": (with_header(b"{" + b" " * 3_000_000 + b"}"), "header length 3000002 out of range"),
    "header not JSON": (with_header(b"notjson!"), NO_CONTAINER),
    "header nested deeply": (with_header(b'{"__metadata__":' + DEEP.encode() + b"}"), NO_CONTAINER),
    "too large": (dyweight() + b"\0" * 16 * 2**20, r"at most 16777216 bytes, but this one has \d+"),
    # Old versions of the library refuse it, new ones make a tensor without entries.
    "tensor of 2^63 columns": (with_shape([0, 2**63 - 1]), f"format_version|{NO_CONTAINER}"),
    "tensor of 2^124 entries": (with_shape([2**62, 2**62]), NO_CONTAINER),
    "tensor of negative size": (with_shape([-1, 8]), NO_CONTAINER),
    "tensor of 100,000 dimensions": (with_shape([1] * 100_000), "at most 3 dimensions"),
    "tensor of numbers of 4 bits": (with_shape([2, 0], "F4"), NO_CONTAINER),
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
    "boundary below 0": (dyweight(boundary="-1"), "boundary must be a positive noise level, got -1"),
    "transferable: yes": (dyweight(transferable="yes"), "transferable must be true or false, got 'yes'"),
    "note of 3000 characters": (dyweight(note="x" * 3000), "note must be text of at most 2000 characters"),
    "note of a megabyte": (dyweight(note="x" * 1_000_000), f"{NO_CONTAINER}|note must be text of at most 2000"),
    "note with escapes": (dyweight(note="\x1b[2J"), "note must be text .* without control characters"),
    # Its guidance and knots.
    **{f"guidance {v!s:.40} {len(str(v))}": (dyweight(guidance=v), "guidance") for v in [*NO_JSON[1:], *GUIDANCES]},
    **{f"knots {values}": (knots(*values), "knots must") for values in KNOTS},
    "knots without guidance": (knots(1, 2, guidance=None), "knots need a guidance"),
    "knots at no guidance": (knots(1, 2, guidance={"kind": "none"}), "knots need a guidance"),
    "knots more than sets": (knots(1, 2, 3, sets=2), r"must have shape \[3, ...\], one set per knot, got \[2, 3"),
    "knots fewer than sets": (knots(1, 2, sets=3), r"must have shape \[2, ...\], one set per knot"),
    "knots none, sets two": (knots(sets=2), r"must have shape \[1, ...\]"),
    # Its steps.
    **{f"steps {v!s:.20} {len(str(v))}": (dyweight(steps=v), "card's steps") for v in [*NO_JSON, [3], "null"]},
    "steps nested in a note": (dyweight(steps='{"3": {"note": ' + DEEP + "}}"), "card's steps"),
    "steps none": (dyweight(steps={}), r"step counts of at least 1, got \[\]"),
    **{f"steps key {key[:9]!r}": (dyweight(steps={key: {"grid": GRID}}), "step counts") for key in STEP_COUNTS},
    "steps too many": (ds(steps={"3": {}, "5": {}}), r"lists steps \[3, 5\], .* for \[3\]"),
    "steps a thousand": (ds(steps={n: {} for n in range(1, 1001)}), "the parameters are for"),
    **{f"step {v!r}": (ds(steps={"3": v}), "must be an? .*object") for v in ([], None, 5, "abc")},
    "step unknown entry": (step(colour=1), "unknown entries colour"),
    **{f"{k} {str(v)[:9]!r}": (step(**{k: v}), f"{k} must be") for k, values in STEP_ENTRIES.items() for v in values},
    **{f"grid {str(value)[:40]}": (step(grid=value), rule) for value, rule in GRIDS},
    "grid none": (dyweight(steps={"3": {}}), "grid rule"),
    **{f"option {name} {value}": (step(options={name: value}), rule) for name, value, rule in OPTIONS},
    "analytic, a row too few": (step(options=ANALYTIC), r"weights must be .*\[4, 4\] for 3 calls, got \[3, 3\]"),
    "analytic, a factor too many": (step(FOUR, options=ANALYTIC), "t_scale must hold 3 positive factors"),
    "option of another family": (ds(steps={"3": {"options": {"divisor": "call"}}}), "no options divisor"),
    # The tensors.
    "no tensors": (content((DYWEIGHT[0], {})), r"lists steps \[3\], but the parameters are for \[\]"),
    "tensors of another family": (content((DS[0], DYWEIGHT[1])), "tensors must be timedeltas, coeffs, got"),
    "tensor too many": (dyweight({"3/bias": torch.ones(1)}), "tensors must be weights, t_scale, got .*bias"),
    "tensor of other steps": (dyweight({"5/weights": torch.eye(5)}), r"lists steps \[3\], .* for \[3, 5\]"),
    **{f"tensor {key[:9]!r}": (dyweight({key: torch.eye(3)}), '"<steps>/<name>"') for key in TENSOR_NAMES},
    **{f"{k} {v} in {i}": (changed(b, k, i, v), f"{k[2:]} must {rule}") for b, k, i, v, rule in NUMBERS},
    **{f"{k} {list(t.shape)} {t.dtype}": (content(b, {k: t}), f"{k[2:]} must {rule}") for b, k, t, rule in TENSORS},
    "ds for edm": (ds(prediction="edm"), "DS-Solver is not defined for edm models"),
}


@pytest.mark.parametrize(("raw", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused_with_its_fault_and_one_remedy(raw, words, tmp_path):
    message = refusal(load_solver, tmp_path / "solver.safetensors", raw)
    assert re.search(words, message), message


@pytest.mark.parametrize("raw", SOUND.values(), ids=SOUND)
def test_the_sound_files_behind_the_broken_ones_load(raw, tmp_path):
    (tmp_path / "solver.safetensors").write_bytes(raw)
    solver = load_solver(tmp_path / "solver.safetensors")
    assert solver.steps == (3,) and all(t.dtype == torch.float64 for t in solver.parameters[3].values())


def test_complex_numbers_are_refused(tmp_path):
    try:
        raw = dyweight({"3/weights": torch.eye(3)[None].to(torch.complex64)})
    except KeyError:
        pytest.skip("this safetensors writes no complex numbers")
    assert "weights must hold floating-point" in refusal(load_solver, tmp_path / "solver.safetensors", raw)


@pytest.mark.parametrize("name", ["\0.safetensors", "x" * 5000 + ".safetensors", "/" * 100 + "x.safetensors", "\udcff"])
def test_a_name_that_no_file_can_have_is_refused(name):
    with pytest.raises((ValueError, FileNotFoundError), match=r"does not exist|no bundled solver named") as refused:
        load_solver(name)
    assert len(str(refused.value)) < 2000 and str(refused.value).isprintable()


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no /dev/zero")
@pytest.mark.parametrize("target", ["/dev/zero", "/dev/stdin", "/proc/self/environ", "/etc/passwd", "a.safetensors"])
def test_a_link_to_something_else_reveals_nothing_of_it(tmp_path, target):
    path = tmp_path / "a.safetensors"
    path.symlink_to(target)
    with pytest.raises((FileNotFoundError, ValueError)) as refused:
        load_solver(path)
    assert "root" not in str(refused.value).replace(str(path), "") and len(str(refused.value)) < 400
