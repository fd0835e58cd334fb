"""Writes the noise levels of ComfyUI's own step lists and schedulers, by name and number of steps.

    <ComfyUI's python> step_lists.py COMFYUI_PATH MOST RESULT.json

RESULT is {"AYS SD1": {"1": [sigma, ...], ...}, ...}, up to MOST steps; where a node has none, it is left out.
"""

import importlib
import json
import sys
from pathlib import Path

COMFY, MOST, RESULT = sys.argv[1:]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, COMFY)

import comfy.options

comfy.options.enable_args_parsing()

import comfy.samplers
from comfy.model_sampling import ModelSamplingDiscrete, ModelSamplingDiscreteFlow

NODES = {
    "AYS": ("nodes_align_your_steps", "AlignYourStepsScheduler", ("SD1", "SDXL", "SVD"), 1),
    "GITS": ("nodes_gits", "GITSScheduler", (1.2,), 2),
    "OSS": ("nodes_optimalsteps", "OptimalStepsScheduler", ("FLUX", "Wan", "Chroma"), 3),
}


def flow(shift):
    sampling = ModelSamplingDiscreteFlow()
    sampling.set_parameters(shift=shift, multiplier=1000)
    return sampling


SCHEDULES = {  # our name: model and scheduler
    "beta": (ModelSamplingDiscrete(), "beta"),
    "beta, shift 1": (flow(1.0), "beta"),
    "beta, shift 3": (flow(3.0), "beta"),
    "karras 7": (flow(1.0), "karras"),
}

found = {}
for name, (module, node, choices, fewest) in NODES.items():
    execute = getattr(importlib.import_module(f"comfy_extras.{module}"), node).execute
    for choice in choices:
        found[f"{name} {choice}" if len(choices) > 1 else name] = {
            steps: execute(choice, steps, 1.0).result[0].tolist() for steps in range(fewest, int(MOST) + 1)
        }
for name, (sampling, scheduler) in SCHEDULES.items():
    found[name] = {
        steps: comfy.samplers.calculate_sigmas(sampling, scheduler, steps).tolist() for steps in range(1, int(MOST) + 1)
    }
Path(RESULT).write_text(json.dumps(found))
