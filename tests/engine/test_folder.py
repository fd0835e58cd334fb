"""The files that a host offers: the user's first, broken ones left out, and nothing outside the list."""

from __future__ import annotations

import logging

import pytest
from learned_solvers.samplers import list_solvers
from learned_solvers.samplers.files.folder import SolverFolder
from oracles import ds_solver


@pytest.fixture
def folder(tmp_path):
    def path_of(name):
        return tmp_path / name if (tmp_path / name).exists() else None

    ds_solver(5).save(tmp_path / "a.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    return SolverFolder("models/solver_weights", lambda: sorted(p.name for p in tmp_path.iterdir()), path_of)


def test_the_users_files_come_first_and_keep_their_ending(folder):
    assert folder.names() == ["a.safetensors", "broken.safetensors", *list_solvers()]
    assert folder.load("a.safetensors").name == "a.safetensors"
    assert folder.load("ds_flow-sit").steps == (5, 6, 7, 8, 9, 10)
    assert [folder.place_of(name) for name in ("a.safetensors", "ds_flow-sit")] == ["models/solver_weights", "bundled"]


def test_a_broken_file_is_left_out_and_named_once(folder, caplog):
    with caplog.at_level(logging.WARNING, "learned_solvers"):
        names = [[solver.name for solver in folder.loadable()] for _ in range(2)]
    assert names == [["a.safetensors", *list_solvers()]] * 2
    (record,) = caplog.records
    assert "broken.safetensors" in record.getMessage()


@pytest.mark.parametrize("name", ["b.safetensors", "../a.safetensors", "/etc/hostname", ""])
def test_a_name_that_is_not_listed_is_refused(name, folder):
    with pytest.raises(FileNotFoundError, match=r"no solver file is called .*: choose one of a\.safetensors"):
        folder.load(name)


def test_a_name_outside_utf_8_is_left_out(tmp_path, caplog):
    folder = SolverFolder("here", lambda: ["\udcff.safetensors", "\u00fc.safetensors"], lambda name: tmp_path / name)
    with caplog.at_level(logging.WARNING, "learned_solvers"):
        assert folder.names() == ["\u00fc.safetensors", *list_solvers()]
    assert "is not UTF-8; rename it" in caplog.text


def test_the_fingerprint_changes_with_the_file_alone(folder, tmp_path):
    before = [folder.fingerprint("a.safetensors"), folder.fingerprint("ds_flow-sit"), folder.fingerprint()]
    ds_solver(6, 7).save(tmp_path / "a.safetensors", overwrite=True)
    after = [folder.fingerprint("a.safetensors"), folder.fingerprint("ds_flow-sit"), folder.fingerprint()]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True, False]
    (tmp_path / "a.safetensors").unlink()
    assert folder.fingerprint("a.safetensors").endswith("gone")
