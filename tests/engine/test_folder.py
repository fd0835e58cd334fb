"""The solver files that a host offers, without broken or unlisted ones; portable names, and suffixes in any case."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from functools import partial
from pathlib import PureWindowsPath

import pytest
from learned_solvers.samplers import list_solvers, load_solver
from learned_solvers.samplers.files.folder import SolverFolder
from learned_solvers.samplers.files.solver import BUNDLED
from learned_solvers.samplers.files.write import check_name, has_suffix
from learned_solvers.training.fit_weights import main as fit_weights
from oracles import ds_solver

DEVICES = ["CON", "con", "PRN", "aux.txt", "NUL.safetensors", "nul .png", "COM1", "lpt9.a.b", "com\u00b9", "CONIN$"]
CHARACTERS = ["a:b", "C:a", "a<b", "a>b", 'a"b', "a/b", "a\\b", "..\\a", "a|b", "what?", "a*", "a\0b", "a\tb"]
ENDS = ["a.", "a ", "a. .", "..", ".", "a.safetensors "]
ALLOWED = ["a", "console", "nullify.safetensors", "com10", "com.1", "a b", ".a", "a..b", "é", "my-model_v1.5", "aCON"]


@pytest.fixture
def folder(tmp_path):
    def path_of(name):
        return tmp_path / name if (tmp_path / name).exists() else None

    ds_solver(5).save(tmp_path / "a.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    return SolverFolder("models/solver_weights", lambda: sorted(p.name for p in tmp_path.iterdir()), path_of)


def test_the_users_files_come_first_and_keep_their_suffix(folder):
    assert folder.names() == ["a.safetensors", "broken.safetensors", *list_solvers()]
    hosted = ["ds_flow-sit", "ds_vp-dit", "dyweight_flux1-dev", "dyweight_sd15"]  # not the literature's pixel models
    assert folder.choices() == ["a.safetensors", "broken.safetensors", *hosted]
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
    uses = [listed.loadable, listed.fingerprint, *(partial(listed.load, n) for n in ("a.safetensors", "ds_flow-sit"))]
    assert [(listings.clear(), use(), len(listings))[2] for use in uses] == [1, 1, 1, 0]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        *((name, "is a device name") for name in DEVICES),
        *((name, "contains the character") for name in CHARACTERS),
        *((name, "ends in") for name in ENDS),
    ],
)
def test_a_name_that_is_not_valid_on_windows_is_refused(name, reason):
    with pytest.raises(ValueError, match=reason):
        check_name(name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.13 moved the rule
@pytest.mark.parametrize("name", [*(name for name in DEVICES if name.isascii() and name != "CONIN$"), *ALLOWED])
def test_device_names_agree_with_pythons_rule_and_any_other_name_is_allowed(name):
    assert PureWindowsPath(name).is_reserved() == (name in DEVICES)
    if name in ALLOWED:
        check_name(name)


def test_a_suffix_in_capitals_is_read_and_written_on_windows_too(tmp_path):
    for name in ("A.SAFETENSORS", "a.SafeTensors"):
        shutil.copy(BUNDLED / "ds_flow-sit.safetensors", tmp_path / name)
        assert load_solver(tmp_path / name).steps == load_solver("ds_flow-sit").steps
        assert ds_solver(5).save(tmp_path / name[:1] / name).name == name
    assert has_suffix(PureWindowsPath("C:\\models\\solver_weights\\A.SAFETENSORS"), ".safetensors")
    assert not has_suffix(PureWindowsPath("C:\\models.safetensors\\a"), ".safetensors")


def test_names_that_differ_in_case_never_overwrite_each_other(tmp_path):
    first, second = ds_solver(5).save(tmp_path / "Mine.safetensors"), tmp_path / "mine.safetensors"
    if (tmp_path / "MINE.SAFETENSORS").exists():  # Windows, macOS: the same file
        with pytest.raises(FileExistsError, match="already exists"):
            ds_solver(6).save(second)
    else:
        ds_solver(6).save(second)
        assert load_solver(second).steps == (6,)
    assert load_solver(first).steps == (5,)


def test_a_fit_refuses_such_a_name_before_it_starts(tmp_path, capsys):
    for file in (tmp_path / "comfy" / "sd.py", tmp_path / "model.safetensors"):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    command = ["--checkpoint", str(tmp_path / "model.safetensors"), "--comfyui", str(tmp_path), "--output", "NUL"]
    with pytest.raises(SystemExit):
        fit_weights(command)
    assert "it is a device name" in capsys.readouterr().err
