"""What the commands load through a real ComfyUI equals ComfyUI's own results; its options and folders hold for them."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from typing import Any

import pytest
from comfy_commands import CHECKOUT, FLUX, SD3, output_of, require_model, run
from comfy_graphs import euler_solver
from comfy_graphs import options as choices
from comfy_host import ROOT, Server, python_of, run_script

pytestmark = [pytest.mark.comfy, pytest.mark.slow]
MODELS = {"sd3": SD3, "flux": FLUX}


@pytest.fixture(scope="module")
def lines(base) -> list[list[str]]:
    """The words of each line that comfy_model.py prints."""
    return [line.split() for line in run_script(CHECKOUT, "comfy_model.py", base / "models").splitlines()]


def test_freed_text_encoders_are_not_referenced_anywhere(lines):
    (freed,) = (float(words[1]) for words in lines if words[0] == "freed")
    assert freed > 200  # MB; 123 M parameters


@pytest.mark.parametrize(
    ("name", "usual"), [("sd3", ["1.8", "3.0", "4.5", "7.2"]), ("flux", ["1.4", "2.33", "3.5", "5.6"])]
)
def test_each_row_of_a_call_equals_comfyuis_own_result_for_it(base, lines, name, usual):
    require_model(base, MODELS[name])
    errors = [float(word) for words in lines if words[0] == name for word in words[1:]]
    assert len(errors) == 6 and max(errors) < 2e-6, errors
    assert ["default", name, *usual] in lines


def test_two_models_that_do_not_fit_together_are_each_loaded_once_per_change(lines):
    ((error, loads, changes),) = (map(float, words[1:]) for words in lines if words[0] == "experts")
    assert error < 1e-6 and loads == 1 + changes == 5


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_a_teacher_that_the_host_samples_with_equals_it_and_makes_the_calls_that_it_reports(base, lines, name):
    require_model(base, MODELS[name])
    found = {words[2]: words[3:] for words in lines if words[:2] == ["recipe", name]}
    assert found.keys() == {"dpmpp_2m", "heun", "uni_pc", "euler_ancestral"}
    assert all(float(found[method][0]) < 2e-5 for method in ("dpmpp_2m", "heun", "uni_pc")), found
    assert [int(found[method][1]) for method in ("dpmpp_2m", "heun")] == [6, 11]
    assert all(reported == counted for _, reported, counted in (found[m] for m in ("dpmpp_2m", "heun", "uni_pc")))
    assert " ".join(found["euler_ancestral"]).startswith(
        "euler_ancestral simple draws noise, so no solver can follow it"
    )


DTYPE = """
import sys
from pathlib import Path
sys.path.append(sys.argv[1])
import _as_package
from learned_solvers.training.models.host import Host
from learned_solvers.training.models.loading import ModelFiles, load_parts

files = ModelFiles(diffusion_model=Path(sys.argv[3]), host=Host(Path(sys.argv[2]), tuple(sys.argv[4:])))
print(load_parts(files, text_encoders=False)[0].model.get_dtype())
"""


@pytest.mark.parametrize("options", [[], ["--bf16-unet"]])
def test_comfyuis_own_options_reach_its_loaders(base, options):
    file = base / "models" / SD3["diffusion_model"]
    output = output_of(run([str(python_of(CHECKOUT)), "-c", DTYPE, str(ROOT / "training"), CHECKOUT, file, *options]))
    assert output.split()[-1] == ("torch.bfloat16" if options else "torch.float32")


def test_dynamic_vram_is_on_where_main_py_turns_it_on_and_leaves_the_model_as_it_is(base):
    output = run_script(CHECKOUT, "dynamic_vram.py", base / "models")
    if not output:
        pytest.skip("this ComfyUI has no DynamicVRAM: set COMFYUI_PATH to a newer one")
    result = json.loads(output)
    assert [case for case, (server, command) in result["cases"].items() if server != command] == []
    assert {on for (_, on), _ in result["cases"].values()} == {True, False}
    without, with_dynamic = result["calls"]  # with one for gradients first
    assert ([call[0] for call in without], [call[0] for call in with_dynamic]) == (["init"], ["init", "devices"])
    assert (result["early"], result["device"], result["difference"]) == ([], "cpu", 0.0)


RESULT = """
import sys
sys.path.append(sys.argv[1])
import _as_package
from pathlib import Path
from learned_solvers.training import compare
from learned_solvers.training.command.options import parse_fit

command = parse_fit("", ["--checkpoint", "absent.safetensors", "--output", "mine", "--overwrite", *sys.argv[2:]])
print(command.output.solver)
print(compare._solver_file(Path("mine.safetensors"), command.files))
"""


class Elsewhere(Server):
    """A server whose folders are not the program's."""

    options: tuple[str, ...] = ()

    def command(self) -> list[str]:
        return [*super().command(), *self.options]


@pytest.mark.parametrize(
    ("options", "folder"),
    [
        ([], "data/models/solver_weights"),
        (["--models-directory", "{0}/big models"], "big models/solver_weights"),
        (["--extra-model-paths-config", "{0}/paths.yaml"], "yaml"),
        (["--base-directory", "{0}/other"], "other/models/solver_weights"),
    ],
)
def test_the_command_writes_where_a_server_with_its_options_lists(tmp_path, options, folder):
    """Case 06: a program, and a data folder with models and, through a link, the pack."""
    for name in ("data", "other"):
        (tmp_path / name / "models").mkdir(parents=True)
        (tmp_path / name / "custom_nodes").mkdir()
        (tmp_path / name / "custom_nodes" / "learned-solvers").symlink_to(ROOT, target_is_directory=True)
    (tmp_path / "big models").mkdir()
    (tmp_path / "paths.yaml").write_text(
        f"mine:\n  base_path: {tmp_path}\n  is_default: true\n  solver_weights: yaml\n"
    )
    options = [word.format(tmp_path) for word in options]
    command = [str(python_of(CHECKOUT)), "-c", RESULT, str(tmp_path / "data/custom_nodes/learned-solvers/training")]
    environment = {name: value for name, value in os.environ.items() if name != "COMFYUI_PATH"}

    def result(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *map(str, words)], capture_output=True, text=True, env=environment, cwd="/")

    assert "ComfyUI not found in COMFYUI_PATH or in " in result().stderr
    path = tmp_path / folder / "mine.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    euler_solver("flow").save(path)
    # Where a fit writes, and where a comparison finds it.
    lines = output_of(result("--comfyui", CHECKOUT, "--comfyui-args", shlex.join(options))).splitlines()
    assert lines[-2:] == [str(path)] * 2
    server = Elsewhere(CHECKOUT, tmp_path / "data")
    server.options = tuple(options)
    with server:
        assert "mine.safetensors" in choices(server, "LearnedSolverKSampler", "solver")


def test_the_script_for_a_gpu_measures_small_sizes():
    command = [str(python_of(CHECKOUT)), str(ROOT / "benchmarks" / "gpu.py"), str(CHECKOUT), "--small"]
    completed = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=400)
    assert completed.returncode == 0, completed.stderr[-3000:]
    parts: dict[str, Any] = {}
    for text in re.findall(r"^\{$.*?^\}$", completed.stdout, re.MULTILINE | re.DOTALL):
        parts |= json.loads(text)
    assert set(parts["steps"]["tiny"]) >= {"dyweight, history 3", "ipndm"}
    for fit in (parts["emoji"]["eager"], parts["transformer"]):
        assert 0 < fit["part_outside_the_network"] < 1 and 100 < fit["calls"] < 2000
        assert fit["seconds"] == pytest.approx(fit["calls"] * fit["milliseconds_per_call"] / 1e3)
