"""Names in the stock nodes' drop-downs: a sampler per family of solvers, and the scheduler `learned`.

The host has no way to register a sampler but to append to its lists and to put the function where it looks it up by
name, at sampling time. Nothing is rebound and nothing moved: other modules hold the same lists. A name that another
pack has already stays that pack's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import comfy.samplers
import torch
from comfy.k_diffusion import sampling as host_sampling
from torch import Tensor

from ..samplers import choose_solver, part_of_table
from ..samplers.choose import nearest_steps
from ..samplers.comfy_models import architecture_name, noise_of
from ..samplers.families import FAMILIES, Family
from ..samplers.grids import interpolate
from ..samplers.loop import Callback
from ..samplers.text import counted
from .base import AUTO, show_text
from .folder import SOLVERS
from .sampling import guidance_of_run, sample_learned_solver
from .selection import find_solver

__all__ = ["CHANNEL", "register"]

CHANNEL = "learned_solver"
"""Key in a model's transformer_options: {"solver": drop-down entry, "steps": model calls or 0}, plain values only."""
_log = logging.getLogger("learned_solvers")


def register() -> None:
    """Adds the names to the host's drop-downs; a second call changes nothing."""
    # One list today; another pack may have put its own list in one of the two places.
    samplers = [comfy.samplers.KSampler.SAMPLERS, comfy.samplers.SAMPLER_NAMES]
    for family in FAMILIES.values():
        sample: Any = partial(_sample, family)
        sample.__name__, sample.__module__ = f"sample_{family.sampler}", __name__
        if not hasattr(host_sampling, sample.__name__):
            setattr(host_sampling, sample.__name__, sample)
        _offer(samplers, "sampler", family.sampler, getattr(host_sampling, sample.__name__))
    handler = comfy.samplers.SchedulerHandler(_learned_schedule)
    handler = comfy.samplers.SCHEDULER_HANDLERS.setdefault("learned", handler)
    schedulers = [comfy.samplers.KSampler.SCHEDULERS, comfy.samplers.SCHEDULER_NAMES]
    _offer(schedulers, "scheduler", "learned", handler.handler)


def _offer(lists: list[list[str]], kind: str, name: str, function: Any) -> None:
    """Appends a name to the host's lists, unless the function behind it is another pack's."""
    if not getattr(function, "__module__", "").endswith(".nodes.stock"):  # of this copy of the pack, or of another
        _log.warning("another pack has a %s called %s: ours is left out of the drop-downs", kind, name)
        return
    for entries in lists:
        if name not in entries:
            entries.append(name)


def _sample(
    family: Family,
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
) -> Tensor:
    """Returns the latent sampled with the solver that Set Learned Solver names, else with the automatic choice.

    The solver's steps are the sampler node's: the number of sigmas but one, unless Set Learned Solver names another.
    Of the sigmas themselves the first and the last count, so any scheduler will do.
    """
    if len(sigmas) < 2:
        return x
    options = (extra_args or {}).get("model_options", {}).get("transformer_options", {})
    chosen = options.get(CHANNEL, {})
    entry, named_steps = chosen.get("solver", AUTO), chosen.get("steps")
    steps = named_steps or len(sigmas) - 1
    guider = model.inner_model
    base, guidance = guider.inner_model, guidance_of_run(guider)
    try:
        solver, _, table, remarks = find_solver(
            entry, steps, base, base.model_sampling, shape=x.shape, guidance=guidance, family=family.name
        )
    except ValueError as error:
        message = f"sampler {family.sampler}: {error}"
        if entry == AUTO:
            message += _other_ways(base, x, steps)
        if not named_steps and (entry == AUTO or f" steps, got {steps}:" in message):
            message += ". The scheduler ddim_uniform may produce one step more than requested (7 for 6)"
        raise ValueError(message) from error
    calls = part_of_table(table, float(sigmas[0]), float(sigmas[-1])).nfe
    ran = f"{calls} of its {counted(steps, 'model call')}" if calls < steps else counted(steps, "step")
    lines = [f"sampler {family.sampler}: {solver.name}, {ran}"]
    if calls < steps and not named_steps:
        lines.append(
            f"{counted(steps, 'step')}, as many as this node's sigmas: if a start or end step or SplitSigmas cut them "
            "from a longer grid, name that grid's steps in Set Learned Solver"
        )
    lines += remarks
    _log.info("%s", "; ".join(lines))
    show_text("\n".join(lines))
    return sample_learned_solver(model, x, sigmas, extra_args, callback, disable, solver=solver, steps=steps)


def _other_ways(base: Any, x: Tensor, steps: int) -> str:
    """What else a user can do where no solver of a family fits."""
    ways = ". Name a file, or the steps of the whole grid, with the node Set Learned Solver"
    noise, architecture = noise_of(base, base.model_sampling, x.shape), architecture_name(base)
    for family in FAMILIES.values():
        with suppress(ValueError):
            solver = choose_solver(SOLVERS.loadable(), noise, steps, architecture=architecture, family=family.name)
            ways += f", or choose the sampler {family.sampler} ({solver.name})"
    return ways


def _learned_schedule(model_sampling: Any, steps: int) -> Tensor:
    """The noise levels of the transferable solver of a model's prediction type, shape [steps + 1].

    From the model's highest level to 0, so that stock samplers can run on them; our samplers take their own levels in
    between anyway. The host shows nothing of the model but its schedule, so this cannot be the very solver that the
    sampler will choose. A count that the solver lacks (an image-to-image run asks for steps / denoise of them) gets the
    nearest count's levels, interpolated linearly.
    """
    noise = noise_of(None, model_sampling, None)
    for solver in SOLVERS.loadable():
        if solver.prediction != noise.kind or not solver.card.transferable:
            continue
        count = nearest_steps(solver.steps, steps)
        grid = solver.card.steps[count].grid
        if grid is not None and grid.needs_tokens:
            continue
        levels = solver.table(count, noise).levels.clone()
        levels[0], levels[-1] = float(model_sampling.sigma_max), 0.0
        if bool((levels.diff() < 0).all()):
            places = torch.arange(len(levels), dtype=torch.float64)
            return interpolate(torch.linspace(0, len(levels) - 1, steps + 1).double(), places, levels).float()
    raise ValueError(
        f"no solver transfers to {noise.kind} models, so there is no learned schedule for them: choose another "
        "scheduler. Of its sigmas a learned sampler uses only the first and the last"
    )
