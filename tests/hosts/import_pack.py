"""Prints as JSON what importing the pack does inside ComfyUI (modules, files, network, nodes), and the host's lists.

    <ComfyUI's python> import_pack.py COMFYUI_PATH PACK_FOLDER

What ComfyUI itself imports is imported first; the pack is then loaded in the way of load_custom_node.
"""

import json
import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from comfy_on_cpu import ARGUMENTS

# isort: split

import utils.extra_config  # noqa: F401 - first, as in main.py: another module called utils would hide the package

# isort: split
import comfy.samplers
import server  # noqa: F401

import nodes  # noqa: F401

pack = Path(ARGUMENTS[0])
seen = {kind: [] for kind in ("written", "read", "listed", "network")}
seen |= {"samplers": [*comfy.samplers.SAMPLER_NAMES], "schedulers": [*comfy.samplers.SCHEDULER_NAMES]}
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "shutil.copyfile")
KINDS = {**dict.fromkeys(CHANGES, "written"), **dict.fromkeys(("os.listdir", "os.scandir"), "listed")}


def watch(event, arguments):
    if "__pycache__" in str(arguments):  # byte code, missing until now
        return
    if event == "open" and not isinstance(arguments[0], int):  # a number is a file opened by name before
        path, _, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            seen["written"].append(str(path))
        elif Path(os.fsdecode(path)).suffix != ".py":
            seen["read"].append(str(path))
    elif kind := KINDS.get(event, "network" if event.startswith(("socket.", "urllib.", "http.")) else None):
        seen[kind].append(str(arguments[0]))


sys.addaudithook(watch)
name = str(pack).replace(".", "_x_")
spec = spec_from_file_location(name, pack / "__init__.py")
pack_module = sys.modules[name] = module_from_spec(spec)
before = set(sys.modules)
spec.loader.exec_module(pack_module)
loaded = set(sys.modules) - before
own = [module for module in loaded if module.startswith(name)]
foreign = [module for module in loaded - {*own} if module.split(".")[0] not in sys.stdlib_module_names]
print(json.dumps({**seen, "own": own, "foreign": foreign, "nodes": len(pack_module.NODE_CLASS_MAPPINGS)}))
