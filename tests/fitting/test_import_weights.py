"""Importing published parameters: the authors' layouts, and the command."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from authors_files import MASK, T_SCALE, WEIGHTS, Call, checkpoint_bytes, snapshot_bytes
from learned_solvers.samplers import load_solver
from learned_solvers.samplers.files.solver import BUNDLED
from learned_solvers.training.import_weights import assemble, main
from learned_solvers.training.published.read import published_models, read_tables

ROOT = Path(__file__).resolve().parents[2]
JSON = [ROOT / "tests" / "data" / name for name in ("dyweight.json", "ds_solver.json")]
DATE = load_solver("ds_flow-sit").card.date


@pytest.fixture
def snapshot(tmp_path):
    """Writes a pickle in the authors' layout; its source would create the file `proof`."""
    source = f"import torch\nopen({str(tmp_path / 'proof')!r}, 'w').close()\n"

    def write(folder: str = "00000-cifar-nfe3", **changed: object) -> Path:
        path = tmp_path / folder / "network-snapshot-000010.pkl"
        path.parent.mkdir()
        path.write_bytes(snapshot_bytes(source, **changed))
        return path

    return write


def assert_parameters(solver, weights, t_scale):
    assert solver.steps == (3,)
    expected = {"weights": weights.double()[None], "t_scale": t_scale.double()[None]}
    torch.testing.assert_close(dict(solver.parameters[3]), expected, rtol=0, atol=0)


def test_the_authors_pickle_gives_its_parameters_and_card_and_runs_nothing(snapshot, tmp_path):
    (solver,) = read_tables(snapshot())
    assert_parameters(solver, WEIGHTS * MASK, T_SCALE)
    step = solver.card.steps[3]
    assert (solver.name, step.source_table) == ("dyweight_cifar10", "00000-cifar-nfe3")
    assert (step.grid.rule, step.grid.parameters) == ("polynomial", {"rho": 7.0})
    assert (step.options, step.history) == ({"analytic_first": True}, 3)
    assert (step.teacher, step.teacher_steps, step.loss, step.note) == ("heun", 35, "inception", None)
    assert not (tmp_path / "proof").exists()
    (solver,) = read_tables(snapshot("somewhere", loss_type="piecewise"))
    assert solver.card.steps[3].source_table == "network-snapshot-000010"
    assert solver.card.steps[3].note == 'Fitted with the loss "piecewise", which the released code lacks.'


def test_a_flux_checkpoint_gives_its_parameters_and_card_and_the_command_its_file(snapshot, tmp_path):
    checkpoint = tmp_path / "dyweight_nfe3.pt"
    checkpoint.write_bytes(checkpoint_bytes())
    (solver,) = read_tables(checkpoint)
    weights, t_scale = [[0.9, 0, 0], [-0.1, 1.0, 0], [0, -0.2, 0.96]], [1.01, 0.98, 0.95]
    assert_parameters(solver, torch.tensor(weights), torch.tensor(t_scale))
    step = solver.card.steps[3]
    assert (solver.name, step.source_table) == ("dyweight_flux1-dev", "flux1-dev-nfe3")
    assert (step.grid.rule, step.options, step.history) == ("flux_shift", {"divisor": "call"}, 2)
    main([str(snapshot()), str(checkpoint), "--output", str(tmp_path / "new")])
    for name in ("dyweight_cifar10", "dyweight_flux1-dev"):
        assert load_solver(tmp_path / "new" / f"{name}.safetensors").steps == (3,)


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_tables_for_one_count_the_one_with_a_released_loss_is_kept(order):
    tables = [table for table in read_tables(JSON[0]) if (table.name, table.steps) == ("dyweight_cifar10", (4,))]
    assert len(tables) == 2
    (solver,) = assemble(tables[::order], "2026-01-31")
    assert solver.card.steps[4].source_table == "00001-cifar-nfe4"


def test_the_command_writes_the_bundled_files_byte_for_byte(tmp_path):
    """Run as a script from another folder."""
    command = [sys.executable, ROOT / "training" / "import_weights.py", *JSON, "--output", "new", "--date", DATE]
    ran = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    written = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    assert written.keys() == {f"{facts['name']}.safetensors" for facts in published_models().values()}
    assert [name for name, content in written.items() if content != (BUNDLED / name).read_bytes()] == []
    assert f"{Path('new', 'ds_flow-sit.safetensors')}: 5, 6, 7, 8, 9, 10 steps" in ran.stdout.splitlines()


def test_the_command_overwrites_only_on_request(tmp_path, capsys):
    path = tmp_path / "ds_vp-dit.safetensors"
    path.write_bytes(b"another solver")
    with pytest.raises(SystemExit) as stopped:
        main([str(JSON[1]), "--output", str(tmp_path)])
    assert (stopped.value.code, path.read_bytes(), len([*tmp_path.iterdir()])) == (1, b"another solver", 1)
    assert "ds_vp-dit.safetensors already exists" in capsys.readouterr().err
    main([str(JSON[1]), "--output", str(tmp_path), "--overwrite"])
    assert load_solver(path).steps == (5, 6, 7, 8, 9, 10)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file .*in.pkl"), (pickle.dumps(Call(os.system, "")), r"in.pkl: rejected \(it refers to")],
)
def test_the_command_refuses_a_file_in_one_line_and_writes_nothing(content, message, tmp_path, capsys):
    if content is not None:
        (tmp_path / "in.pkl").write_bytes(content)
    before = [*tmp_path.rglob("*")]
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "in.pkl"), "--output", str(tmp_path / "new" / "deep")])
    error = capsys.readouterr().err
    assert (stopped.value.code, error.count("\n")) == (1, 1) and re.search(message, error), error
    assert [*tmp_path.rglob("*")] == before


def test_the_command_refuses_a_date_of_another_form(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(JSON[1]), "--output", str(tmp_path / "new"), "--date", "yesterday"])
    assert "invalid iso_date value: 'yesterday'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
