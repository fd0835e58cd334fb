"""A further family of solvers is two files and one name in each registry: tried on a copy of the package."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from comfy_host import python_of
from learned_solvers.samplers.families import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
FILES = Path(__file__).resolve().parents[1] / "data" / "third_family"
CODE = """
import json, subprocess, sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
root = Path(sys.argv[1])
spec = spec_from_file_location("learned_solvers", root / "__init__.py", submodule_search_locations=[str(root)])
sys.modules["learned_solvers"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["learned_solvers"])
import torch
from learned_solvers import samplers
from learned_solvers.samplers import FlowNoise, Grid, Solver, load_solver, sample_table
from learned_solvers.samplers.files.card import Card, StepCard
from learned_solvers.training import fit_solver

def model(x, sigma):  # curved: two attractors whose pull fades with the noise
    sigma = sigma.view(-1, 1)
    return torch.tanh(2 * x / (0.3 + sigma)) / (1 + sigma)

steps = {3: StepCard(grid=Grid("flow_shift", {"shift": 1.0}))}
card = Card("blend", "flow", architecture="Test", checkpoint="test", steps=steps)
blend = {"blend": torch.tensor([[0.5, 0.25]], dtype=torch.float64)}
solver = load_solver(Solver("blend_test", card, {3: blend}).save(root / "blend_test.safetensors"))
noise, x = FlowNoise(), torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
table = solver.table(3, noise)
sampled = samplers.sample_blended(model, x, torch.linspace(1, 0, 4), solver=solver, noise=noise)
first = fit_solver(model, x, noise=noise, family="blend", steps=(3,), teacher_steps=20)
again = fit_solver(model, x, noise=noise, family="blend", steps=(5,), teacher_steps=20, initial=first.solver)
written = load_solver(first.solver.save(root / "blend_fitted.safetensors"))
usage = subprocess.run([sys.executable, str(root / "training" / "fit_weights.py"), "--help"], capture_output=True)
print(json.dumps({
    "coeffs": table.coeffs.tolist(),
    "difference": float((sampled - sample_table(model, x, table, disable=True)).abs().max()),
    "errors": [first.report[3].error_before, first.report[3].error_after],
    "start": again.report[5].start,
    "written": [written.family, list(written.steps)],
    "help": usage.stdout.decode(),
}))
"""
HOST_CODE = """
import sys
comfy, root, model = sys.argv[1:4]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, comfy)
import comfy.options
comfy.options.enable_args_parsing()
import utils.extra_config
import folder_paths, server, nodes, comfy.sd, comfy.samplers, json, shutil, torch
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
folder_paths.models_dir = str(Path(root) / "models")
folder = Path(folder_paths.models_dir) / "solver_weights"
folder.mkdir(parents=True)
shutil.copy(Path(root) / "blend_test.safetensors", folder)
name = root.replace(".", "_x_")
spec = spec_from_file_location(name, root + "/__init__.py")
pack = sys.modules[name] = module_from_spec(spec)
spec.loader.exec_module(pack)
flux = comfy.sd.load_diffusion_model(model)
node = pack.NODE_CLASS_MAPPINGS["LearnedSolver"]()
_, sigmas, info = node.make(flux, "blend_test.safetensors", 3, 1.0)
families = pack.NODE_CLASS_MAPPINGS["FitLearnedSolver"].INPUT_TYPES()["required"]["family"][0]
print(json.dumps({
    "sigmas": sigmas.tolist(), "info": info, "stock": comfy.samplers.KSampler.SAMPLERS[-3:],
    "function": hasattr(comfy.k_diffusion.sampling, "sample_blended"), "families": list(families),
}))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the package with a third family: two new files, one name more in each registry."""
    root = tmp_path_factory.mktemp("third") / "learned_solvers"
    for folder in ("samplers", "training", "nodes", "solver_weights"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "*.fit"))
    shutil.copy(ROOT / "__init__.py", root)
    shutil.copy(FILES / "family.py", root / "samplers" / "families" / "blend.py")
    shutil.copy(FILES / "space.py", root / "training" / "spaces" / "blend.py")
    register(root / "samplers" / "families" / "__init__.py", "from . import ", "in (dyweight, ds", ", blend")
    register(root / "training" / "spaces" / "__init__.py", "from .base", "in (DyWeightSpace, DSSpace", ", BlendSpace")
    return root


def register(file: Path, imports: str, names: str, name: str) -> None:
    text = file.read_text()
    assert text.count(names) == 1
    module = "from . import blend\n" if name == ", blend" else "from .blend import BlendSpace\n"
    file.write_text(text.replace(names, names + name).replace(imports, module + imports, 1))


def ran(code: str, *arguments: object, python: object = sys.executable) -> dict:
    done = subprocess.run([str(python), "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def seen(package):
    return ran(CODE, package)


def test_a_third_familys_file_becomes_its_table(seen):
    step = -1 / 3  # coefficients on an even grid of flow time, b_1 = 1/2, b_2 = 1/4
    expected = [[step, 0, 0], [-step / 2, step * 3 / 2, 0], [0, -step / 4, step * 5 / 4]]
    assert [[pytest.approx(value) for value in row] for row in expected] == seen["coeffs"]


def test_a_third_family_has_its_k_diffusion_function(seen):
    assert seen["difference"] == 0


def test_a_third_family_can_be_fitted_and_resampled(seen):
    before, after = seen["errors"]
    assert after < before
    assert seen["start"] == "blend_fitted at 3 steps" and seen["written"] == ["blend", [3]]
    assert "--family {dyweight,ds,blend}" in seen["help"]


@pytest.mark.comfy
def test_a_third_family_is_in_the_nodes(seen, package, server):
    flux = next(path for path in server.base.rglob("tiny_flux*") if path.suffix in (".pth", ".safetensors"))
    node = ran(HOST_CODE, server.checkout, package, flux, python=python_of(server.checkout))
    assert node["sigmas"] == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert "blended" in node["stock"] and node["function"] and node["families"] == ["dyweight", "ds", "blend"]
    shutil.rmtree(package / "models")


# Which files may name a family: its own, its space, and what reads the published tables.
MAY_NAME = ("samplers/families/", "training/spaces/", "training/published/", "training/import_weights.py")
SOURCES = [
    path.relative_to(ROOT).as_posix()
    for folder in ("samplers", "training", "nodes", "webui_extension", "scripts")
    for path in (ROOT / folder).rglob("*.py")
]


@pytest.mark.parametrize("file", [file for file in SOURCES if not file.startswith(MAY_NAME)])
def test_no_other_file_names_a_family(file):
    names = {text for family in FAMILIES.values() for text in (family.name, family.title, family.sampler)}
    constants = (
        node for node in ast.walk(ast.parse((ROOT / file).read_text("utf-8"))) if isinstance(node, ast.Constant)
    )
    assert [node.value for node in constants if node.value in names] == []
