"""k-diffusion's own modules, without the training requirements that its package imports."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

__all__ = ["k_diffusion_folder", "k_diffusion_module"]

_PACKAGE = "k_diffusion_without_requirements"


def k_diffusion_folder() -> Path:
    """The folder of the installed package; ImportError if it is not installed."""
    spec = find_spec("k_diffusion")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("k-diffusion is not installed: pip install --no-deps k-diffusion==0.1.1.post1")
    return Path(spec.submodule_search_locations[0])


def k_diffusion_module(name: str) -> ModuleType:
    """k-diffusion's module `name`; ImportError if it is not installed."""
    if _PACKAGE not in sys.modules:
        folder = k_diffusion_folder()
        package = sys.modules[_PACKAGE] = ModuleType(_PACKAGE)
        package.__path__ = [str(folder)]
        # Its utils import torchvision; the samplers and wrappers need only this function of them.
        utils = sys.modules[f"{_PACKAGE}.utils"] = ModuleType(f"{_PACKAGE}.utils")
        utils.append_dims = lambda x, target_dims: x[(...,) + (None,) * (target_dims - x.ndim)]  # pyright: ignore
        package.utils = utils  # pyright: ignore
    return import_module(f"{_PACKAGE}.{name}")
