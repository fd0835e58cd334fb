"""The comparison on tiny models in a real ComfyUI: its samplers, its grids, and Euler's error beside our table's."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from comfy_host import ROOT, WANTED, checkouts, make_base, python_of
from learned_solvers.samplers import Grid, Solver
from learned_solvers.samplers.files.card import Card, StepCard
from learned_solvers.training.models.conditioning import write_conditioning
from PIL import Image

pytestmark = [pytest.mark.comfy, pytest.mark.slow]
CHECKOUT = next(iter(checkouts()), None)
if CHECKOUT is None:
    pytest.skip(f"no ComfyUI: {WANTED}", allow_module_level=True)

SHAPES = {
    "tiny_sd3": {"context": (1, 8, 64), "pooled_output": (1, 32)},
    "tiny_sd15": {"context": (1, 77, 768)},
}
FAMILIES = {"tiny_sd3": "SD3", "tiny_sd15": "SD15"}
GRIDS = {  # ComfyUI's name, and the rule of the same levels
    "tiny_sd3": ("simple", "flow", Grid("flow_shift", {"shift": 3.0})),
    "tiny_sd15": ("sgm_uniform", "vp", Grid("sgm_uniform", {"end": 1e-3})),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("compare") / "base"
    make_base(CHECKOUT, base)
    return base


def compared(base: Path, name: str, *more: str) -> tuple[Path, list[dict]]:
    """Returns the output folder and the rows of a comparison whose solver is Euler's method as a file."""
    output = base / f"{name}{len(more)}"
    generator = torch.Generator().manual_seed(0)
    conds = [{k: torch.randn(s, generator=generator) for k, s in SHAPES[name].items()} for _ in range(3)]
    write_conditioning(base / f"{name}.prompts.safetensors", conds, ["", "a", "b"], FAMILIES[name])
    _, kind, grid = GRIDS[name]
    card = Card("dyweight", kind, "Tiny", name, {4: StepCard(grid=grid, options={"divisor": "call"})})
    parameters = {"weights": torch.eye(4).double()[None], "t_scale": torch.ones(1, 4).double()}
    file = base / name / "euler_file.safetensors"
    file.parent.mkdir(exist_ok=True)
    Solver("euler_file", card, {4: parameters}).save(file, overwrite=True)
    command = [
        *(str(python_of(CHECKOUT)), str(ROOT / "training" / "compare.py"), "--comfyui", str(CHECKOUT)),
        *("--diffusion-model", str(next((base / "models" / "diffusion_models").glob(f"{name}.*")))),
        *("--conditioning", str(base / f"{name}.prompts.safetensors"), "--size", "64x64", "--steps", "4"),
        *("--samples", "2", "--guidance", "2", "--teacher-steps", "6", "--microbatch", "2", "--threads", "1"),
        *("--solver", str(file), "--output", str(output), "--no-plot", *more),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]
    return output, json.loads((output / "compare.json").read_text())["rows"]


@pytest.mark.parametrize("name", SHAPES)
def test_eulers_row_is_the_error_of_our_euler_table(base, name):
    _, rows = compared(base, name, "--grids", GRIDS[name][0])
    error = {row["method"]: row["error"] for row in rows}
    assert set(error) == {
        *("euler_file", "euler", "heun", "lms", "ipndm", "ipndm_v", "deis", "dpmpp_2m", "res_multistep"),
        *("uni_pc", "uni_pc_bh2"),
    }
    assert error["euler"] == pytest.approx(error["euler_file"], rel=1e-4)
    assert all(row["used"] == (3 if row["method"] == "heun" else 4) for row in rows)
    assert len(set(error.values())) >= 9  # each sampler is another


def test_every_peer_is_shown_at_its_best_of_all_grids(base):
    output, rows = compared(base, "tiny_sd3")
    assert {"euler_file", "uni_pc"} <= {row["method"] for row in rows}
    count = {row["method"]: row["grids"] for row in rows}
    assert count["euler"] == 8 and count["uni_pc"] == 13  # 5 schedulers, 3 lists; again without a level, for UniPC
    assert "comfyui" in json.loads((output / "compare.json").read_text())["versions"]
    with Image.open(output / "pictures.png") as picture:
        assert picture.width > 400 and len(picture.convert("L").getcolors(256) or []) > 20
