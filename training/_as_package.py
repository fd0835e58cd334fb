"""Lets a script of this folder run as a file: loads this checkout as the package `learned_solvers`.

`python training/fit_weights.py` has no parent package. Importing this module and then setting `__package__` (PEP 366)
gives it one, regardless of the name of the checkout's folder and of other installed copies.
"""

from __future__ import annotations

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

NAME = "learned_solvers"
TRAINING = f"{NAME}.training"
ROOT = Path(os.path.abspath(__file__)).parent.parent  # links are kept: custom_nodes often holds a link to the pack

# The script's folder must not stay first on the path: `models` and others would shadow a host's modules.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != (ROOT / "training").resolve()]
if NAME not in sys.modules:
    spec = spec_from_file_location(NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec and spec.loader
    sys.modules[NAME] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[NAME])
