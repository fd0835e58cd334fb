"""What the stock sampler nodes run under the names that registration.py adds to their drop-downs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ..samplers import Solver, choose_solver
from ..samplers.choose import nearest_steps
from ..samplers.comfy_models import model_family, noise_of
from ..samplers.families import FAMILIES
from ..samplers.loop import Callback
from ..samplers.schedules import FlowNoise, Noise
from ..samplers.text import counted
from .folder import loadable_solvers
from .host_text import show_text
from .inputs import AUTO
from .plan import find, guidance_of, remarks
from .sampling import sample_learned_solver, table_for
from .set_solver import CHANNEL

__all__ = ["SAMPLERS", "learned_schedule", "sample_ds_solver", "sample_dyweight"]

SAMPLERS = {"dyweight": "dyweight", "ds": "ds_solver"}  # family: name in the drop-down
_LONGER = (
    "as many as this node's sigmas: if a start or end step or SplitSigmas cut them from a longer grid, name that "
    "grid's steps in Set Learned Solver"
)
_ONE_MORE = ". The scheduler ddim_uniform makes one step more than asked of some counts, 7 of 6"
_log = logging.getLogger("learned_solvers")


def sample_dyweight(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
) -> Tensor:
    """Returns the latent sampled with the model's DyWeight solver; see `_sample`."""
    return _sample("dyweight", model, x, sigmas, extra_args, callback, disable)


def sample_ds_solver(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
) -> Tensor:
    """Returns the latent sampled with the model's DS-Solver; see `_sample`."""
    return _sample("ds", model, x, sigmas, extra_args, callback, disable)


def _sample(
    family: str,
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
    wanted = options.get(CHANNEL, {})
    name, named_steps = wanted.get("solver", AUTO), wanted.get("steps")
    steps = named_steps or len(sigmas) - 1
    base = model.inner_model.inner_model
    noise = noise_of(base, base.model_sampling, x.shape)
    solver, hints = _find(name, noise, steps, model_family(base), family, named=bool(named_steps))
    table, _ = table_for(model, x, sigmas, solver, steps)
    told = [_summary(family, solver, steps, table.nfe), *hints]
    if table.nfe < steps and not named_steps:
        told.append(f"{counted(steps, 'step')}, {_LONGER}")
    told += remarks(
        solver,
        steps,
        base,
        sampling=base.model_sampling,
        noise=noise,
        shape=x.shape,
        guidance=_guidance(model.inner_model),
    )
    _log.info("%s", "; ".join(told))
    show_text("\n".join(told))
    return sample_learned_solver(model, x, sigmas, extra_args, callback, disable, solver=solver, steps=steps)


def _summary(family: str, solver: Solver, steps: int, calls: int) -> str:
    ran = f"{calls} of its {counted(steps, 'model call')}" if calls < steps else counted(steps, "step")
    return f"sampler {SAMPLERS[family]}: {solver.name}, {ran}"


def _guidance(guider: Any) -> str | None:
    """Returns the guidance that a model is sampled with; None for guiders that have not one number."""
    if type(guider) is not comfy.samplers.CFGGuider:
        return None
    return guidance_of(guider.model_patcher.model, guider.conds.get("positive", ()), guider.cfg)


def _find(name: str, noise: Noise, steps: int, model: str, family: str, *, named: bool) -> tuple[Solver, list[str]]:
    """Returns the solver and what else was fitted for the model; `named`: Set Learned Solver names the steps.

    Raises:
        ValueError: None fits, or the named one is of the other family or has not the steps.
    """
    sampler, others = SAMPLERS[family], [other for other in SAMPLERS if other != family]
    try:
        solver, hints = find(name, noise, steps, architecture=model, family=family)
    except ValueError as error:
        if name != AUTO:
            raise
        ways = _elsewhere(noise, steps, model, others) + ("" if named else _ONE_MORE)
        raise ValueError(f"sampler {sampler}: {error}{ways}") from error
    if solver.family != family:
        raise ValueError(
            f"Set Learned Solver names {solver.name}, which belongs to {FAMILIES[solver.family].title}: choose the "
            f"sampler {SAMPLERS[solver.family]}, or another file for the sampler {sampler}"
        )
    if steps not in solver.steps and solver.prediction == noise.kind and not named:
        try:
            solver.table(steps, noise)
        except ValueError as error:
            raise ValueError(f"sampler {sampler}: {error}{_ONE_MORE}") from error
    return solver, hints


def _elsewhere(noise: Noise, steps: int, model: str, families: Sequence[str]) -> str:
    """Returns what other samplers could do, for a refusal; a file that is named here is chosen elsewhere too."""
    ways = ". Name a file, or the steps of the whole grid, with the node Set Learned Solver"
    solvers = loadable_solvers()
    for family in families:
        try:
            solver = choose_solver(solvers, noise, steps, model_family=model, family=family)
        except ValueError:
            continue
        ways += f", or choose the sampler {SAMPLERS[family]} ({solver.name})"
    return ways


def learned_schedule(model_sampling: Any, steps: int) -> Tensor:
    """Returns the noise levels of the transferable solver of a model's prediction type, shape [steps + 1].

    From the model's highest level to 0, so that stock samplers can run on them; `dyweight` and `ds_solver` take their
    own levels in between anyway. The host tells nothing about the model but its schedule, so this cannot be the very
    solver that the sampler will choose. A count that the solver has not (an image-to-image run asks for steps /
    denoise of them) gets the nearest count's levels, interpolated linearly.

    Raises:
        ValueError: No solver transfers to this prediction type.
    """
    noise = noise_of(None, model_sampling, None)
    candidates = [s for s in loadable_solvers() if s.prediction == noise.kind and s.card.transferable]
    for solver in candidates:
        count = nearest_steps(solver.steps, steps)
        if isinstance(noise, FlowNoise) and _needs_size(solver, count):
            continue
        levels = solver.table(count, noise).levels.clone()
        levels[0], levels[-1] = float(model_sampling.sigma_max), 0.0
        if bool((levels.diff() < 0).all()):
            return _resampled(levels, steps).float()
    raise ValueError(
        f"no solver transfers to {noise.kind} models, so there is no learned schedule for them: choose another "
        "scheduler. Of its sigmas a learned sampler takes the first and the last only"
    )


def _needs_size(solver: Solver, steps: int) -> bool:
    grid = solver.card.steps[steps].grid
    return grid is not None and grid.rule == "flux_shift"


def _resampled(levels: Tensor, steps: int) -> Tensor:
    """Returns steps + 1 levels on the polygon through the given ones; the same ones for the same count."""
    place = torch.linspace(0, len(levels) - 1, steps + 1, dtype=torch.float64)
    low = place.floor().long().clamp(max=len(levels) - 2)
    return levels[low] + (place - low) * (levels[low + 1] - levels[low])
