"""Imports point one way: from the hosts' edges over training to samplers, and never to a host from within."""

from __future__ import annotations

import ast
import sys

import pytest
from comfy_host import COMFY_MODULES
from repository import ROOT

MAY_IMPORT = {  # folder, or file of the root: the other folders that it may import
    "__init__.py": {"nodes"},
    "samplers": set(),
    "training": {"samplers"},
    "nodes": {"samplers", "training"},
    "webui_extension": {"samplers"},
    "integrations": {"samplers"},
    "scripts": {"webui_extension"},
}
WEBUI_MODULES = {"modules", "modules_forge", "backend", "ldm_patched", "gradio"}
HOST_MODULES = {"nodes": COMFY_MODULES, "webui_extension": WEBUI_MODULES, "scripts": WEBUI_MODULES}
NOT_BY_NAME = {*MAY_IMPORT, *COMFY_MODULES, *WEBUI_MODULES, "benchmarks", "tests", "learned_solvers"}
CORE = {"torch", "safetensors", "tqdm", "numpy", *sys.stdlib_module_names}
INSTALLED = {
    "samplers": CORE,
    "nodes": CORE | COMFY_MODULES | {"PIL"},
    "integrations": CORE | {"diffusers"},
}  # all that is certain to be installed there
PATHS = [path for folder in MAY_IMPORT for path in (ROOT / folder, *(ROOT / folder).rglob("*.py")) if path.is_file()]


def imports(tree, late=False):
    """Yields (dots, name, late) of every import; one in a function, or for types only, is late."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):  # `from .. import x` may name folders, `from ..x import y` names one
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from ((node.level, name, late) for name in names)
        else:
            for_types = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
            yield from imports(node, late or for_types or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def is_allowed(file, dots, name, late):
    folders, names = file.split("/"), name.split(".")
    home, is_script = folders[0], folders[0] == "scripts"  # the WebUI runs scripts outside of any package
    if dots > (0 if is_script else len(folders)):
        return False  # beyond the root
    by_name = is_script and names[0] == "learned_solvers" and len(names) > 1
    if dots or by_name:
        folder = [*folders[:-dots], *names][0] if dots else names[1]
        return folder == home or (folder in MAY_IMPORT[home] and (late or (home, folder) != ("nodes", "training")))
    return names[0] in INSTALLED.get(home, names) and names[0] not in NOT_BY_NAME - HOST_MODULES.get(home, set())


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_from_the_edges_to_the_engine(path):
    file, tree = path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))
    assert [line for line in imports(tree) if not is_allowed(file, *line)] == []


@pytest.mark.parametrize(
    ("file", "forbidden"),
    [
        ("samplers/part.py", "import scipy; from ..nodes import host; from learned_solvers import samplers"),
        ("samplers/files/card.py", "from ...nodes import host; import comfy.utils; from .... import samplers"),
        ("nodes/sampler.py", "from ..training import fit; from .. import training; import samplers, modules"),
        ("nodes/plot.py", "import matplotlib.pyplot; from ..webui_extension import ui; from ..scripts import webui"),
        ("training/models/comfy.py", "from ...nodes import host; import comfy.sd, folder_paths, benchmarks.jobs"),
        ("webui_extension/sampler.py", "import comfy.utils; from ..nodes import host; from ..training import fit"),
        ("integrations/diffusers/network.py", "from ...training import fit; import transformers"),
        ("scripts/webui.py", "from learned_solvers.nodes import host; from .other import something; import samplers"),
        ("__init__.py", "from . import training"),
    ],
)  # fmt: skip
def test_a_forbidden_import_is_noticed(file, forbidden):
    assert [line for line in imports(ast.parse(f"if True: {forbidden}")) if is_allowed(file, *line)] == []
