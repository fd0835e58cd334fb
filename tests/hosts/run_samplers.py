"""Runs ComfyUI's own sampler functions, in float64, on the Gaussian mixture of tests/oracles.py.

    <ComfyUI's python> run_samplers.py COMFYUI_PATH REQUEST.pt RESULT.pt

REQUEST is a list of (sampler, sigmas [N + 1], flow, x [B, n]), RESULT one of (end state, number of model calls).
"""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

TESTS = Path(__file__).resolve().parents[1]
sys.path += [str(TESTS), str(TESTS.parent / "training")]
sys.modules.setdefault("pytest", ModuleType("pytest"))  # of the oracles; not installed here
import _as_package  # noqa: F401 - makes the folder the package learned_solvers, without nodes: before ComfyUI
from comfy_on_cpu import ARGUMENTS
from oracles import Recorder, mixture

# isort: split

import comfy.extra_samplers.uni_pc as uni_pc
import comfy.k_diffusion.sampling as sampling
import torch

UNIPC = {"uni_pc": uni_pc.sample_unipc, "uni_pc_bh2": uni_pc.sample_unipc_bh2}

torch.set_default_dtype(torch.float64)  # the samplers compute coefficients in the default type
results = []
with torch.no_grad():
    for name, sigmas, flow, x in torch.load(ARGUMENTS[0], weights_only=True):
        model = Recorder(mixture(flow))
        # `res_multistep` reads this of the host's wrapper.
        model.inner_model = SimpleNamespace(model_patcher=SimpleNamespace(get_model_object=lambda name: None))
        run = UNIPC.get(name) or getattr(sampling, f"sample_{name}")
        # A copy: uni_pc overwrites its last level.
        results.append((run(model, x, sigmas.clone(), extra_args={}, disable=True), len(model.x)))
torch.save(results, ARGUMENTS[1])
