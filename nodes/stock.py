"""Names in the stock nodes' drop-downs: a sampler per family of solvers, and the scheduler `learned`.

The host has no way to register a sampler but to append to its lists and to put the function where it looks it up by
name, at sampling time. Nothing is rebound and nothing moved: other modules hold the same lists. A name that another
pack has already stays that pack's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import comfy.samplers
import torch
from comfy.k_diffusion import sampling as host_sampling
from torch import Tensor

from ..samplers import Solver, choose_solver
from ..samplers.choose import nearest_steps
from ..samplers.comfy_models import architecture_name, noise_of
from ..samplers.families import FAMILIES, Family
from ..samplers.grids import interpolate
from ..samplers.loop import Callback
from ..samplers.schedules import Noise
from ..samplers.text import counted
from .base import AUTO, show_text
from .folder import SOLVERS
from .sampling import guidance_of_run, sample_learned_solver, table_for
from .selection import remarks, solver_of_entry

__all__ = ["CHANNEL", "SCHEDULER", "learned_schedule", "register"]

CHANNEL = "learned_solver"
"""Key in a model's transformer_options: {"solver": drop-down entry, "steps": model calls or 0}, plain values only."""
SCHEDULER = "learned"
_ONE_MORE = ". The scheduler ddim_uniform may produce one step more than requested (7 for 6)"
_log = logging.getLogger("learned_solvers")


def register() -> None:
    """Adds the names to the host's drop-downs; a second call changes nothing."""
    # One list today; another pack may have put its own list in one of the two places.
    samplers = [comfy.samplers.KSampler.SAMPLERS, comfy.samplers.SAMPLER_NAMES]
    for family in FAMILIES.values():
        function = _sampler_of(family)
        if not hasattr(host_sampling, function.__name__):
            setattr(host_sampling, function.__name__, function)
        if _is_same(getattr(host_sampling, function.__name__), function):
            _append(samplers, family.sampler)
        else:
            _log.warning("another pack has a sampler called %s: ours is left out of the drop-downs, use the Learned "
                         "Solver node instead", family.sampler)  # fmt: skip
    handler = comfy.samplers.SchedulerHandler(learned_schedule)
    if _is_same(comfy.samplers.SCHEDULER_HANDLERS.setdefault(SCHEDULER, handler).handler, learned_schedule):
        _append([comfy.samplers.KSampler.SCHEDULERS, comfy.samplers.SCHEDULER_NAMES], SCHEDULER)
    else:
        _log.warning("another pack has a scheduler called %s: ours is left out of the drop-downs", SCHEDULER)


def _is_same(function: Any, ours: Callable[..., Any]) -> bool:
    """Whether a function is ours, of this copy of the pack or of another one."""
    return getattr(function, "__qualname__", None) == ours.__qualname__ and (
        getattr(function, "__module__", "").rpartition(".")[2] == ours.__module__.rpartition(".")[2]
    )


def _append(lists: list[list[str]], name: str) -> None:
    for entries in lists:
        if name not in entries:
            entries.append(name)


def _sampler_of(family: Family) -> Callable[..., Tensor]:
    """Returns k-diffusion's function for a family, under its own name."""

    def sample(
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callback | None = None,
        disable: bool | None = None,
    ) -> Tensor:
        return _sample(family, model, x, sigmas, extra_args, callback, disable)

    sample.__name__ = sample.__qualname__ = f"sample_{family.sampler}"
    sample.__doc__ = f"Returns the latent sampled with a {family.title} solver of the model; see `_sample`."
    return sample


def _sample(
    family: Family,
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None,
    callback: Callback | None,
    disable: bool | None,
) -> Tensor:
    """Returns the latent sampled with the solver that Set Learned Solver names, else with the automatic choice.

    The solver's steps are the sampler node's: the number of sigmas but one, unless Set Learned Solver names another.
    Of the sigmas themselves the first and the last count, so any scheduler will do.
    """
    if len(sigmas) < 2:
        return x
    options = (extra_args or {}).get("model_options", {}).get("transformer_options", {})
    chosen = options.get(CHANNEL, {})
    named_steps = chosen.get("steps") or None
    steps = named_steps or len(sigmas) - 1
    guider = model.inner_model
    base = guider.inner_model
    noise = noise_of(base, base.model_sampling, x.shape)
    solver, hints = _find(family, chosen.get("solver", AUTO), noise, steps, architecture_name(base), named=named_steps)
    calls = table_for(model, x, sigmas, solver, steps)[0].nfe
    ran = f"{calls} of its {counted(steps, 'model call')}" if calls < steps else counted(steps, "step")
    lines = [f"sampler {family.sampler}: {solver.name}, {ran}", *hints]
    if calls < steps and not named_steps:
        lines.append(
            f"{counted(steps, 'step')}, as many as this node's sigmas: if a start or end step or SplitSigmas cut them "
            "from a longer grid, name that grid's steps in Set Learned Solver"
        )
    guidance = guidance_of_run(guider)
    lines += remarks(solver, steps, base, base.model_sampling, noise, shape=x.shape, guidance=guidance)
    _log.info("%s", "; ".join(lines))
    show_text("\n".join(lines))
    return sample_learned_solver(model, x, sigmas, extra_args, callback, disable, solver=solver, steps=steps)


def _find(
    family: Family, entry: str, noise: Noise, steps: int, architecture: str, *, named: int | None
) -> tuple[Solver, list[str]]:
    """Returns the solver, and the solvers fitted for the model; `named`: the steps that Set Learned Solver names.

    Raises:
        ValueError: None fits, or the chosen file is of another family or lacks the steps.
    """
    try:
        solver, hints = solver_of_entry(entry, noise, steps, architecture=architecture, family=family.name)
    except ValueError as error:
        if entry != AUTO:
            raise
        ways = _elsewhere(family, noise, steps, architecture) + ("" if named else _ONE_MORE)
        raise ValueError(f"sampler {family.sampler}: {error}{ways}") from error
    if solver.family != family.name:
        other = FAMILIES[solver.family]
        raise ValueError(
            f"{solver.name}, which Set Learned Solver names, is a {other.title} file: choose the sampler "
            f"{other.sampler}, or another file for the sampler {family.sampler}"
        )
    if steps not in solver.steps and solver.prediction == noise.kind and not named:
        try:
            solver.table(steps, noise)
        except ValueError as error:
            raise ValueError(f"sampler {family.sampler}: {error}{_ONE_MORE}") from error
    return solver, hints


def _elsewhere(family: Family, noise: Noise, steps: int, architecture: str) -> str:
    """Returns what other samplers could do, for a refusal."""
    ways = ". Name a file, or the steps of the whole grid, with the node Set Learned Solver"
    solvers = SOLVERS.loadable()
    for other in FAMILIES.values():
        try:
            solver = choose_solver(solvers, noise, steps, architecture=architecture, family=other.name)
        except ValueError:
            continue
        ways += f", or choose the sampler {other.sampler} ({solver.name})"
    return ways


def learned_schedule(model_sampling: Any, steps: int) -> Tensor:
    """Returns the noise levels of the transferable solver of a model's prediction type, shape [steps + 1].

    From the model's highest level to 0, so that stock samplers can run on them; our samplers take their own levels in
    between anyway. The host shows nothing of the model but its schedule, so this cannot be the very solver that the
    sampler will choose. A count that the solver lacks (an image-to-image run asks for steps / denoise of them) gets the
    nearest count's levels, interpolated linearly.

    Raises:
        ValueError: No solver transfers to this prediction type.
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
