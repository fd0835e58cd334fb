"""Adding a solver family takes two files and one name in each registry: done here to a copy of the package."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import torch
from comfy_host import HOSTS, python_of
from learned_solvers.samplers.families import FAMILIES
from oracles import curved, smooth, start
from repository import ROOT, run_python

HOST_CODE = """
from comfy_on_cpu import ARGUMENTS
import utils.extra_config
import folder_paths, server, nodes, comfy.sd, comfy.samplers, json, shutil, sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
root, model = ARGUMENTS
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
def third(package):
    """Imports modules of the copy."""
    spec = spec_from_file_location("third_family", package / "__init__.py")
    sys.modules[spec.name] = module_from_spec(spec)
    yield lambda name: import_module(f"{spec.name}.{name}")
    for name in [name for name in sys.modules if name.partition(".")[0] == spec.name]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def solver(third, package):
    """A solver of the third family, from its file."""
    samplers = third("samplers")
    steps = {3: samplers.StepCard(grid=samplers.Grid("flow_shift", {"shift": 1.0}))}
    card = samplers.Card("blend", "flow", architecture="Test", checkpoint="test", steps=steps)
    made = samplers.Solver("blend_test", card, {3: {"blend": torch.tensor([[0.5, 0.25]]).double()}})
    return samplers.load_solver(made.save(package / "blend_test.safetensors"))


def test_a_third_familys_file_becomes_its_table_and_samples(third, solver):
    samplers, x = third("samplers"), start(1.0, 32, 4)
    noise = samplers.FlowNoise()
    table, step = solver.table(3, noise), -1 / 3  # an even grid of flow time; b_1 = 1/2, b_2 = 1/4
    expected = [[step, 0, 0], [-step / 2, step * 3 / 2, 0], [0, -step / 4, step * 5 / 4]]
    torch.testing.assert_close(table.coeffs, torch.tensor(expected, dtype=torch.float64))
    sampled = samplers.sample_blended(curved, x, torch.linspace(1, 0, 4), solver=solver, noise=noise)
    assert torch.equal(sampled, samplers.sample_table(curved, x, table, disable=True))


def test_a_third_family_can_be_fitted_and_resampled(third, package):
    samplers, x = third("samplers"), start(1.0, 64, 4)

    def fit(steps, **more):
        settings = {"noise": samplers.FlowNoise(), "family": "blend", "teacher_steps": 20, "held_out": 32, **more}
        return third("training").fit_solver(smooth, x, steps=(steps,), **settings)

    first = fit(3)
    assert first.report[3].error_after < first.report[3].error_before
    assert fit(5, initial=first.solver).report[5].start == "blend_fitted at 3 steps"
    fitted = samplers.load_solver(first.solver.save(package / "blend_fitted.safetensors"))
    assert (fitted.family, fitted.steps) == ("blend", (3,))
    assert "--family {dyweight,ds,blend}" in run_python("training/fit_weights.py", "--help", cwd=package)
    assert run_python("training/compare.py", "--help", cwd=package).startswith("usage: compare.py")


@pytest.mark.comfy
def test_a_third_family_is_in_the_nodes(solver, package, server):
    flux = next(path for path in server.base.rglob("tiny_flux*") if path.suffix in (".pth", ".safetensors"))
    arguments = ("-c", HOST_CODE, server.checkout, package, flux)
    output = run_python(*arguments, cwd=package.parent, python=python_of(server.checkout), PYTHONPATH=str(HOSTS))
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
