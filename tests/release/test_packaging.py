"""One folder as ComfyUI node pack, pip package and archive: loading it, its wheel, source and registry archives."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
import tarfile
import zipfile
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import pytest
import torch
from comfy_host import COMFY_MODULES
from learned_solvers.samplers.files.card import VERSION
from PIL import Image
from repository import NOT_SOURCE, PROJECT, ROOT, git_files, needs_git, run_python

RELEASED_NODES = {"LearnedSolver", "LearnedSolverKSampler", "SetLearnedSolver"}  # never renamed, never removed:
RELEASED_NODES |= {"FitLearnedSolver", "CompareSamplers", "LearnedSolverInfo"}  # they are in saved workflows


class StubHost:
    """An import finder for which every module of ComfyUI exists, with every attribute a mock."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in COMFY_MODULES else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = lambda name: MagicMock(name=f"{module.__name__}.{name}")


@pytest.fixture
def pack(tmp_path, monkeypatch):
    """A copy of the checkout in a hyphenated folder with dots, as users have it; ComfyUI is importable."""
    monkeypatch.setattr(sys, "meta_path", [StubHost(), *sys.meta_path])
    before, folder = set(sys.modules), tmp_path / "custom_nodes" / "learned-solvers-0.1"
    yield shutil.copytree(ROOT, folder, ignore=NOT_SOURCE)
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in COMFY_MODULES or "learned-solvers-0_x_1" in name:
            del sys.modules[name]


def load_custom_node(folder: Path, name: str | None = None) -> ModuleType:
    """Loads a folder as ComfyUI's nodes.py does, which logs exceptions and leaves the pack out."""
    spec = spec_from_file_location(name or str(folder).replace(".", "_x_"), folder / "__init__.py")
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_comfyui_finds_nodes_and_bundled_solvers_in_a_hyphenated_folder(pack):
    module = load_custom_node(pack)
    assert module.NODE_CLASS_MAPPINGS.keys() >= RELEASED_NODES
    assert module.NODE_DISPLAY_NAME_MAPPINGS.keys() == module.NODE_CLASS_MAPPINGS.keys()
    for node in module.NODE_CLASS_MAPPINGS.values():
        assert node.__module__.startswith(module.__name__), "comes from another copy"
        assert callable(getattr(node, node.FUNCTION)) and node.INPUT_TYPES()["required"]
    engine = sys.modules[f"{module.__name__}.samplers"]
    assert engine.load_solver("ds_flow-sit").steps and engine.files.solver.BUNDLED.parent == pack


def test_outside_a_package_or_without_comfyui_the_folder_loads_and_has_no_nodes(pack, monkeypatch):
    # pytest in a hyphenated folder imports the root's __init__.py as a plain module, even if ComfyUI is importable.
    monkeypatch.setitem(sys.modules, "__init__", None)  # so that the module is removed again
    assert load_custom_node(pack, "__init__").NODE_CLASS_MAPPINGS == {}
    monkeypatch.setitem(sys.modules, "comfy", None)  # not importable
    module = load_custom_node(pack)
    assert module.NODE_CLASS_MAPPINGS == {} and module.NODE_DISPLAY_NAME_MAPPINGS == {}
    assert f"{module.__name__}.nodes" not in sys.modules


def test_an_error_inside_the_nodes_reaches_comfyui(pack):
    (pack / "nodes" / "sampler.py").write_text("import no_such_module")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        load_custom_node(pack)


def test_the_pack_works_without_the_dyweight_files(pack):
    for file in (pack / "solver_weights").glob("dyweight_*"):
        file.unlink()
    engine = sys.modules[f"{load_custom_node(pack).__name__}.samplers"]
    assert engine.list_solvers() == ["ds_flow-flowdcn", "ds_flow-sit", "ds_vp-dit"]
    with pytest.raises(ValueError, match=r"dyweight_sd15.*does not include DyWeight"):
        engine.load_solver("dyweight_sd15")
    x, sigmas, noise = torch.randn(2, 3), torch.linspace(1, 0, 6), engine.FlowNoise()
    assert engine.sample_ds_solver(lambda x, sigma: 0 * x, x, sigmas, noise=noise, disable=True).shape == x.shape


WATCHED_IMPORT = """
import importlib, json, os, pkgutil, sys
import numpy, safetensors.torch, torch, tqdm.auto  # not our events

events = []
CHANGES = ("os.system", "os.mkdir", "os.remove", "os.rename", "os.posix_spawn", "os.fork")

def watch(event, arguments):
    writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event in CHANGES or event.startswith(("socket.", "subprocess.", "shutil.", "tempfile.")):
        events.append(f"{event} {arguments}")

sys.addaudithook(watch)
import learned_solvers.samplers as engine
for module in pkgutil.walk_packages(engine.__path__, engine.__name__ + "."):
    importlib.import_module(module.name)
print(json.dumps([events, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def test_importing_the_engine_opens_no_socket_writes_no_file_and_needs_no_other_package(tmp_path):
    (tmp_path / "learned_solvers").symlink_to(ROOT, target_is_directory=True)
    events, modules = json.loads(run_python("-c", WATCHED_IMPORT, cwd=tmp_path))
    assert events == [] and "torch" in modules
    assert set(modules) & {"matplotlib", "scipy", "PIL", "sklearn", "torchvision", "comfy", "modules"} == set()


@pytest.mark.slow
def test_the_wheel_has_all_code_and_data_and_nothing_else(tmp_path):
    pytest.importorskip("setuptools", minversion="77", reason="pip install 'setuptools>=77' builds the wheel")
    source = shutil.copytree(ROOT, tmp_path / "source", ignore=NOT_SOURCE)  # building leaves files there
    build = ("wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", "..", ".")
    run_python("-m", "pip", *build, cwd=source)
    (built,), wheel = tmp_path.glob("*.whl"), tmp_path / "unpacked"
    with zipfile.ZipFile(built) as archive:
        archive.extractall(wheel)
    folders = ("integrations", "nodes", "samplers", "training", "solver_weights", "webui_extension")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    suffixes = (".py", ".safetensors", ".txt", ".json")
    expected = {path.relative_to(ROOT).as_posix() for path in files if path.suffix in suffixes} | {"__init__.py"}
    assert {"solver_weights/ds_flow-sit.safetensors", "training/command/prompts.txt"} <= expected
    package = wheel / "learned_solvers"
    packed = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    assert packed - {"solver_weights/README.md"} == expected
    assert {path.name for path in wheel.iterdir()} == {"learned_solvers", f"learned_solvers-{VERSION}.dist-info"}
    code = "import learned_solvers.samplers as s; print(s.__file__); s.load_solver('ds_flow-sit')"
    assert Path(run_python("-c", code, cwd=wheel).strip()).is_relative_to(wheel)


@pytest.mark.slow
@needs_git
def test_the_source_archive_has_all_that_git_tracks(tmp_path):
    pytest.importorskip("setuptools", minversion="77", reason="pip install 'setuptools>=77' builds the archive")
    source = tmp_path / "source"
    for name in git_files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    build = "import setuptools.build_meta as b, sys; print(b.build_sdist(sys.argv[1]))"
    run_python("-c", build, tmp_path, cwd=source)
    with tarfile.open(tmp_path / f"learned_solvers-{VERSION}.tar.gz") as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert git_files() - packed == {".gitignore"}
    assert not [name for name in packed if name.endswith((".pyc", ".pkl", ".pt"))]


@needs_git
def test_the_registrys_archive_has_the_pack_and_its_pictures_and_is_small():
    tracked = git_files()
    published = tracked - git_files("--cached", "--ignored", "--exclude-from=.comfyignore")
    pack = ("nodes/", "samplers/", "solver_weights/", "subgraphs/", "training/", "web/")
    pack += ("example_workflows/",)
    assert published >= {"__init__.py", "pyproject.toml", "LICENSE", "README.md"}
    assert published >= {name for name in tracked if name.startswith(pack)}
    assert not [name for name in published if name.startswith(("tests/", ".ci/", ".git", "MANIFEST.in"))]
    assert not [name for name in published if re.fullmatch(r"benchmarks/.*\.(py|json)", name)]
    links = set(re.findall(r"\]\((?!http)([^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert len(links) >= 7 and links <= published
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(published):
            archive.write(ROOT / name, name)
    assert 0.5e6 < len(packed.getvalue()) < 8e6  # most of it the weights of the bundled model


def test_the_registrys_entry_is_complete():
    comfy, project = PROJECT["tool"]["comfy"], PROJECT["project"]
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", comfy["PublisherId"])
    assert re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"])
    assert "comfyui" not in project["name"].lower()
    names = {re.match(r"[\w.-]+", requirement)[0] for requirement in project["dependencies"]}
    assert names == {"filelock", "numpy", "safetensors", "torch", "tqdm"}  # every host has them
    repository = project["urls"]["Repository"].removeprefix("https://github.com/")
    for name, shape in (("Icon", 1), ("Banner", 21 / 9)):
        path = comfy[name].removeprefix(f"https://raw.githubusercontent.com/{repository}/main/")
        with Image.open(ROOT / path) as picture:
            assert picture.width / picture.height == pytest.approx(shape, rel=0.01)


SCRIPTS = [file.name for file in sorted((ROOT / "training").glob("[a-z]*.py")) if "__main__" in file.read_text("utf-8")]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_through_a_link_in_an_isolated_python_as_portable_builds_have(tmp_path, script):
    (tmp_path / "pack").symlink_to(ROOT, target_is_directory=True)
    command = "-I", tmp_path / "pack" / "training" / script, "--help"
    assert run_python(*command, cwd=tmp_path).startswith(f"usage: {script}")
