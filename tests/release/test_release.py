"""Facts of a release: version, changelog, what git tracks, the matrix of CI, pytest from any folder."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import torch
from learned_solvers.samplers import FlowNoise
from learned_solvers.samplers.files.card import VERSION
from learned_solvers.training import fit_solver
from oracles import GaussianFlow
from repository import NOT_SOURCE, PROJECT, ROOT, git_files, needs_git, run_python


def test_one_version_is_in_pyproject_changelog_and_fitted_cards():
    assert PROJECT["project"]["version"] == VERSION
    assert re.fullmatch(r"\d+\.\d+\.\d+", VERSION)  # the registry accepts no other form
    assert VERSION in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = fit_solver(GaussianFlow(), x, noise=FlowNoise(), steps=(2,), teacher_steps=4, held_out=2)
    assert result.solver.card.package_version == VERSION


def test_the_changelog_has_dated_versions_with_links():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first, *released = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert first == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", heading) for heading in released)
    links = re.findall(r"^(\[.+\]): https://", text, re.MULTILINE)
    assert sorted(links) == sorted(heading.split(" - ")[0] for heading in (first, *released))


@needs_git
def test_tracked_files_are_small_and_no_pickles():
    files = [ROOT / name for name in git_files()]
    pickles = {".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin", ".joblib", ".npy", ".npz"}
    assert files and [file for file in files if file.stat().st_size > 6 * 2**20 or file.suffix in pickles] == []
    others = [file for file in files if file.suffix != ".safetensors"]  # those may begin with any byte
    assert [file for file in others if file.read_bytes().startswith((b"\x80", b"PK\3\4"))] == []


SMALL_TEST = """
from pathlib import Path
import learned_solvers

def test_it_is_this_copy():
    assert Path(learned_solvers.__file__).parent == Path(__file__).resolve().parents[2]
"""


@pytest.mark.parametrize(("start", "argument"), [(".", "."), ("tests", "."), ("/", "{copy}"), ("..", "{copy}/tests")])
def test_pytest_starts_from_anywhere(tmp_path, start, argument):
    """Run, not only collected: pytest imports the root's __init__.py when it sets up the first test of the folder."""
    (tmp_path / "torch.py").write_text("def __getattr__(name): return lambda *args, **kwargs: None")  # loads faster
    copy = shutil.copytree(ROOT, tmp_path / "learned-solvers-main", ignore=NOT_SOURCE)
    for test in (copy / "tests").rglob("test_*.py"):
        test.unlink()
    (copy / "tests" / "engine" / "test_small.py").write_text(SMALL_TEST)
    environment = {"PYTHONPATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", argument.format(copy=copy))
    assert "1 passed" in run_python(*command, cwd=copy / start, **environment)


def test_pre_commit_runs_the_checks_of_ci():
    hooks = re.findall(r"^ +entry: (.+)$", (ROOT / ".pre-commit-config.yaml").read_text(), re.MULTILINE)
    steps = re.findall(r"^(?:ruff|pyright).*$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert hooks == steps and len(steps) == 3


WORKFLOWS = ROOT / ".github" / "workflows"


def test_the_workflows_are_valid():
    pytest.importorskip("check_jsonschema", reason="pip install check-jsonschema")
    run_python("-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS.glob("*.yml"))


def test_the_matrix_has_the_versions_of_pyproject():
    text = (WORKFLOWS / "tests.yml").read_text(encoding="utf-8")
    pythons = re.search(r"python: \[(.+)\]", text)[1].replace('"', "").split(", ")
    classified = [c.rpartition(" ")[2] for c in PROJECT["project"]["classifiers"] if "Python :: 3" in c]
    assert pythons == classified and PROJECT["project"]["requires-python"] == f">={pythons[0]}"
    assert "os: [ubuntu-latest, windows-latest, macos-latest]" in text
    oldest = re.search(r"oldest\) \w+=\((.+)\)", (ROOT / ".ci" / "core").read_text(encoding="utf-8"))[1]
    bounds = dict(re.findall(r"(\w+)>=([\d.]+)", " ".join(PROJECT["project"]["dependencies"])))
    assert f"torch=={bounds['torch']}.0 " in oldest and f"safetensors=={bounds['safetensors']}" in oldest


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize("script", sorted((ROOT / ".ci").iterdir()), ids=lambda script: script.name)
def test_scripts_of_ci_are_valid_shell(script):
    subprocess.run(["bash", "-n", script], check=True)
