"""Importing published figures: hostile files execute nothing, the authors' layouts give the right figures."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from authors_files import MASK, T_SCALE, WEIGHTS, Call, checkpoint, snapshot_bytes
from learned_solvers.samplers import load_solver
from learned_solvers.samplers.files.solver import BUNDLED
from learned_solvers.training.import_weights import MODELS, assemble, main, read_tables
from learned_solvers.training.published.inert_pickle import LARGEST, read_inert_pickle

ROOT = Path(__file__).resolve().parents[2]
JSON = [ROOT / "tests" / "data" / name for name in ("dyweight.json", "ds_solver.json")]
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


def test_the_authors_pickle_gives_its_figures(snapshot):
    (table,) = read_tables(snapshot())
    torch.testing.assert_close(table.tensors["weights"], (WEIGHTS * MASK).double(), rtol=0, atol=0)
    torch.testing.assert_close(table.tensors["t_scale"], T_SCALE.double(), rtol=0, atol=0)
    assert (table.model, table.nfe) == ("cifar10", 3)


def test_the_authors_pickle_gives_its_card(snapshot):
    (step,) = (table.step for table in read_tables(snapshot()))
    assert (step.grid.rule, step.grid.parameters) == ("polynomial", {"rho": 7.0})
    assert (step.analytic_first, step.divisor, step.history) == (True, "state", 3)
    assert (step.teacher, step.teacher_steps, step.loss) == ("heun", 35, "inception")
    assert step.source_table == "00000-cifar-nfe3"


def test_the_source_inside_the_authors_pickle_is_not_executed(snapshot, tmp_path):
    read_tables(snapshot())
    assert not (tmp_path / "proof").exists()


def test_an_unpickled_object_is_its_state_and_its_class_name(snapshot):
    content = read_inert_pickle(snapshot())
    assert (content["predictor"]["class_name"], content["predictor"]["num_steps"]) == ("Predictor", 5)
    assert (content["loss_fn"]["solver_stu"], content["loss_fn"]["solver_tea"]) == ("dyweight_sampler", "heun_sampler")


def test_a_loss_that_the_released_code_lacks_is_noted(snapshot):
    (table,) = read_tables(snapshot(loss_type="piecewise"))
    assert table.step.note == 'Fitted with the loss "piecewise", which the released code lacks.'


def test_a_table_is_named_by_its_folder_or_else_by_its_file(snapshot):
    (table,) = read_tables(snapshot("somewhere"))
    assert table.step.source_table == "network-snapshot-000010"


def test_a_pickle_that_tampers_with_the_stand_ins_changes_no_other(snapshot, tmp_path):
    tampering = tmp_path / "tampering.pkl"
    set_defaults = b"N}U\x0c__defaults__(U\x01aU\x01aU\x01ats\x86b."
    tampering.write_bytes(b"\x80\x02ctorch._utils\n_rebuild_parameter\n" + set_defaults)
    with pytest.raises(ValueError, match=r"tampering\.pkl: must hold a dictionary, got function"):
        read_tables(tampering)
    torch.testing.assert_close(read_tables(snapshot())[0].tensors["t_scale"], T_SCALE.double())


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"_parameters": OrderedDict()}, id="no parameters"),
        pytest.param({"_buffers": OrderedDict(mask=torch.ones(3, 3))}, id="mask of another size"),
        pytest.param({"_buffers": OrderedDict(mask="x")}, id="mask no tensor"),
        pytest.param({"schedule_type": "cosine"}, id="unknown schedule"),
        pytest.param({"schedule_rho": -1.0}, id="negative rho"),
        pytest.param({"teacher_steps": []}, id="teacher's steps a list"),
        pytest.param({"solver_tea": 5}, id="teacher a number"),
    ],
)
def test_a_layout_that_is_not_the_authors_is_refused_by_name(changed, snapshot):
    with pytest.raises(ValueError, match=r"network-snapshot-000010\.pkl: "):
        read_tables(snapshot(**changed))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[]", "its entries are of other kinds than a table's"),
        ("{}", "it has no 'tables'"),
        ('{"tables": {"ms_coco": {"weights": [[1.0]]}}}', "it has no 'dataset'"),
        ("", "it is no JSON from character 0 on"),
        ('{"tables": {"flow-sit": 5}}', "its entries are of other kinds than a table's"),
        ('{"tables": {"flow-sit": {"a": {"timedeltas": ["x"], "coeffs": [[0.0]]}}}}', "timedeltas must be lists of"),
    ],
)
def test_json_of_another_layout_is_told_in_our_words(content, told, tmp_path):
    path = tmp_path / "figures.json"
    path.write_text(content, "utf-8")
    with pytest.raises(ValueError, match="not the published layout") as refused:
        read_tables(path)
    assert str(refused.value).startswith(f"{path}: not the published layout, {told}")


def test_figures_that_no_solver_file_may_hold_are_refused_with_their_files_name(tmp_path):
    path = tmp_path / "upper.JSON"  # endings are read in either case
    content = {"tables": {"flow-sit": {"a": {"timedeltas": [0.5, 0.5], "coeffs": [[0.0, 1.0], [0.0, 0.0]]}}}}
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ValueError, match=r"upper\.JSON: 2 steps: coeffs must"):
        read_tables(path)
    path.write_text(json.dumps({"tables": {"nope": content["tables"]["flow-sit"]}}), "utf-8")
    with pytest.raises(ValueError, match=r"upper\.JSON: no facts are known about nope: add them to"):
        read_tables(path)


def test_a_flux_checkpoint_gives_its_figures(tmp_path):
    (table,) = read_tables(checkpoint(tmp_path / "dyweight_nfe3.pt"))
    weights, t_scale = [[0.9, 0, 0], [-0.1, 1.0, 0], [0, -0.2, 0.96]], [1.01, 0.98, 0.95]
    torch.testing.assert_close(table.tensors["weights"], torch.tensor(weights).double(), rtol=0, atol=0)
    torch.testing.assert_close(table.tensors["t_scale"], torch.tensor(t_scale).double(), rtol=0, atol=0)
    assert (table.model, table.nfe, table.step.source_table) == ("flux1-dev", 3, "flux1-dev-nfe3")
    assert (table.step.grid.rule, table.step.divisor, table.step.history) == ("flux_shift", "call", 2)
    assert not table.step.analytic_first


def hostile_checkpoint(path: Path, proof: Path, kind: str) -> Path:
    """Writes a file that a stock loader executes: it creates the file `proof`."""
    content = {"window_size": 2, "dyweight_weights_raw": Call(os.system, f"echo > {proof}")}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    return path


@pytest.mark.parametrize("kind", ["zip", "old", "pickle"])
def test_a_hostile_checkpoint_executes_nothing_and_is_refused_by_name(kind, tmp_path):
    path = hostile_checkpoint(tmp_path / "hostile.pt", tmp_path / "proof", kind)
    with pytest.raises(ValueError, match=r"hostile\.pt: refused as no torch file of numbers alone") as refused:
        read_tables(path)
    assert "weights_only" not in str(refused.value)  # torch's advice, by which the file would be run
    assert kind != "zip" or "posix" in str(refused.value) or "system" in str(refused.value)
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("kind", ["zip", "old", "pickle"])
def test_a_stock_loader_would_execute_the_hostile_checkpoint(kind, tmp_path):
    path = hostile_checkpoint(tmp_path / "hostile.pt", tmp_path / "proof", kind)
    with contextlib.suppress(Exception):
        torch.load(path, weights_only=False)
    assert (tmp_path / "proof").exists()


def test_an_oversize_checkpoint_is_refused_before_it_is_read(tmp_path):
    path = checkpoint(tmp_path / "large.pt", padding=torch.zeros(LARGEST))
    with pytest.raises(ValueError, match=rf"large\.pt: a DyWeight \.pt has at most {LARGEST} bytes, this one \d+"):
        read_tables(path)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"dyweight_weights_raw": 5}, id="weights a number"),
        pytest.param({"dyweight_t_scales": None}, id="no scales"),
        pytest.param({"window_size": []}, id="window a list"),
    ],
)
def test_a_checkpoint_of_another_layout_is_refused_by_name(changed, tmp_path):
    with pytest.raises(ValueError, match=r"other\.pt: "):
        read_tables(checkpoint(tmp_path / "other.pt", **changed))


# JSON.


def with_table(**changed: object) -> str:
    table = json.loads(JSON[0].read_text())["tables"]["00000-cifar-nfe3"]
    return json.dumps({"tables": {"00000-cifar-nfe3": {**table, **changed}}})


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("hello", id="text"),
        pytest.param("[]", id="a list"),
        pytest.param("{}", id="no tables"),
        pytest.param('{"tables": []}', id="a list of tables"),
        pytest.param("[" * 100_000, id="nested deeply"),
        pytest.param(b"\xff\xfe", id="no UTF-8"),
        pytest.param(with_table(schedule="cosine"), id="unknown schedule"),
        pytest.param(with_table(rho=-1), id="negative rho"),
        pytest.param(with_table(weights=[[1], [1, 2]]), id="ragged weights"),
        pytest.param(with_table(weights="x"), id="weights text"),
        pytest.param(with_table(t_scale=5), id="a number of scales"),
    ],
)
def test_json_of_another_layout_is_refused_by_name(content, tmp_path):
    path = tmp_path / "figures.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"figures\.json: "):
        read_tables(path)


def test_another_kind_of_file_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"model\.ckpt: must be one of \.json, \.pt, \.pkl; name the published file"):
        read_tables(tmp_path / "model.ckpt")


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_tables_for_one_count_the_one_with_a_known_loss_is_kept(order, tmp_path):
    tables = [table for table in read_tables(JSON[0]) if table.model == "cifar10" and table.nfe == 4]
    assert len(tables) == 2
    (solver,) = assemble(tables[::order], "2026-01-31")
    assert solver.card.steps[4].source_table == "00001-cifar-nfe4"


# The command.


@pytest.mark.parametrize("name", [facts["name"] for facts in MODELS.values()])
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
    assert {path.stem for path in tmp_path.iterdir()} == {facts["name"] for facts in MODELS.values()}
    assert f"{tmp_path / 'ds_flow-sit.safetensors'}: 5, 6, 7, 8, 9, 10 steps" in capsys.readouterr().out


def test_the_command_reads_the_authors_own_files(tmp_path, snapshot):
    flux = checkpoint(tmp_path / "dyweight_nfe3.pt")
    main([str(snapshot()), str(flux), "--output", str(tmp_path / "new")])
    assert load_solver(tmp_path / "new" / "dyweight_cifar10.safetensors").steps == (3,)
    assert load_solver(tmp_path / "new" / "dyweight_flux1-dev.safetensors").steps == (3,)


def test_the_command_overwrites_only_when_asked(tmp_path, capsys):
    path = tmp_path / "ds_vp-dit.safetensors"
    path.write_bytes(b"something dear")
    with pytest.raises(SystemExit) as stopped:
        main([str(JSON[1]), "--output", str(tmp_path)])
    assert (stopped.value.code, path.read_bytes()) == (1, b"something dear")
    assert "ds_vp-dit.safetensors exists already" in capsys.readouterr().err
    main([str(JSON[1]), "--output", str(tmp_path), "--overwrite"])
    assert load_solver(path).steps == (5, 6, 7, 8, 9, 10)


def test_the_command_writes_todays_date_unless_told(tmp_path):
    main([str(JSON[1]), "--output", str(tmp_path), "--date", "2026-01-31"])
    assert load_solver(tmp_path / "ds_vp-dit.safetensors").card.date == "2026-01-31"


def test_the_command_refuses_a_date_that_is_none(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(JSON[1]), "--output", str(tmp_path / "new"), "--date", "yesterday"])
    assert "must be a day such as 2026-11-24, got 'yesterday'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.json", None, "missing.json does not exist: name the published files"),
        ("hostile.pkl", pickle.dumps(Call(os.system, "echo")), "hostile.pkl: refused, it names"),
        ("unknown.json", with_table(dataset="my_own").encode(), "my_own"),
        ("empty.json", b'{"tables": {}}', "empty.json"),
    ],
)
def test_the_command_refuses_in_one_line(name, content, message, tmp_path, capsys):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / name), "--output", str(tmp_path / "new")])
    error = capsys.readouterr().err
    assert stopped.value.code == 1
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()
