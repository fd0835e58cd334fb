"""The import graph of the folder, read from its sources."""

from __future__ import annotations

from pathlib import Path

import pytest
from import_rules import MAY_IMPORT, imports_against_the_rules

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for folder in MAY_IMPORT for path in (ROOT / folder, *(ROOT / folder).rglob("*.py")) if path.is_file()]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_from_the_edges_to_the_engine(path):
    assert not imports_against_the_rules(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("samplers/part.py", "import comfy.utils"),
        ("samplers/part.py", "from ..nodes import host"),
        ("samplers/files/card.py", "from ...nodes import host"),
        ("samplers/part.py", "from learned_solvers.samplers import table"),
        ("samplers/part.py", "def late():\n    import scipy.integrate"),
        ("nodes/sampler.py", "from ..training import teacher"),
        ("nodes/sampler.py", "from .. import training"),
        ("nodes/fitting.py", "from ..training.teacher import Teacher"),
        ("nodes/sampler.py", "from modules import shared"),
        ("nodes/sampler.py", "import samplers"),
        ("nodes/plot.py", "import matplotlib.pyplot"),
        ("training/teacher.py", "from ..nodes.host import noise_of"),
        ("training/teacher.py", "if True:\n    import folder_paths"),
        ("training/models/comfy.py", "from ...nodes import host"),
        ("training/models/comfy.py", "from ....nodes import host"),
        ("training/models/comfy.py", "import comfy.sd"),
        ("training/cost.py", "import benchmarks.jobs"),
        ("webui_extension/sampler.py", "import comfy.utils"),
        ("webui_extension/sampler.py", "from ..nodes import host"),
        ("webui_extension/sampler.py", "from learned_solvers.samplers import table"),
        ("scripts/webui.py", "from learned_solvers.nodes import host"),
        ("scripts/webui.py", "from .other import something"),
        ("scripts/webui.py", "import samplers"),
        ("__init__.py", "from . import training"),
    ],
)
def test_a_forbidden_import_is_noticed(file, line):
    assert len(imports_against_the_rules(file, f"import math\n{line}")) == 1


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("nodes/sampler.py", "from .. import samplers"),
        ("samplers/files/card.py", "from ..grids import Grid"),
        ("nodes/sampler.py", "import comfy.utils, nodes"),
        ("nodes/fitting.py", "def late():\n    from .. import training"),
        ("nodes/fitting.py", "def late():\n    from ..training import fit_solver"),
        ("training/models/comfy.py", "from ...samplers import load_solver"),
        ("training/models/comfy.py", "from ..teacher import teach"),
        ("webui_extension/sampler.py", "import gradio\nfrom modules import shared\nfrom ..samplers import table"),
        ("scripts/webui.py", "from modules import shared\nfrom learned_solvers.webui_extension import register"),
    ],
)
def test_an_allowed_import_is_let_through(file, line):
    assert imports_against_the_rules(file, line) == []
