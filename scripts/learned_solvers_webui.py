"""Registers Learned Solvers in Forge and AUTOMATIC1111's WebUI; the extension itself is in webui_extension/."""

import logging
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path

NAME = "learned_solvers"
ROOT = Path(__file__).resolve().parent.parent


def load_package() -> None:
    """Makes this folder the package `learned_solvers`: other extensions also have packages called samplers.

    The root's __init__.py, ComfyUI's entry point, is not run. Earlier imports are dropped, so that Reload UI reloads.
    """
    folders = [Path(folder).resolve() for folder in getattr(sys.modules.get(NAME), "__path__", [ROOT])]
    if folders != [ROOT]:
        raise ImportError(f"another copy is loaded from {', '.join(map(str, folders))}: remove one of the two")
    for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
        del sys.modules[name]
    spec = ModuleSpec(NAME, None, is_package=True)
    spec.submodule_search_locations = [str(ROOT)]
    sys.modules[NAME] = module_from_spec(spec)


try:
    load_package()
    import learned_solvers.webui_extension as extension

    extension.register()
    Script = extension.LearnedSolversScript  # the WebUI looks for Script classes in this file
except Exception as error:
    logging.getLogger(NAME).error("Learned Solvers is not available (%s): %s", ROOT, error)
    raise
