"""Importing published figures: hostile files execute nothing, the authors' layouts give the right figures."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from authors_files import MASK, T_SCALE, WEIGHTS, Call, checkpoint, snapshot_bytes
from learned_solvers.samplers import Solver, load_solver
from learned_solvers.samplers.files.solver import BUNDLED
from learned_solvers.training.import_weights import assemble, main
from learned_solvers.training.published.read import LARGEST, published_models, read_tables

ROOT = Path(__file__).resolve().parents[2]
JSON = [ROOT / "tests" / "data" / name for name in ("dyweight.json", "ds_solver.json")]
NAMES = {facts["name"] for facts in published_models().values()}
DATE = load_solver("ds_flow-sit").card.date


@pytest.fixture
def snapshot(tmp_path):
    """Returns a function that writes a pickle in the authors' layout; its source would create the file `proof`."""
    source = f"import torch\nopen({str(tmp_path / 'proof')!r}, 'w').close()\n"

    def write(folder: str = "00000-cifar-nfe3", **changed: object) -> Path:
        path = tmp_path / folder / "network-snapshot-000010.pkl"
        path.parent.mkdir()
        path.write_bytes(snapshot_bytes(source, **changed))
        return path

    return write


def assert_parameters(solver: Solver, weights: torch.Tensor, t_scale: torch.Tensor) -> None:
    assert solver.steps == (3,)
    expected = {"weights": weights.double()[None], "t_scale": t_scale.double()[None]}
    torch.testing.assert_close(dict(solver.parameters[3]), expected, rtol=0, atol=0)


def test_the_authors_pickle_gives_its_figures_and_its_card(snapshot):
    (solver,) = read_tables(snapshot())
    assert_parameters(solver, WEIGHTS * MASK, T_SCALE)
    step = solver.card.steps[3]
    assert (solver.name, step.source_table) == ("dyweight_cifar10", "00000-cifar-nfe3")
    assert (step.grid.rule, step.grid.parameters) == ("polynomial", {"rho": 7.0})
    assert (step.options, step.history) == ({"analytic_first": True}, 3)
    assert (step.teacher, step.teacher_steps, step.loss, step.note) == ("heun", 35, "inception", None)


def test_the_source_inside_the_authors_pickle_is_not_executed(snapshot, tmp_path):
    read_tables(snapshot())
    assert not (tmp_path / "proof").exists()


def test_a_loss_outside_the_released_code_and_a_folder_without_a_table_name_are_read(snapshot):
    (solver,) = read_tables(snapshot("somewhere", loss_type="piecewise"))
    assert solver.card.steps[3].source_table == "network-snapshot-000010"
    assert solver.card.steps[3].note == 'Fitted with the loss "piecewise", which the released code lacks.'


def test_a_pickle_that_tampers_with_the_stand_ins_changes_no_other(snapshot, tmp_path):
    tampering = tmp_path / "tampering.pkl"
    set_defaults = b"N}U\x0c__defaults__(U\x01aU\x01aU\x01ats\x86b."
    tampering.write_bytes(b"\x80\x02ctorch._utils\n_rebuild_parameter\n" + set_defaults)
    with pytest.raises(ValueError, match=r"tampering\.pkl: refused, it must hold a dictionary, got function"):
        read_tables(tampering)
    assert_parameters(*read_tables(snapshot()), WEIGHTS * MASK, T_SCALE)


def test_a_flux_checkpoint_gives_its_figures_and_its_card(tmp_path):
    (solver,) = read_tables(checkpoint(tmp_path / "dyweight_nfe3.pt"))
    weights, t_scale = [[0.9, 0, 0], [-0.1, 1.0, 0], [0, -0.2, 0.96]], [1.01, 0.98, 0.95]
    assert_parameters(solver, torch.tensor(weights), torch.tensor(t_scale))
    step = solver.card.steps[3]
    assert (solver.name, step.source_table) == ("dyweight_flux1-dev", "flux1-dev-nfe3")
    assert (step.grid.rule, step.options, step.history) == ("flux_shift", {"divisor": "call"}, 2)


@pytest.mark.parametrize("kind", ["zip", "old", "pickle"])
def test_a_hostile_checkpoint_that_a_stock_loader_executes_is_refused(kind, tmp_path):
    path, proof = tmp_path / "hostile.pt", tmp_path / "proof"
    content = {"window_size": 2, "dyweight_weights_raw": Call(os.system, f"echo > {proof}")}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(ValueError, match=r"hostile\.pt: refused") as refused:
        read_tables(path)
    assert "weights_only" not in str(refused.value)  # torch's advice, by which the file would be run
    assert kind != "zip" or "posix" in str(refused.value) or "system" in str(refused.value)
    assert not proof.exists()
    with contextlib.suppress(Exception):
        torch.load(path, weights_only=False)
    assert proof.exists()


# Refusals.


def json_table(**changed: object) -> bytes:
    table = json.loads(JSON[0].read_text())["tables"]["00000-cifar-nfe3"]
    return json.dumps({"tables": {"00000-cifar-nfe3": {**table, **changed}}}).encode()


def ds_table(model: str, **changed: object) -> bytes:
    table = {"timedeltas": [0.5, 0.5], "coeffs": [[0.0, 0.0], [0.0, 0.0]], **changed}
    return json.dumps({"tables": {model: {"a": table}}}).encode()


TYPES = "its entries have other types than published ones"
REFUSED_JSON = {
    "text": (b"hello", "refused, Expecting value"),
    "a list": (b"[]", TYPES),
    "no tables": (b"{}", "it has no entry 'tables'"),
    "empty tables": (b'{"tables": {}}', "it has no tables"),
    "a number for a table": (b'{"tables": {"flow-sit": 5}}', TYPES),
    "no dataset": (b'{"tables": {"ms_coco": {"weights": [[1.0]]}}}', "it has no entry 'dataset'"),
    "nested deeply": (b"[" * 100_000, TYPES),
    "no UTF-8": (b"\xff\xff{}", "refused"),
    "unknown schedule": (json_table(schedule="cosine"), "schedule must be one of .*, got 'cosine'"),
    "negative rho": (json_table(rho=-1), "grid parameter rho must be a positive"),
    "ragged weights": (json_table(weights=[[1], [1, 2]]), "expected sequence of length 1"),
    "weights text": (json_table(weights="x"), TYPES),
    "one scale, no list": (json_table(t_scale=5), TYPES),
    "history text": (json_table(history="3"), "history must be of type int"),
    "unknown model": (ds_table("nope"), r"model 'nope' is unknown: add it to training/published/models\.json"),
    "uses later entries": (ds_table("flow-sit", coeffs=[[0.0, 1.0], [0.0, 0.0]]), "2 steps: coeffs must"),
}


@pytest.mark.parametrize(("content", "reason"), REFUSED_JSON.values(), ids=REFUSED_JSON)
def test_json_that_breaks_a_rule_is_refused_by_name(content, reason, tmp_path):
    path = tmp_path / "figures.JSON"  # endings are read in either case
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"figures\.JSON: .*{reason}"):
        read_tables(path)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"_parameters": OrderedDict()}, "it has no entry 'hybrid_weights'"),
        ({"_buffers": OrderedDict(mask=torch.ones(3, 3))}, TYPES),
        ({"_buffers": OrderedDict(mask="x")}, "its parameters must be tensors"),
        ({"teacher_steps": []}, "teacher_steps must be of type int"),
        ({"solver_tea": 5}, TYPES),
    ],
)
def test_a_snapshot_of_another_layout_is_refused_by_name(changed, reason, snapshot):
    with pytest.raises(ValueError, match=rf"network-snapshot-000010\.pkl: refused, {reason}"):
        read_tables(snapshot(**changed))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"dyweight_weights_raw": 5}, "its parameters must be tensors"),
        ({"window_size": []}, "history must be of type int"),
        ({"padding": torch.zeros(LARGEST)}, f"it has more than {LARGEST} bytes"),
    ],
)
def test_a_checkpoint_of_another_layout_is_refused_by_name(changed, reason, tmp_path):
    with pytest.raises(ValueError, match=rf"other\.pt: refused, {reason}"):
        read_tables(checkpoint(tmp_path / "other.pt", **changed))


def test_another_kind_of_file_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"model\.ckpt must end in \.json, \.pt, \.pkl: name the published file"):
        read_tables(tmp_path / "model.ckpt")


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_tables_for_one_count_the_one_with_a_released_loss_is_kept(order):
    tables = [table for table in read_tables(JSON[0]) if (table.name, table.steps) == ("dyweight_cifar10", (4,))]
    assert len(tables) == 2
    (solver,) = assemble(tables[::order], "2026-01-31")
    assert solver.card.steps[4].source_table == "00001-cifar-nfe4"


# The command.


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_published_figures_give_the_bundled_files_byte_for_byte(name, imported):
    assert (imported / f"{name}.safetensors").read_bytes() == (BUNDLED / f"{name}.safetensors").read_bytes()


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Returns the folder that the command, run as a file from elsewhere, wrote."""
    folder = tmp_path_factory.mktemp("imported")
    command = [sys.executable, ROOT / "training" / "import_weights.py", *JSON, "--output", "new", "--date", DATE]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "new"


def test_the_command_writes_one_file_per_model_and_says_so(tmp_path, capsys):
    main([*map(str, JSON), "--output", str(tmp_path)])
    assert {path.stem for path in tmp_path.iterdir()} == NAMES
    assert f"{tmp_path / 'ds_flow-sit.safetensors'}: 5, 6, 7, 8, 9, 10 steps" in capsys.readouterr().out


def test_the_command_reads_the_authors_own_files(tmp_path, snapshot):
    flux = checkpoint(tmp_path / "dyweight_nfe3.pt")
    main([str(snapshot()), str(flux), "--output", str(tmp_path / "new")])
    for name in ("dyweight_cifar10", "dyweight_flux1-dev"):
        assert load_solver(tmp_path / "new" / f"{name}.safetensors").steps == (3,)


def test_the_command_overwrites_only_when_asked(tmp_path, capsys):
    path = tmp_path / "ds_vp-dit.safetensors"
    path.write_bytes(b"another solver")
    with pytest.raises(SystemExit) as stopped:
        main([str(JSON[1]), "--output", str(tmp_path)])
    assert (stopped.value.code, path.read_bytes(), len([*tmp_path.iterdir()])) == (1, b"another solver", 1)
    assert "ds_vp-dit.safetensors exists already" in capsys.readouterr().err
    main([str(JSON[1]), "--output", str(tmp_path), "--overwrite"])
    assert load_solver(path).steps == (5, 6, 7, 8, 9, 10)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.json", None, "No such file or directory: .*missing.json"),
        ("hostile.pkl", pickle.dumps(Call(os.system, "echo")), "hostile.pkl: refused, it names"),
        ("unknown.json", json_table(dataset="my_own"), "unknown.json: model 'my_own' is unknown"),
    ],
)
def test_the_command_refuses_in_one_line(name, content, message, tmp_path, capsys):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / name), "--output", str(tmp_path / "new")])
    error = capsys.readouterr().err
    assert (stopped.value.code, error.count("\n")) == (1, 1)
    assert re.search(message, error)
    assert not (tmp_path / "new").exists()


def test_the_command_refuses_a_date_of_another_form(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(JSON[1]), "--output", str(tmp_path / "new"), "--date", "yesterday"])
    assert "invalid iso_date value: 'yesterday'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
