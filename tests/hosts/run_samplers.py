"""Runs ComfyUI's own sampler functions, in float64, on the Gaussian mixture of tests/oracles.py.

    <ComfyUI's python> run_samplers.py COMFYUI_PATH REQUEST.pt RESULT.pt

REQUEST has "runs", a list of (sampler, sigmas [N + 1], flow, x [B, n]), and "grids", a list of (kind, shift, scheduler,
steps). RESULT is a pair of lists: (end state, number of model calls), and levels; None for what this ComfyUI has not.
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
import comfy.model_sampling
import comfy.samplers
import torch

UNIPC = {"uni_pc": uni_pc.sample_unipc, "uni_pc_bh2": uni_pc.sample_unipc_bh2}


class Flow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    pass


def schedule(kind, shift):
    """ComfyUI's noise schedule of a kind of model, with its defaults."""
    if kind == "flow":
        flow = Flow()
        flow.set_parameters(shift=shift, multiplier=1000)
        return flow
    if kind == "edm":
        edm = comfy.model_sampling.ModelSamplingContinuousEDM()
        edm.set_parameters(0.002, 80.0, 1.0)
        return edm
    return comfy.model_sampling.ModelSamplingDiscrete()


request = torch.load(ARGUMENTS[0], weights_only=True)
grids = [
    comfy.samplers.calculate_sigmas(schedule(kind, shift), name, steps)
    if name in comfy.samplers.SCHEDULER_NAMES
    else None
    for kind, shift, name, steps in request["grids"]
]
flow_sampling = schedule("flow", 1.0)
torch.set_default_dtype(torch.float64)  # the samplers compute coefficients in the default type
results = []
with torch.no_grad():
    for name, sigmas, flow, x in request["runs"]:
        model = Recorder(mixture(flow))
        patcher = SimpleNamespace(get_model_object=lambda name, flow=flow: flow_sampling if flow else None)
        model.inner_model = SimpleNamespace(model_patcher=patcher)  # some samplers read the host's wrapper
        run = UNIPC.get(name) or getattr(sampling, f"sample_{name}", None)
        # A copy: uni_pc overwrites its last level.
        end = run and run(model, x, sigmas.clone(), extra_args={}, disable=True)
        results.append(run and (end, len(model.x)))
torch.save((results, grids), ARGUMENTS[1])
