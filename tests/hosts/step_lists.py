"""Writes the noise levels of ComfyUI's own step lists and schedulers, by name and number of steps.

    <ComfyUI's python> step_lists.py COMFYUI_PATH MOST RESULT.json

RESULT is {"AYS SD1": {"1": [sigma, ...], ...}, ...}, up to MOST steps; step counts that a node lacks are left out.
"""

import importlib
import json
from pathlib import Path

from comfy_on_cpu import ARGUMENTS

# isort: split

import comfy.samplers
from comfy.model_sampling import ModelSamplingDiscrete, ModelSamplingDiscreteFlow

COUNTS, RESULT = range(1, int(ARGUMENTS[0]) + 1), Path(ARGUMENTS[1])
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

lists = {}
for name, (module, node, choices, fewest) in NODES.items():
    execute = getattr(importlib.import_module(f"comfy_extras.{module}"), node).execute
    for choice in choices:
        lists[f"{name} {choice}" if len(choices) > 1 else name] = {
            steps: execute(choice, steps, 1.0).result[0].tolist() for steps in COUNTS if steps >= fewest
        }
for name, (sampling, scheduler) in SCHEDULES.items():
    lists[name] = {steps: comfy.samplers.calculate_sigmas(sampling, scheduler, steps).tolist() for steps in COUNTS}
RESULT.write_text(json.dumps(lists))
