"""One folder as ComfyUI node pack, pip package and pytest root: loading, wheel, what git tracks."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import pytest
from comfy_host import COMFY_MODULES
from learned_solvers.samplers.files.card import VERSION
from repository import PROJECT, ROOT, git_files, needs_git

RELEASED_NODES = {  # in workflows that people have saved: never renamed, never removed
    *("LearnedSolver", "LearnedSolverKSampler", "SetLearnedSolver"),
    *("FitLearnedSolver", "CompareSamplers", "LearnedSolverInfo"),
}
NOT_SOURCE = shutil.ignore_patterns(".git", ".venv*", ".*_cache", "__pycache__", "build", "dist", "*.egg-info")


@pytest.fixture
def pack(tmp_path):
    """Returns a copy of the checkout as a user's custom_nodes folder may hold it, hyphen and dots included."""
    return shutil.copytree(ROOT, tmp_path / "custom_nodes" / "learned-solvers-0.1", ignore=NOT_SOURCE)


def run_python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Returns the finished process, free of what pytest and CI set for this one."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_") and k != "PYTHONPATH"}
    command = [sys.executable, "-B", *arguments]
    return subprocess.run(command, cwd=cwd, env=own | environment, capture_output=True, text=True, timeout=300)


# ---- ComfyUI


class StubHost:
    """An import finder for which every module of ComfyUI exists, with every attribute a mock."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name.partition(".")[0] in COMFY_MODULES:
            return ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = lambda name: MagicMock(name=f"{module.__name__}.{name}")


@pytest.fixture
def comfy(monkeypatch) -> Iterator[None]:
    """Makes ComfyUI importable, and forgets afterwards what was loaded from it."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "meta_path", [StubHost(), *sys.meta_path])
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in COMFY_MODULES:
            del sys.modules[name]


@pytest.fixture
def load_custom_node() -> Iterator[object]:
    """Returns what ComfyUI's nodes.py does to a folder (there, an exception is logged and the pack goes missing)."""
    loaded = []

    def load(module_path: str) -> ModuleType:
        sys_module_name = module_path.replace(".", "_x_")
        loaded.append(sys_module_name)
        module_spec = spec_from_file_location(sys_module_name, os.path.join(module_path, "__init__.py"))
        module = module_from_spec(module_spec)
        sys.modules[sys_module_name] = module
        module_spec.loader.exec_module(module)
        return module

    yield load
    for name in [name for name in sys.modules if name.startswith(tuple(loaded))]:
        del sys.modules[name]


@pytest.mark.usefixtures("comfy")
def test_comfyui_finds_every_released_node_in_a_hyphenated_folder(pack, load_custom_node):
    module = load_custom_node(str(pack))
    assert module.NODE_CLASS_MAPPINGS.keys() >= RELEASED_NODES
    assert module.NODE_DISPLAY_NAME_MAPPINGS.keys() == module.NODE_CLASS_MAPPINGS.keys()
    for node in module.NODE_CLASS_MAPPINGS.values():
        assert node.__module__.startswith(module.__name__), "comes from another copy"
        assert callable(getattr(node, node.FUNCTION)) and node.INPUT_TYPES()["required"]


@pytest.mark.usefixtures("comfy")
def test_the_bundled_solvers_are_found_from_a_hyphenated_folder(pack, load_custom_node):
    name = load_custom_node(str(pack)).__name__
    assert sys.modules[f"{name}.samplers"].load_solver("ds_flow-sit").steps
    assert sys.modules[f"{name}.samplers.files.solver"].BUNDLED.parent == pack


def test_without_comfyui_the_folder_loads_and_has_no_nodes(pack, load_custom_node, monkeypatch):
    monkeypatch.setitem(sys.modules, "comfy", None)  # not importable, whatever is installed
    module = load_custom_node(str(pack))
    assert module.NODE_CLASS_MAPPINGS == {} and module.NODE_DISPLAY_NAME_MAPPINGS == {}
    assert f"{module.__name__}.nodes" not in sys.modules


@pytest.mark.usefixtures("comfy")
def test_the_root_outside_a_package_has_no_nodes(pack):
    # pytest in a hyphenated folder imports the root's __init__.py as a plain module, also where ComfyUI is importable.
    spec = spec_from_file_location("__init__", pack / "__init__.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.NODE_CLASS_MAPPINGS == {}


@pytest.mark.usefixtures("comfy")
def test_an_error_inside_the_nodes_reaches_comfyui(pack, load_custom_node):
    (pack / "nodes" / "sampler.py").write_text("import no_such_module")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        load_custom_node(str(pack))


# ---- importing

WATCHED_IMPORT = """
import importlib, json, os, pkgutil, sys
import numpy, safetensors.torch, torch, tqdm.auto  # what they do on their own is not ours

seen = []

def watch(event, arguments):
    writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event.split(".")[0] in ("socket", "subprocess", "shutil", "tempfile") or event in (
        "os.system", "os.mkdir", "os.remove", "os.rename", "os.posix_spawn", "os.fork"
    ):
        seen.append(f"{event} {arguments}")

sys.addaudithook(watch)
import learned_solvers.samplers as engine
for module in pkgutil.iter_modules(engine.__path__):
    importlib.import_module(f"{engine.__name__}.{module.name}")
print(json.dumps({"seen": seen, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


@pytest.fixture(scope="module")
def watched_import(tmp_path_factory):
    folder = tmp_path_factory.mktemp("import")
    (folder / "learned_solvers").symlink_to(ROOT, target_is_directory=True)
    done = run_python("-c", WATCHED_IMPORT, cwd=folder, PYTHONPATH=str(folder))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_the_engine_opens_no_socket_and_writes_no_file(watched_import):
    assert watched_import["seen"] == []


@pytest.mark.parametrize("module", ["matplotlib", "scipy", "PIL", "sklearn", "torchvision", "comfy", "modules"])
def test_importing_the_engine_imports_nothing_it_does_not_need(watched_import, module):
    assert "torch" in watched_import["modules"] and module not in watched_import["modules"]


# ---- pip


def test_one_version_number():
    assert PROJECT["project"]["version"] == VERSION


def test_the_runtime_requirements_are_in_every_host():
    names = [re.match(r"[\w.-]+", requirement)[0] for requirement in PROJECT["project"]["dependencies"]]
    assert sorted(names) == ["filelock", "numpy", "safetensors", "torch", "tqdm"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Returns the unpacked wheel, built from a copy: building leaves files beside pyproject.toml."""
    pytest.importorskip("setuptools", minversion="77", reason="pip install 'setuptools>=77' builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    source = shutil.copytree(ROOT, folder / "source", ignore=NOT_SOURCE)
    build = ("-m", "pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", "..", ".")
    done = run_python(*build, cwd=source)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.mark.slow
def test_the_wheel_holds_all_code_and_data_and_nothing_else(wheel):
    folders = [ROOT / name for name in ("nodes", "samplers", "training", "solver_weights", "webui_extension")]
    files = [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in (".py", ".safetensors", ".txt", ".json")
    ]
    expected = {path.relative_to(ROOT).as_posix() for path in files} | {"__init__.py"}
    assert {"solver_weights/ds_flow-sit.safetensors", "training/command/prompts.txt"} <= expected
    own = wheel / "learned_solvers"
    held = {path.relative_to(own).as_posix() for path in own.rglob("*") if path.is_file()}
    assert held - {"solver_weights/README.md"} == expected
    assert {path.name for path in wheel.iterdir()} == {"learned_solvers", f"learned_solvers-{VERSION}.dist-info"}


@pytest.mark.slow
def test_a_bundled_solver_loads_from_the_wheel(wheel, tmp_path):
    code = "import learned_solvers.samplers as s; print(s.__file__); s.load_solver('ds_flow-sit')"
    done = run_python("-c", code, cwd=tmp_path, PYTHONPATH=str(wheel))
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(wheel)


# ---- pytest

SMALL_TEST = """
from pathlib import Path

import learned_solvers

def test_it_is_this_copy():
    assert Path(learned_solvers.__file__).parent == Path(__file__).resolve().parents[2]
"""
STUB_TORCH = "def __getattr__(name): return lambda *args, **kwargs: None"  # importing the real one takes seconds


@pytest.fixture(scope="module")
def small_suite(tmp_path_factory):
    """Returns a hyphenated copy with one test, beside a stub of torch."""
    folder = tmp_path_factory.mktemp("pytest")
    (folder / "stubs").mkdir()
    (folder / "stubs" / "torch.py").write_text(STUB_TORCH)
    copy = shutil.copytree(ROOT, folder / "learned-solvers-main", ignore=NOT_SOURCE)
    for test in (copy / "tests").rglob("test_*.py"):
        test.unlink()
    (copy / "tests" / "engine" / "test_small.py").write_text(SMALL_TEST)
    return copy


@pytest.mark.parametrize(
    ("start", "arguments"),
    [
        pytest.param("{copy}", [], id="from the root"),
        pytest.param("{copy}", ["tests"], id="tests from the root"),
        pytest.param("{copy}/tests", [], id="from tests"),
        pytest.param("/", ["{copy}"], id="by path from the file system's root"),
        pytest.param("{copy}/..", ["learned-solvers-main/tests/engine/test_small.py"], id="one file from the parent"),
    ],
)
def test_pytest_starts_from_anywhere(small_suite, start, arguments):
    # Run, not only collected: pytest imports the root's __init__.py when the first test of the folder is set up.
    arguments = [argument.format(copy=small_suite) for argument in arguments]
    where = Path(start.format(copy=small_suite))
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments)
    stubs = str(small_suite.parent / "stubs")
    done = run_python(*command, cwd=where, PYTHONPATH=stubs, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr


# ---- the repository


def is_pickle(path: Path) -> bool:
    """Tells whether unpickling is what a file is for: by its ending, or as pickles (protocol 2 on) and zips begin."""
    if path.suffix == ".safetensors":  # begins with the length of its header: any byte
        return False
    with path.open("rb") as file:
        start = file.read(4)
    pickled = start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5")
    endings = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin", ".joblib", ".npy", ".npz")
    return pickled or start == b"PK\3\4" or path.suffix in endings


@needs_git
def test_what_git_tracks_is_small_and_no_pickle():
    files = [ROOT / name for name in git_files()]
    assert files and [path for path in files if path.stat().st_size > 2 * 2**20 or is_pickle(path)] == []


def test_pre_commit_runs_the_checks_of_ci():
    hooks = re.findall(r"^ +entry: (.+)$", (ROOT / ".pre-commit-config.yaml").read_text(), re.MULTILINE)
    steps = re.findall(r"^(?:ruff|pyright).*$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert hooks == steps and len(steps) == 3
