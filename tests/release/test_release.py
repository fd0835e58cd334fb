"""What is released: the source archive, the registry's archive, changelog, workflow, and a package without DyWeight."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
import torch
from learned_solvers.samplers import FlowNoise, list_solvers, load_solver
from learned_solvers.samplers.files.card import VERSION
from learned_solvers.samplers.files.solver import BUNDLED
from learned_solvers.training import fit_solver
from oracles import GaussianFlow
from repository import PROJECT, ROOT, git_files, needs_git

# ---- version and changelog


def test_the_version_has_three_numbers_and_the_changelog_tells_of_it():
    assert re.fullmatch(r"\d+\.\d+\.\d+", VERSION)  # the registry takes no other
    assert VERSION in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_changelog_keeps_its_form():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", heading) for heading in headings[1:])
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds and kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    linked = re.findall(r"^\[(.+)\]: https://", text, re.MULTILINE)
    assert sorted(linked) == sorted(re.match(r"\[(.+?)\]", heading)[1] for heading in headings)


def test_every_fitted_card_has_the_version():
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = fit_solver(GaussianFlow(), x, noise=FlowNoise(), steps=(2,), teacher_steps=4, held_out=2)
    assert result.solver.card.package_version == VERSION


@pytest.mark.parametrize("name", list_solvers())
def test_every_bundled_card_names_version_source_paper_licence_and_date(name):
    card = load_solver(name).card
    assert re.fullmatch(r"\d+\.\d+\.\d+", card.package_version)
    assert card.source.startswith("https://") and "arXiv" in card.citation and card.licence
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", card.date)


# ---- the source archive


@pytest.mark.slow
@needs_git
def test_the_source_archive_holds_all_that_git_tracks(tmp_path):
    pytest.importorskip("setuptools", minversion="77", reason="pip install 'setuptools>=77' builds the archive")
    source = tmp_path / "source"
    for name in git_files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    build = "import setuptools.build_meta as b, sys; print(b.build_sdist(sys.argv[1]))"
    command = [sys.executable, "-c", build, str(tmp_path)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / f"learned_solvers-{VERSION}.tar.gz") as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert git_files() - held == {".gitignore"}
    assert not [name for name in held if name.endswith((".pyc", ".pkl", ".pt"))]


# ---- the registry's archive


def published() -> set[str]:
    """Returns what ComfyUI's registry publishes: what git tracks, less .comfyignore."""
    return git_files() - git_files("--cached", "--ignored", "--exclude-from=.comfyignore")


@needs_git
def test_the_registrys_archive_holds_the_pack_and_no_tests():
    top = {name.partition("/")[0] for name in published()}
    pack = {"__init__.py", "nodes", "samplers", "solver_weights", "training", "web", "example_workflows"}
    assert top >= pack | {"pyproject.toml", "LICENSE", "README.md"}
    assert not top & {"tests", ".ci", ".github", ".gitignore", "MANIFEST.in"}
    links = re.findall(r"\]\((?!http)([^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(links) >= 8 and set(links) <= published()
    assert not any(name.startswith("benchmarks/") and name.endswith((".py", ".json")) for name in published())
    for folder in pack - {"__init__.py"}:
        assert {name for name in git_files() if name.startswith(f"{folder}/")} <= published()


@needs_git
def test_the_registrys_archive_is_small():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(published()):
            archive.write(ROOT / name, name)
    assert 0.5e6 < len(packed.getvalue()) < 3e6


def test_the_registrys_entry_is_complete():
    comfy, project = PROJECT["tool"]["comfy"], PROJECT["project"]
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", comfy["PublisherId"])
    assert comfy["DisplayName"] == "Learned Solvers" and comfy["includes"] == []
    assert re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"])
    assert "comfyui" not in project["name"].lower() and project["urls"].keys() >= {"Repository", "Issues"}
    repository = project["urls"]["Repository"].removeprefix("https://github.com/")
    icon = comfy["Icon"].removeprefix(f"https://raw.githubusercontent.com/{repository}/main/")
    assert (ROOT / icon).is_file()


# ---- without the DyWeight files


WITHOUT = """
import json, sys
from learned_solvers.samplers import FlowNoise, list_solvers, load_solver, sample_ds_solver
import torch

def told(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except ValueError as error:
        return str(error)

x, sigmas = torch.randn(2, 3), torch.linspace(1, 0, 6)
model = lambda x, sigma: torch.zeros_like(x)
print(json.dumps({
    "listed": list_solvers(),
    "named": told(load_solver, "dyweight_sd15"),
    "sampled": list(sample_ds_solver(model, x, sigmas, noise=FlowNoise(), disable=True).shape),
}))
"""


def test_the_package_works_without_the_dyweight_files_and_says_what_is_missing(tmp_path):
    copy = tmp_path / "learned_solvers"
    for folder in ("samplers", "solver_weights"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "dyweight_*"))
    shutil.copy(ROOT / "__init__.py", copy)
    command = [sys.executable, "-B", "-c", WITHOUT]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    left = sorted(path.stem for path in BUNDLED.glob("ds_*.safetensors"))
    assert seen["listed"] == left and len(left) == 3
    assert "no bundled solver is called 'dyweight_sd15' (this package leaves out DyWeight's published" in seen["named"]
    assert seen["sampled"] == [2, 3]


# ---- the workflow


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_the_workflows_are_valid():
    pytest.importorskip("check_jsonschema", reason="pip install check-jsonschema")
    check = ["-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    done = subprocess.run([sys.executable, *check, *WORKFLOWS], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert WORKFLOWS and done.returncode == 0, done.stdout + done.stderr


def test_the_matrix_is_what_pyproject_promises():
    text = WORKFLOWS[0].read_text(encoding="utf-8")
    pythons = re.search(r"python: \[(.+)\]", text)[1].replace('"', "").split(", ")
    classified = [c.rpartition(" ")[2] for c in PROJECT["project"]["classifiers"] if "Python :: 3" in c]
    assert pythons == classified and PROJECT["project"]["requires-python"] == f">={pythons[0]}"
    assert "os: [ubuntu-latest, windows-latest, macos-latest]" in text
    oldest = re.search(r"oldest\) wanted=\((.+)\)", (ROOT / ".ci" / "core").read_text(encoding="utf-8"))[1]
    bounds = dict(re.findall(r"(\w+)>=([\d.]+)", " ".join(PROJECT["project"]["dependencies"])))
    assert f"torch=={bounds['torch']}.0 " in oldest and f"safetensors=={bounds['safetensors']}" in oldest


@pytest.mark.parametrize("script", ["core", "readme", "run"])
def test_scripts_of_ci_are_valid_shell(script):
    if (bash := shutil.which("bash")) is None:
        pytest.skip("no bash")
    done = subprocess.run([bash, "-n", ROOT / ".ci" / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
