"""Say what importing the pack does inside ComfyUI, as JSON: modules, files, network events, nodes.

    <ComfyUI's python> import_pack.py COMFYUI_PATH PACK_FOLDER

Everything that ComfyUI itself has imported by then is imported first; the pack is loaded as load_custom_node does it.
"""

import json
import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

comfy, pack = sys.argv[1], Path(sys.argv[2])
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, comfy)

import comfy.options

comfy.options.enable_args_parsing()

import utils.extra_config  # noqa: F401 - first, as in main.py: ComfyUI puts a module called utils in the package's way

# isort: split
import server  # noqa: F401

import nodes  # noqa: F401

written, read, listed, network = [], [], [], []
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "shutil.copyfile"}


def watch(event, arguments):
    if "__pycache__" in str(arguments):  # byte code, where there was none yet
        return
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, int):  # of a file that was opened by its name before
            return
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            written.append(str(path))
        elif Path(os.fsdecode(path)).suffix != ".py":
            read.append(str(path))
    elif event in ("os.listdir", "os.scandir"):
        listed.append(str(arguments[0]))
    elif event in CHANGES:
        written.append(f"{event} {arguments}")
    elif event.startswith(("socket.", "urllib.", "http.")):
        network.append(event)


sys.addaudithook(watch)
name = str(pack).replace(".", "_x_")
spec = spec_from_file_location(name, pack / "__init__.py")
pack_module = module_from_spec(spec)
sys.modules[name] = pack_module
before = set(sys.modules)
spec.loader.exec_module(pack_module)
loaded = set(sys.modules) - before
own = [module for module in loaded if module.startswith(name)]
print(
    json.dumps(
        {
            "own": own,
            "foreign": [module for module in loaded - {*own} if module.split(".")[0] not in sys.stdlib_module_names],
            "written": written,
            "read": read,
            "listed": listed,
            "network": network,
            "nodes": len(pack_module.NODE_CLASS_MAPPINGS),
        }
    )
)
