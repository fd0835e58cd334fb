"""ComfyUI's sampler functions on its schedulers and step lists: peers in a comparison, teachers of a fit."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...samplers.comfy_models import model_architecture
from ...samplers.text import printable
from ..comparison.measure import Entry
from ..data.teacher import Recipe
from ..starts.candidates import HOST_METHODS, UsualSampler
from .comfy import ComfyModel

__all__ = ["host_entries", "host_recipe", "named_recipe", "usual_sampler"]

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
            sampler = sys.modules["comfy.samplers"].sampler_object(method)
            yield Entry(method, grid, partial(_run_of(model.patcher, model.sampling, sampler, sigmas), denoiser))


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


def host_recipe(patcher: Any, sampler: Any, sigmas: Tensor, shape: Sequence[int], name: str = "") -> Recipe:
    """A sampler of ComfyUI on its levels, as the teacher of a fit.

    Its calls are counted, and noise that it draws is noticed, on a denoiser that costs nothing.

    Args:
        patcher: ComfyUI's ModelPatcher.
        sampler: A SAMPLER, as nodes have it.
        sigmas: SIGMAS, descending to 0.
        shape: Of one latent, [1, C, ..., H, W].
        name: For the card; empty: the sampler function's.
    """
    function = getattr(sampler, "sampler_function", None)
    name = name or getattr(function, "__name__", type(sampler).__name__).removeprefix("sample_")
    if function is None:
        raise ValueError(f"{name} cannot be a teacher, as it is no sampler function: choose another sampler")
    if len(sigmas) < 3 or not bool((sigmas.diff() < 0).all()) or float(sigmas[-1]) > 0:
        raise ValueError(f"a teacher's levels must descend to 0 in at least 2 steps, got {printable(str(sigmas), 200)}")
    sampling = patcher.get_model_object("model_sampling")
    if float(sigmas[0]) < 0.9 * float(sampling.sigma_max):
        raise ValueError(
            f"a teacher's levels must start at the model's highest, {float(sampling.sigma_max):.4g}, got "
            f"{float(sigmas[0]):.4g}: use a scheduler at denoise 1"
        )
    run, ends, calls = _run_of(patcher, sampling, sampler, sigmas), [], []
    x = float(sampling.sigma_max) * torch.randn(list(shape), generator=torch.Generator().manual_seed(0))

    def ends_in(size: float, seed: int) -> Tensor:
        """The end state on a Gaussian of that size; appends the calls."""

        def cheap(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
            calls[-1] += len(x)
            return x / (1 + (sigma / size).reshape(-1, *[1] * (x.ndim - 1)) ** 2)

        calls.append(0)
        torch.manual_seed(seed)
        return run(cheap, x, {"row": [seed], "seed": seed})

    try:
        with torch.random.fork_rng(devices=[]):
            ends = [ends_in(size, seed) for size, seed in ((1.0, 0), (1.0, 1), (30.0, 0))]
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(
            f"{name} needs more than a denoiser ({error}): choose another sampler as the teacher"
        ) from error
    if not torch.allclose(ends[0], ends[1]):
        raise ValueError(f"{name} draws noise, so no solver can follow it: choose a sampler without, such as dpmpp_2m")
    if calls[0] != calls[2]:
        raise ValueError(f"{name} chooses its number of calls by the model: choose a sampler with a fixed number")
    return Recipe(name, len(sigmas) - 1, calls[0], run)


def named_recipe(patcher: Any, sampler: str, scheduler: str, steps: int, shape: Sequence[int]) -> Recipe:
    """The recipe of a KSampler: its sampler, scheduler and steps on the model's own schedule."""
    samplers = sys.modules["comfy.samplers"]
    for kind, name, known in (
        ("sampler", sampler, samplers.KSampler.SAMPLERS),
        ("scheduler", scheduler, samplers.KSampler.SCHEDULERS),
    ):
        if name not in known:
            raise ValueError(f"teacher: unknown {kind} {name!r}; choose from {', '.join(known)}")
    sigmas = _levels(patcher, sampler, scheduler, steps)
    return host_recipe(patcher, samplers.sampler_object(sampler), sigmas, shape, f"{sampler} {scheduler}")


def usual_sampler(patcher: Any) -> UsualSampler:
    """What the model's architecture is usually sampled with, on its own schedule; Euler for a stochastic sampler."""
    facts = model_architecture(patcher.model)
    sampler = facts.sampler if facts.sampler in HOST_METHODS else "euler"
    scheduler = facts.scheduler or "simple"
    return UsualSampler(sampler, scheduler, lambda steps: _levels(patcher, sampler, scheduler, steps).double())


def _levels(patcher: Any, sampler: str, scheduler: str, steps: int) -> Tensor:
    """The levels of a KSampler."""
    samplers = sys.modules["comfy.samplers"]
    fewer = sampler in samplers.KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS
    sigmas = samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), scheduler, steps + fewer)
    return torch.cat([sigmas[:-2], sigmas[-1:]]) if fewer else sigmas


def _run_of(patcher: Any, sampling: Any, sampler: Any, sigmas: Tensor) -> Callable[..., Tensor]:
    """`run(model, x, extra_args)` of a sampler function on these levels."""
    guider = sys.modules["comfy.samplers"].CFGGuider(patcher)
    guider.inner_model = patcher.model
    # A step list that starts slightly lower starts from proportionally less noise, as in ComfyUI.
    scale = float(sigmas[0] / sampling.sigma_max)

    def run(model: Callable[..., Tensor], x: Tensor, extra_args: Mapping[str, Any]) -> Tensor:
        def wrapped(x: Tensor, sigma: Tensor, model_options: Any = None, seed: Any = None, **own: Any) -> Tensor:
            return model(x, sigma, **own)

        wrapped.inner_model = guider  # where ComfyUI's samplers look for it
        levels = sigmas.to(x.device).clone()  # uni_pc writes its last level into it, which ComfyUI then divides by
        arguments = {"extra_args": dict(extra_args), "callback": None, "disable": True, **sampler.extra_options}
        end = sampler.sampler_function(wrapped, x * scale, levels, **arguments)
        return sampling.inverse_noise_scaling(levels[-1], end)

    return run
