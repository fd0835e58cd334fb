"""Imports point one way: from the hosts' edges over training to samplers, and never to a host from within."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from comfy_host import COMFY_MODULES

ROOT = Path(__file__).resolve().parents[2]
MAY_IMPORT = {  # folder, or file of the root: the other folders that it may import
    "__init__.py": {"nodes"},
    "samplers": set(),
    "training": {"samplers"},
    "nodes": {"samplers", "training"},
    "webui_extension": {"samplers"},
    "scripts": {"webui_extension"},
}
WEBUI_MODULES = {"modules", "modules_forge", "backend", "ldm_patched", "gradio"}
HOST_OF = {"nodes": COMFY_MODULES, "webui_extension": WEBUI_MODULES, "scripts": WEBUI_MODULES}
NOT_BY_NAME = {*MAY_IMPORT, *COMFY_MODULES, *WEBUI_MODULES, "benchmarks", "tests", "learned_solvers"}
CORE = {"torch", "safetensors", "tqdm", "numpy", *sys.stdlib_module_names}
INSTALLED = {"samplers": CORE, "nodes": CORE | COMFY_MODULES | {"PIL"}}  # where these run, nothing else is sure to be
SOURCES = [path for folder in MAY_IMPORT for path in (ROOT / folder, *(ROOT / folder).rglob("*.py")) if path.is_file()]


def imports(tree, late=False):
    """Yields (dots, name, late) of every import; one in a function, or for types alone, is late."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):  # `from .. import x` may name folders, `from ..x import y` names one
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from ((node.level, name, late) for name in names)
        else:
            for_types = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
            yield from imports(node, late or for_types or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def folder_of(file, dots, name):
    """Returns the folder below the root that an import reaches; none for what is not ours."""
    folders, names = file.split("/"), name.split(".")
    of_script = folders[0] == "scripts"  # the WebUI runs these outside of any package
    if dots > (0 if of_script else len(folders)):
        return "beyond the root"
    if dots > 0:
        return [*folders[:-dots], *names][0]
    return names[1] if of_script and names[0] == "learned_solvers" and len(names) > 1 else ""


def is_allowed(file, dots, name, late):
    home, folder, top = file.split("/")[0], folder_of(file, dots, name), name.split(".")[0]
    if folder:
        return folder == home or (folder in MAY_IMPORT[home] and (late or (home, folder) != ("nodes", "training")))
    return top in INSTALLED.get(home, {top}) and top not in NOT_BY_NAME - HOST_OF.get(home, set())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_from_the_edges_to_the_engine(path):
    file = path.relative_to(ROOT).as_posix()
    found = imports(ast.parse(path.read_text(encoding="utf-8")))
    assert [own for own in found if not is_allowed(file, *own)] == []


@pytest.mark.parametrize(
    ("file", "forbidden"),
    [
        ("samplers/part.py", "import scipy; from ..nodes import host; from learned_solvers import samplers"),
        ("samplers/files/card.py", "from ...nodes import host; import comfy.utils; from .... import samplers"),
        ("nodes/sampler.py", "from ..training import fit; from .. import training; import samplers, modules"),
        ("nodes/plot.py", "import matplotlib.pyplot; from ..webui_extension import ui; from ..scripts import webui"),
        ("training/models/comfy.py", "from ...nodes import host; import comfy.sd, folder_paths, benchmarks.jobs"),
        ("webui_extension/sampler.py", "import comfy.utils; from ..nodes import host; from ..training import fit"),
        ("scripts/webui.py", "from learned_solvers.nodes import host; from .other import something; import samplers"),
        ("__init__.py", "from . import training"),
    ],
)  # fmt: skip
def test_a_forbidden_import_is_noticed(file, forbidden):
    for line in forbidden.split("; "):
        assert not any(is_allowed(file, *own) for own in imports(ast.parse(f"if True:\n    {line}"))), line
