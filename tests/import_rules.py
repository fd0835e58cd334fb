"""Which way imports may point: from the edges (hosts, command line) to the engine, and never to a host from within."""

from __future__ import annotations

import ast
import sys
from pathlib import PurePosixPath

__all__ = ["COMFY_MODULES", "MAY_IMPORT", "imports_against_the_rules"]

COMFY_MODULES = {
    *("comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "latent_preview"),
    *("node_helpers", "nodes", "server", "aiohttp"),
}
WEBUI_MODULES = {"modules", "modules_forge", "backend", "ldm_patched", "gradio"}
OWN_FOLDERS = {"benchmarks", "nodes", "samplers", "scripts", "solver_weights", "tests", "training", "webui_extension"}
MAY_IMPORT = {  # project folder (or root file): the project folders that it may import
    "__init__.py": {"nodes"},
    "samplers": {"samplers"},
    "nodes": {"nodes", "samplers"},
    "training": {"training", "samplers"},
    "webui_extension": {"webui_extension", "samplers"},
    "scripts": {"webui_extension"},
}
DOORS = {("nodes/fitting.py", "training")}  # the one file of a folder that may go where the others may not
HOSTS_OF = {"nodes": COMFY_MODULES, "webui_extension": WEBUI_MODULES, "scripts": WEBUI_MODULES}
CORE_REQUIREMENTS = {"torch", "safetensors", "tqdm", "numpy", *sys.stdlib_module_names}


def imports_against_the_rules(file: str, source: str) -> list[str]:
    """Returns the imports of a file, named by its path from the root, that point in a forbidden direction."""
    tree = ast.parse(source)
    plain = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    wrong = [name for name in plain if not _may_import(file, name, 0)]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            # `from .. import x` may name folders, `from ..x import y` names one.
            names = [node.module] if node.module else [alias.name for alias in node.names]
            wrong += ["." * node.level + name for name in names if not _may_import(file, name, node.level)]
    return wrong


def _may_import(file: str, name: str, dots: int) -> bool:
    home, *_ = parts = PurePosixPath(file).parts
    if dots:  # relative: resolved to the folder below the root
        if home == "scripts" or dots > len(parts):
            return False
        target = [*parts[: len(parts) - dots], *name.split(".")]
        # Through a door only to the folder's own face, which says what it offers.
        return target[0] in MAY_IMPORT[home] or ((file, target[0]) in DOORS and len(target) == 1)
    top, _, below = name.partition(".")
    if top == "learned_solvers":  # only WebUI's scripts, which belong to no package, know the folder by a name
        return home == "scripts" and below.partition(".")[0] in {"", *MAY_IMPORT[home]}
    if home == "samplers":
        return top in CORE_REQUIREMENTS
    if home == "nodes":
        return top in CORE_REQUIREMENTS | COMFY_MODULES | {"PIL"}  # what the host has
    return top in HOSTS_OF.get(home, ()) or top not in COMFY_MODULES | WEBUI_MODULES | OWN_FOLDERS
