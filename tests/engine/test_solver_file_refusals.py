"""Reading a solver file trusts nothing, and each refusal names the file, the rule and the remedy."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import pytest
import torch
from learned_solvers.samplers import load_solver
from safetensors.torch import save
from torch import Tensor

GRID = {"rule": "polynomial", "rho": 7.0}
METADATA = {
    "format_version": "1",
    "family": "dyweight",
    "prediction": "edm",
    "model_family": "EDM",
    "checkpoint": "test",
    "steps": json.dumps({"3": {"grid": GRID}}),
}
TENSORS = {"3/weights": torch.eye(3).double(), "3/t_scale": torch.ones(3).double()}
DS_METADATA = {**METADATA, "family": "ds", "prediction": "flow", "steps": json.dumps({"3": {}})}
DS_TENSORS = {
    "3/timedeltas": torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64),
    "3/coeffs": torch.zeros(3, 3).double(),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "solver.safetensors"


def content(tensors: dict[str, Tensor] | None = None, metadata: dict[str, str] | None = None) -> bytes:
    return save({**TENSORS, **(tensors or {})}, metadata={**METADATA, **(metadata or {})})


def ds_content(tensors: dict[str, Tensor] | None = None, metadata: dict[str, str] | None = None) -> bytes:
    return save({**DS_TENSORS, **(tensors or {})}, metadata={**DS_METADATA, **(metadata or {})})


def without(entry: str) -> bytes:
    return save(TENSORS, metadata={key: value for key, value in METADATA.items() if key != entry})


def steps(card: object) -> bytes:
    """Returns a file whose card's steps are this JSON value, or this text."""
    return content(metadata={"steps": card if isinstance(card, str) else json.dumps(card)})


def with_header(header: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header


def changed(name: str, value: float, *index: int) -> dict[str, Tensor]:
    tensor = {**TENSORS, **DS_TENSORS}[name].clone()
    tensor[index] = value
    return {name: tensor}


DEEP = "[" * 100_000 + "]" * 100_000
NO_OBJECT = "steps must be a JSON object of step counts"
NAN, INF = float("nan"), float("inf")
REFUSED = {
    # The container.
    "empty": (b"", "not a safetensors file"),
    "zip": (b"PK\x03\x04" + b"0" * 1000, "not a safetensors file"),
    "cut in the header": (content()[:100], "not a safetensors file"),
    "cut in the data": (content()[:-8], "not a safetensors file"),
    "more than the header says": (content() + b"xx", "not a safetensors file"),
    "text": (b"once upon a time", "no header's length at the beginning, in a file of 16: it has 2 to 1048576"),
    "header beyond the file": (with_header(b"{}", 2**63), "not a safetensors file"),
    "header no JSON": (with_header(b"notjson!"), "not a safetensors file"),
    "header nested deeply": (with_header(b'{"__metadata__":' + DEEP.encode() + b"}"), "not a safetensors file"),
    "oversize": (content() + b"\0" * 4 * 2**20, r"at most 4194304 bytes, this one has \d+"),
    # The card.
    "no card": (save(TENSORS), "format_version must be 1, got none"),
    "another version": (content(metadata={"format_version": "2"}), "format_version must be 1, got 2: update"),
    **{f"no {entry}": (without(entry), entry) for entry in METADATA},
    "unknown entry": (content(metadata={"colour": "red"}), "the card has unknown .*colour"),
    "unknown family": (content(metadata={"family": "unipc"}), "family must be one of dyweight, ds, got 'unipc'"),
    "unknown prediction": (content(metadata={"prediction": "eps"}), "must be one of flow, vp, edm, got 'eps'"),
    "doubtful truth": (content(metadata={"transferable": "yes"}), "transferable must be true or false, got 'yes'"),
    # Its steps.
    "steps empty": (steps(""), NO_OBJECT),
    "steps cut off": (steps('{"3": {'), NO_OBJECT),
    "steps a list": (steps([3]), NO_OBJECT),
    "steps null": (steps(None), NO_OBJECT),
    "steps none": (steps({}), r"step counts of at least 1, got \[\]"),
    "steps nested lists": (steps('{"3": ' + DEEP + "}"), NO_OBJECT),
    "steps nested objects": (steps('{"3": ' * 100_000), NO_OBJECT),
    "steps nested in a note": (steps('{"3": {"note": ' + DEEP + "}}"), NO_OBJECT),
    **{
        f"steps key {key[:9]!r}": (steps({key: {"grid": GRID}}), "step counts")
        for key in ("-1", "0", "1e9", "3.0", "", "three", " 3", "03", "٣", "3_0", "9" * 5000)
    },
    "steps key 10^9": (steps({"1000000000": {"grid": GRID}}), "step counts from 1 to 9999"),
    "steps too many": (steps({"3": {"grid": GRID}, "5": {"grid": GRID}}), r"lists steps \[3, 5\], .* for \[3\]"),
    **{
        f"step {step!r}": (ds_content(metadata={"steps": json.dumps({"3": step})}), f"{NO_OBJECT}|does not know")
        for step in ([], None, 5, "abc")
    },
    "step unknown entry": (steps({"3": {"grid": GRID, "colour": 1}}), "does not know: colour"),
    **{
        f"step {name} {value}": (steps({"3": {"grid": GRID, name: value}}), f"{name} must be")
        for name, value in {
            "history": "x",
            "error_before": "low",
            "error_after": NAN,
            "network_calls": [],
            "note": {"a": 1},
            "divisor": "x",
            "analytic_first": 1,
        }.items()
    },
    "grid none": (steps({"3": {}}), "needs a grid rule, the card has none"),
    "grid a number": (steps({"3": {"grid": 5}}), "grid must be an object with a rule, got 5"),
    "grid no rule": (steps({"3": {"grid": {"rho": 7}}}), "grid must be an object with a rule"),
    "grid unknown rule": (steps({"3": {"grid": {"rule": "cosine"}}}), "grid rule must be one of .*'cosine'"),
    "grid rule a list": (steps({"3": {"grid": {"rule": []}}}), f"grid rule must be one of|{NO_OBJECT}"),
    "grid no parameter": (steps({"3": {"grid": {"rule": "polynomial"}}}), "polynomial needs rho, got none"),
    **{
        f"grid rho {str(rho)[:9]}": (
            steps({"3": {"grid": {**GRID, "rho": rho}}}),
            "rho must be a positive finite number",
        )
        for rho in (-7, 0, INF, NAN, "7", True, None, 10**400)
    },
    # The tensors.
    "no tensors": (
        with_header(json.dumps({"__metadata__": METADATA}).encode()),
        r"lists steps \[3\], the parameters are for \[\]",
    ),
    "tensor missing": (save({"3/weights": TENSORS["3/weights"]}, metadata=METADATA), "must have weights, t_scale, got"),
    "tensor too many": (content({"3/bias": torch.ones(1)}), "3 steps must have weights, t_scale, got .*bias"),
    "tensor of other steps": (content({"5/weights": torch.eye(5)}), r"lists steps \[3\], .* for \[3, 5\]"),
    **{
        f"tensor {key[:9]!r}": (content({key: torch.eye(3)}), 'tensors are called "<steps>/<name>"')
        for key in ("weights", "3/", *(f"{n}/weights" for n in ("", "-1", "1e9", "²", "03", "٣", "9" * 5000)))
    },
    **{
        f"{name} {value} in {index}": (content(changed(name, value, *index)), f"{name} must hold finite")
        for name, value, index in (
            ("3/weights", NAN, (1, 0)),
            ("3/weights", INF, (0, 2)),
            ("3/t_scale", NAN, (1,)),
            ("3/t_scale", -INF, (2,)),
        )
    },
    **{
        f"weights {dtype}": (content({"3/weights": torch.eye(3).to(dtype)}), f"3/weights must hold .*{dtype}")
        for dtype in (torch.int64, torch.uint8, torch.bool)
    },
    "weights too large": (content({"3/weights": torch.eye(4)}), r"weights .*\[3, 3\] for 3 calls, got \[4, 4\]"),
    "weights 1-d": (content({"3/weights": torch.ones(3)}), r"weights .*\[3, 3\] for 3 calls, got \[3\]"),
    "weights full": (content(changed("3/weights", 1e-9, 0, 2)), "weights must be lower-triangular"),
    "t_scale 0": (content(changed("3/t_scale", 0.0, 1)), "t_scale must hold 3 positive factors"),
    "t_scale negative": (content(changed("3/t_scale", -1.0, 1)), "t_scale must hold 3 positive factors"),
    "t_scale too long": (content({"3/t_scale": torch.ones(4)}), "t_scale must hold 3 positive factors"),
    "t_scale far too long": (content({"3/t_scale": torch.ones(9999)}), "t_scale must hold 3 positive factors"),
    "timedeltas negative": (ds_content(changed("3/timedeltas", -0.25, 1)), "timedeltas must hold 3 positive steps"),
    "timedeltas 0": (ds_content(changed("3/timedeltas", 0.0, 1)), "timedeltas must hold 3 positive steps"),
    "timedeltas sum": (ds_content(changed("3/timedeltas", 0.3, 1)), "timedeltas must sum to 1, got 1.05"),
    "timedeltas integers": (ds_content({"3/timedeltas": torch.ones(3).int()}), "3/timedeltas must hold .*int32"),
    "coeffs infinite": (ds_content(changed("3/coeffs", -INF, 1, 0)), "3/coeffs must hold finite"),
    "coeffs diagonal": (ds_content(changed("3/coeffs", 1e-9, 1, 1)), "coeffs must be strictly lower-triangular"),
    "coeffs upper": (ds_content(changed("3/coeffs", 1.0, 0, 2)), "coeffs must be strictly lower-triangular"),
    "coeffs too small": (ds_content({"3/coeffs": torch.zeros(2, 2)}), r"coeffs .* \[3, 3\], got \[2, 2\]"),
    "ds analytic": (ds_content(metadata={"steps": '{"3": {"analytic_first": true}}'}), "no analytic first step"),
    "ds with other tensors": (
        content(metadata={"family": "ds", "prediction": "flow", "steps": json.dumps({"3": {}})}),
        "3 steps must have timedeltas, coeffs, got",
    ),
    "ds for edm": (ds_content(metadata={"prediction": "edm"}), "DS-Solver does not exist for edm models"),
}


def refusal(raw: bytes, path: Path) -> str:
    path.write_bytes(raw)
    with pytest.raises(ValueError) as refused:
        load_solver(path)
    return str(refused.value)


@pytest.mark.parametrize(("raw", "rule"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_breaks_a_rule_is_refused_with_its_name_and_the_rule(raw, rule, path):
    message = refusal(raw, path)
    assert message.startswith(f"{path}: ")
    assert re.search(rule, message), message
    assert len(message) < 600 + len(str(path))
    # What a newer version may have, a model, and all else: one of them.
    remedies = ("update Learned Solvers", "get the file again", "put it where models belong")
    assert sum(message.count(remedy) for remedy in remedies) == 1, message


@pytest.mark.parametrize("raw", [content(), ds_content()], ids=["dyweight", "ds"])
def test_the_files_that_the_broken_ones_are_made_of_are_sound(raw, path):
    path.write_bytes(raw)
    assert load_solver(path).steps == (3,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_figures_in_a_smaller_float_are_read_as_float64(dtype, path):
    path.write_bytes(content({"3/weights": torch.eye(3, dtype=dtype)}))
    assert load_solver(path).parameters[3]["weights"].dtype == torch.float64


def test_safetensors_own_metadata_entry_is_tolerated(path):
    path.write_bytes(content(metadata={"format": "pt"}))
    assert load_solver(path).steps == (3,)


def test_complex_numbers_are_refused(path):
    try:
        path.write_bytes(content({"3/weights": torch.eye(3).to(torch.complex64)}))
    except KeyError:
        pytest.skip("this safetensors writes no complex numbers")
    with pytest.raises(ValueError, match=r"3/weights must hold .*torch\.complex64"):
        load_solver(path)
