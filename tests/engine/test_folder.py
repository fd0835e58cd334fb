"""The solver files that a host offers: the user's first, without broken ones, and nothing outside the list."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

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


def test_the_users_files_come_first_and_keep_their_suffix(folder):
    assert folder.names() == ["a.safetensors", "broken.safetensors", *list_solvers()]
    assert (folder.load("a.safetensors").name, folder.place_of("a.safetensors")) == ("a.safetensors", folder.place)
    assert (folder.load("ds_flow-sit").name, folder.place_of("ds_flow-sit")) == ("ds_flow-sit", "bundled")


def test_a_broken_file_is_left_out_and_logged_once(folder, caplog):
    with caplog.at_level(logging.WARNING, "learned_solvers"):
        names = [[solver.name for solver in folder.loadable()] for _ in range(2)]
    assert names == [["a.safetensors", *list_solvers()]] * 2
    (record,) = caplog.records
    assert "broken.safetensors" in record.getMessage()


@pytest.mark.parametrize("name", ["b.safetensors", "../a.safetensors", "../ds_flow-sit", "/etc/hostname", ""])
def test_a_name_that_is_not_listed_is_refused(name, folder):
    with pytest.raises(FileNotFoundError, match=r"there is no solver file named .*: choose one of a\.safetensors"):
        folder.load(name)


def test_a_name_that_is_not_utf_8_is_left_out(tmp_path, caplog):
    folder = SolverFolder("here", lambda: ["\udcff.safetensors", "\u00fc.safetensors"], lambda name: tmp_path / name)
    with caplog.at_level(logging.WARNING, "learned_solvers"):
        assert folder.names() == ["\u00fc.safetensors", *list_solvers()]
    assert "is not UTF-8; rename it" in caplog.text


def test_a_fingerprint_changes_with_its_files_alone(folder, tmp_path):
    def fingerprints():
        return [folder.fingerprint(*names) for names in (["a.safetensors"], ["ds_flow-sit"], [])]

    before = fingerprints()
    ds_solver(6, 7).save(tmp_path / "a.safetensors", overwrite=True)
    assert [a == b for a, b in zip(before, fingerprints(), strict=True)] == [False, True, False]
    (tmp_path / "a.safetensors").unlink()
    assert folder.fingerprint("a.safetensors").endswith("gone")


def test_the_folder_is_listed_once_per_use_and_not_for_a_bundled_solver(folder):
    listings = []
    listed = replace(folder, list_files=lambda: listings.append(1) or folder.list_files())
    loads = [partial(listed.load, name) for name in ("a.safetensors", "ds_flow-sit")]
    assert [(use(), len(listings))[1] for use in (listed.loadable, listed.fingerprint, *loads)] == [1, 2, 3, 3]
