"""Adding a solver family takes two files and one name in each registry: done here to a copy of the package."""

from __future__ import annotations

import ast
import json
import shutil

import pytest
from comfy_host import python_of
from learned_solvers.samplers.families import FAMILIES
from repository import ROOT, run_python

CODE = """
import json, sys, torch
from pathlib import Path
from learned_solvers import samplers
from learned_solvers.samplers import FlowNoise, Grid, Solver, load_solver, sample_table
from learned_solvers.samplers.files.card import Card, StepCard
from learned_solvers.training import fit_solver

def model(x, sigma):  # two attractors whose pull fades with the noise
    sigma = sigma.view(-1, 1)
    return torch.tanh(2 * x / (0.3 + sigma)) / (1 + sigma)

root, noise, steps = Path(sys.argv[1]), FlowNoise(), {3: StepCard(grid=Grid("flow_shift", {"shift": 1.0}))}
card = Card("blend", "flow", architecture="Test", checkpoint="test", steps=steps)
blend = {"blend": torch.tensor([[0.5, 0.25]], dtype=torch.float64)}
solver = load_solver(Solver("blend_test", card, {3: blend}).save(root / "blend_test.safetensors"))
x, table = torch.randn(32, 4, generator=torch.Generator().manual_seed(0)), solver.table(3, noise)
sampled = samplers.sample_blended(model, x, torch.linspace(1, 0, 4), solver=solver, noise=noise)
first = fit_solver(model, x, noise=noise, family="blend", steps=(3,), teacher_steps=20)
second = fit_solver(model, x, noise=noise, family="blend", steps=(5,), teacher_steps=20, initial=first.solver)
fitted = load_solver(first.solver.save(root / "blend_fitted.safetensors"))
print(json.dumps({
    "coeffs": table.coeffs.tolist(),
    "difference": float((sampled - sample_table(model, x, table, disable=True)).abs().max()),
    "errors": [first.report[3].error_before, first.report[3].error_after],
    "start": second.report[5].start,
    "fitted": [fitted.family, list(fitted.steps)],
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
    "sigmas": sigmas.tolist(), "samplers": comfy.samplers.KSampler.SAMPLERS[-3:],
    "function": hasattr(comfy.k_diffusion.sampling, "sample_blended"), "families": list(families),
}))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the package with a third family: two new files, one more name in each registry."""
    root = tmp_path_factory.mktemp("third") / "learned_solvers"
    for folder in ("samplers", "training", "nodes", "solver_weights"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "*.fit"))
    shutil.copy(ROOT / "__init__.py", root)
    for file, folder, module, registry, name in (
        ("family", "samplers/families", "from . import blend", "in (dyweight, ds", "blend"),
        ("space", "training/spaces", "from .blend import BlendSpace", "in (DyWeightSpace, DSSpace", "BlendSpace"),
    ):
        shutil.copy(ROOT / "tests" / "data" / "third_family" / f"{file}.py", root / folder / "blend.py")
        text = (root / folder / "__init__.py").read_text()
        assert text.count(registry) == 1
        text = text.replace(registry, f"{registry}, {name}").replace("\nfrom .", f"\n{module}\nfrom .", 1)
        (root / folder / "__init__.py").write_text(text)
    return root


@pytest.fixture(scope="module")
def results(package):
    return json.loads(run_python("-c", CODE, package, cwd=package.parent))


def test_a_third_familys_file_becomes_its_table_and_samples(results):
    step = -1 / 3  # coefficients on an even grid of flow time, b_1 = 1/2, b_2 = 1/4
    expected = [[step, 0, 0], [-step / 2, step * 3 / 2, 0], [0, -step / 4, step * 5 / 4]]
    assert [[pytest.approx(value) for value in row] for row in expected] == results["coeffs"]
    assert results["difference"] == 0  # of its k-diffusion function


def test_a_third_family_can_be_fitted_and_resampled(results, package):
    before, after = results["errors"]
    assert after < before
    assert results["start"] == "blend_fitted at 3 steps" and results["fitted"] == ["blend", [3]]
    assert "--family {dyweight,ds,blend}" in run_python("training/fit_weights.py", "--help", cwd=package)


@pytest.mark.comfy
def test_a_third_family_is_in_the_nodes(results, package, server):
    flux = next(path for path in server.base.rglob("tiny_flux*") if path.suffix in (".pth", ".safetensors"))
    arguments = ("-c", HOST_CODE, server.checkout, package, flux)
    output = run_python(*arguments, cwd=package.parent, python=python_of(server.checkout))
    node = json.loads(output.splitlines()[-1])
    assert node["sigmas"] == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert "blended" in node["samplers"] and node["function"] and node["families"] == ["dyweight", "ds", "blend"]
    shutil.rmtree(package / "models")


# Only these may name a family: its own module, its space, and what reads the published tables.
MAY_NAME = ("samplers/families/", "training/spaces/", "training/published/", "training/import_weights.py")
FOLDERS = ("samplers", "training", "nodes", "webui_extension", "scripts")
SOURCES = [path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]


@pytest.mark.parametrize("file", [file for file in SOURCES if not file.startswith(MAY_NAME)])
def test_no_other_file_names_a_family(file):
    names = {text for family in FAMILIES.values() for text in (family.name, family.title, family.sampler)}
    nodes = ast.walk(ast.parse((ROOT / file).read_text("utf-8")))
    assert [node.value for node in nodes if isinstance(node, ast.Constant) and node.value in names] == []
