"""ComfyUI's sampler functions on its schedulers and step lists: the peers in a comparison."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..comparison.measure import Entry
from ..starts.candidates import HOST_METHODS
from .comfy import ComfyModel

__all__ = ["host_entries"]

SCHEDULERS = ("simple", "sgm_uniform", "normal", "karras", "beta")
STEP_LISTS = {  # module and class in comfy_extras, choices of the node's first input, fewest steps
    "AYS": ("nodes_align_your_steps", "AlignYourStepsScheduler", ("SD1", "SDXL", "SVD"), 1),
    "GITS": ("nodes_gits", "GITSScheduler", (1.2,), 2),
    "OSS": ("nodes_optimalsteps", "OptimalStepsScheduler", ("FLUX", "Wan", "Chroma"), 3),
}


def host_entries(model: ComfyModel, denoiser: Callable[..., Tensor], calls: int) -> Iterable[Entry]:
    """Yields ComfyUI's samplers on its schedulers and step lists with `calls` calls; Heun's may make one less.

    A step list is used if its first level is within 1 % of the model's highest. For UniPC each scheduler also appears
    without its second-to-last level, as in the KSampler node.
    """
    for method in HOST_METHODS:
        steps = (calls + 1) // 2 if method == "heun" else calls
        if steps < (1 if method == "euler" else 2):
            continue
        for grid, sigmas in _grids(model.sampling, steps, method.startswith("uni_pc")).items():
            yield Entry(method, grid, _run_of(model, denoiser, method, sigmas))


def _grids(sampling: Any, steps: int, discard_penultimate: bool) -> dict[str, Tensor]:
    samplers = sys.modules["comfy.samplers"]
    grids = {name: samplers.calculate_sigmas(sampling, name, steps) for name in SCHEDULERS}
    if discard_penultimate:
        for name in SCHEDULERS:
            longer = samplers.calculate_sigmas(sampling, name, steps + 1)
            grids[f"{name} of the KSampler"] = torch.cat([longer[:-2], longer[-1:]])
    for name, (module, node, choices, fewest) in STEP_LISTS.items():
        node = getattr(importlib.import_module(f"comfy_extras.{module}"), node)
        for choice in choices if steps >= fewest else ():
            sigmas = node.execute(choice, steps, 1.0).result[0]
            if abs(float(sigmas[0] / sampling.sigma_max) - 1) < 0.01:
                grids[f"{name} {choice}"] = sigmas
    return {name: s for name, s in grids.items() if len(s) == steps + 1 and bool((s.diff() < 0).all())}


def _run_of(model: ComfyModel, denoiser: Callable[..., Tensor], method: str, sigmas: Tensor) -> Callable[..., Tensor]:
    samplers = sys.modules["comfy.samplers"]
    sampler, guider = samplers.sampler_object(method), samplers.CFGGuider(model.patcher)
    guider.inner_model = model.patcher.model
    # A step list that starts slightly lower starts from proportionally less noise, as in ComfyUI.
    scale = float(sigmas[0] / model.sampling.sigma_max)

    def wrapped(x: Tensor, sigma: Tensor, row: Any, **_: Any) -> Tensor:
        return denoiser(x, sigma, row=row)

    wrapped.inner_model = guider  # where ComfyUI's samplers look for it

    def run(x: Tensor, extra_args: Mapping[str, Any]) -> Tensor:
        levels = sigmas.to(x.device).clone()  # uni_pc writes into it
        arguments = {"extra_args": dict(extra_args), "callback": None, "disable": True, **sampler.extra_options}
        return sampler.sampler_function(wrapped, x * scale, levels, **arguments)

    return run
