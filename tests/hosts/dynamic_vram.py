"""Prints what main.py and the commands do for DynamicVRAM, and whether a model loads; no device is initialised.

    <ComfyUI's python> dynamic_vram.py COMFYUI_PATH MODELS_FOLDER

JSON: {"cases": {case: [main.py's calls and result, the commands']}, "early": modules imported before the library,
"device": of the model, "calls": made for it, "difference": of its output from that without DynamicVRAM}; nothing if
this ComfyUI has no DynamicVRAM.
"""

import json
import runpy
import sys
import tempfile
from itertools import product
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "training"))
import _as_package  # noqa: F401 - makes the folder the package learned_solvers
from learned_solvers.samplers import Guidance
from learned_solvers.training.models import host as hosts
from learned_solvers.training.models.comfy import ComfyModel
from learned_solvers.training.models.host import Host
from learned_solvers.training.models.loading import ModelFiles

comfy, models = map(Path, sys.argv[1:])
main = (comfy / "main.py").read_text(encoding="utf-8")
if "aimdo" not in main:
    sys.exit()
BEGIN = main[main.index("import comfy_aimdo.control") : main.index('if os.name == "nt":\n    os.environ[')]
START = main[main.index("def dynamic_vram_supported") : main.index("def cuda_malloc_warning")]

import comfy_aimdo.control as control

calls, early, load_library = [], [], control.init


def init(simple_vram_headroom=None, nvml_pressure=False):
    calls.append(["init", simple_vram_headroom, nvml_pressure])
    early.append(sorted({"comfy.model_management", "comfy.ops", "comfy.sd"} & {*sys.modules}))
    return load_library(simple_vram_headroom=simple_vram_headroom, nvml_pressure=nvml_pressure)


def init_devices(devices):
    calls.append(["devices", *devices])
    return True


def run(model):
    """One call of the model."""
    conds = [{"context": torch.ones(1, 8, 64), "pooled_output": torch.ones(1, 32)}] * 2
    x, sigma = torch.ones(1, 16, 8, 8), torch.tensor([0.5])
    return model.with_denoiser(lambda model, _: model(x, sigma, row=[0]), conds, Guidance("cfg", (1.0,)), x.shape)


control.init, control.init_devices = init, init_devices
host = Host(comfy, ("--cpu", "--enable-dynamic-vram"))
files = ModelFiles(diffusion_model=models / "diffusion_models" / "tiny_sd3.safetensors", host=host)
plain = run(ComfyModel.load(files, dynamic=False))
before = [*calls]
dynamic = ComfyModel.load(files)
result = {"early": early[0], "calls": [before, calls[:]], "device": dynamic.device}
result["difference"] = float((run(dynamic) - plain).abs().max())

cli, management, memory, patcher = (
    host.module(f"comfy.{name}") for name in ("cli_args", "model_management", "memory_management", "model_patcher")
)
management.get_torch_device = lambda: torch.device("cuda", 0)
management.get_all_torch_devices = lambda: [torch.device("cuda", 0)]


def outcome(work):
    """The library's calls by some work, and whether DynamicVRAM is on then."""
    calls.clear()
    memory.aimdo_enabled, patcher.CoreModelPatcher = False, patcher.ModelPatcher
    work()
    assert memory.aimdo_enabled == (patcher.CoreModelPatcher is patcher.ModelPatcherDynamic)
    return [json.loads(json.dumps(calls)), memory.aimdo_enabled]


def by_main():
    names = {
        "args": cli.args,
        "enables_dynamic_vram": cli.enables_dynamic_vram,
        "comfy_aimdo": sys.modules["comfy_aimdo"],
    }
    names |= {"comfy": sys.modules["comfy"], "console_log_level": "INFO", "logging": __import__("logging")}
    runpy.run_path(str(script), names)


def by_command():
    hosts._prepare_dynamic_vram(cli)
    host.start_dynamic_vram()


control.set_log_info = lambda: None
OPTIONS = ("", "--enable-dynamic-vram", "--disable-dynamic-vram", "--highvram", "--gpu-only", "--novram", "--lowvram")
OPTIONS += ("--reserve-vram 1.5", "--vram-headroom 2", "--disable-nvml-pressure", "--cpu")
DEVICES = {
    "NVIDIA": (True, False, None),
    "new AMD": (False, True, (7, 14)),
    "AMD": (False, True, (6, 4)),
    "other": (False,) * 3,
}
folder = tempfile.TemporaryDirectory()
script = Path(folder.name) / "main.py"
script.write_text(BEGIN + START, encoding="utf-8")
cases = result["cases"] = {}
for options, device, version in product(OPTIONS, DEVICES, ((2, 7), (2, 8))):
    vars(cli.args).update(vars(cli.parser.parse_args(options.split())))
    nvidia, amd, management.rocm_version = DEVICES[device]
    management.is_nvidia, management.is_amd = (lambda found=nvidia: found), (lambda found=amd: found)
    management.torch_version_numeric = version
    cases[f"{options} {device} {version}"] = [outcome(by_main), outcome(by_command)]
print(json.dumps(result))
