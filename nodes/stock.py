"""Entries in the stock nodes' drop-downs: a sampler per family of solvers, and the scheduler `learned`.

ComfyUI has no call to register a sampler: a pack appends to its lists and puts the function where the host looks it up
by name at sampling time. No list is rebound or reordered, as other modules hold the same lists. A name that another
pack already has stays that pack's.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from typing import Any

import comfy.samplers
import torch
from comfy.k_diffusion import sampling as host_sampling
from torch import Tensor

from ..samplers import Solver, choose_solver, part_of_table
from ..samplers.choose import nearest_steps
from ..samplers.comfy_models import architecture_name, noise_of
from ..samplers.families import FAMILIES, Family
from ..samplers.files.solver import MissingSteps
from ..samplers.grids import interpolate
from ..samplers.loop import Callback
from ..samplers.text import count_noun
from .base import AUTO, show_text
from .folder import SOLVERS
from .sampling import guidance_of_run, guider_of, refusals, sample_learned_solver
from .selection import Found, find_solver

__all__ = ["CHANNEL", "register"]

CHANNEL = "learned_solver"
"""Key in a model's transformer_options: {"solver": drop-down entry, "steps": step count or 0, "nearest": bool}."""
_LONGEST_SCHEDULE = 100  # steps
_SAME = 1e-6  # relative; float32
_log = logging.getLogger("learned_solvers")


def register() -> None:
    """Adds the entries to the host's drop-downs; a second call changes nothing."""
    # The same list twice, unless another pack has replaced one of them.
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
    """Appends a name to the host's lists, unless its function belongs to another pack."""
    if not getattr(function, "__module__", "").endswith(".nodes.stock"):  # this copy of the pack, or another
        _log.warning("another pack already has a %s named %s; the learned one is not in the drop-downs", kind, name)
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
    """Returns the latent sampled with the solver set by Set Learned Solver, otherwise with the automatic choice.

    The step count is the one set there, otherwise the sampler node's: the number of sigmas minus 1. Only the first and
    last sigma are used, so any scheduler works.
    """
    if len(sigmas) < 2:
        return x
    options = (extra_args or {}).get("model_options", {}).get("transformer_options", {})
    chosen = options.get(CHANNEL, {})
    entry, set_steps = chosen.get("solver", AUTO), chosen.get("steps")
    requested = set_steps or len(sigmas) - 1
    with refusals(f"sampler {family.sampler}: "):
        guider = guider_of(model)
        if guider is None:
            raise ValueError(
                "another node wraps the model and hides its noise schedule; use the sampler of the Learned Solver node "
                "there"
            )
        base, guidance = guider.inner_model, guidance_of_run(guider)
        _check_whole(base.model_sampling, sigmas, getattr(model, "noise", None), set_steps)
        facts = {"shape": x.shape, "guidance": guidance, "patcher": getattr(guider, "model_patcher", None)}
        find = partial(find_solver, entry, base=base, sampling=base.model_sampling, family=family.name, **facts)
        try:
            found, steps = _find(find, requested, bool(chosen.get("nearest")))
        except MissingSteps as error:
            is_near = not set_steps and abs(error.nearest - requested) == 1
            hint = ". The scheduler ddim_uniform may produce one more step than requested (7 for 6)" if is_near else ""
            raise ValueError(f"{error}{hint}") from error
        except ValueError as error:
            raise ValueError(f"{_other_sampler(base, x, requested) if entry == AUTO else ''}{error}") from error
        calls = part_of_table(found.table, float(sigmas[0]), float(sigmas[-1])).nfe
    extent = f"{calls} of its {count_noun(steps, 'model call')}" if calls < steps else count_noun(steps, "step")
    _log.info("%s", "; ".join([f"sampler {family.sampler}: {found.solver.name}, {extent}", *found.remarks]))
    show_text(found.note(calls))
    return sample_learned_solver(model, x, sigmas, extra_args, callback, disable, **found.options(steps, calls))


def _find(find: Callable[[int], Found], steps: int, nearest: bool) -> tuple[Found, int]:
    """A solver and its steps: those requested, or with `nearest` the nearest that it has."""
    try:
        return find(steps), steps
    except MissingSteps as error:
        if not nearest:
            raise
        found = find(error.nearest)
        for texts in (found.mismatches, found.remarks):
            texts.insert(0, f"nearest to the {steps} steps requested")
        return found, error.nearest


def _check_whole(sampling: Any, sigmas: Tensor, noise: Tensor | None, set_steps: int | None) -> None:
    """Refuses a part of a schedule whose whole step count is unknown; image-to-image, a part with noise, is allowed.

    Args:
        sampling: The model's model_sampling.
        sigmas: The host's noise levels, descending, shape [M + 1].
        noise: The noise that the host added; zeros where a sampler continues another's state.
        set_steps: Steps of the whole schedule, if Set Learned Solver gives them.
    """
    first, last = float(sigmas[0]), float(sigmas[-1])
    steps, near = len(sigmas) - 1, 1e-3
    if first <= last or set_steps == steps:
        return  # refused as ascending; or whole by the user's word
    is_start = first >= float(sampling.sigma_max) * (1 - near)
    if is_start and last == 0 and (cut := _cut_schedule(sampling, sigmas)):
        name, whole = cut
        raise ValueError(
            f"this node's sigmas are the first {steps} of the {whole} steps of {name}, but end at 0. Enable "
            f"return_with_leftover_noise and set steps to {whole} in Set Learned Solver; or, if they are whole, set "
            f"steps to {steps} there"
        )
    if last > float(sampling.sigma_min) * (1 + near):
        fact = f"end at sigma {last:.4g}"
    elif not is_start and noise is not None and not bool(noise.any()):
        fact = f"start at sigma {first:.4g} without new noise"
    else:
        return
    if not set_steps:
        raise ValueError(
            f"this node's sigmas are a part of a schedule, as they {fact}. Put Set Learned Solver before it, and set "
            "the steps of the whole schedule there"
        )


def _cut_schedule(sampling: Any, sigmas: Tensor) -> tuple[str, int] | None:
    """The host's schedule and its steps, of which these sigmas are the beginning, although they end at 0.

    KSamplerAdvanced makes such sigmas without return_with_leftover_noise. None for levels that are also a whole
    schedule of the host, or the beginning of none (Flux2Scheduler's, typed ones).
    """
    steps, loadable = len(sigmas) - 1, cache(SOLVERS.loadable)
    levels, schedules = sigmas[:-1].float().cpu(), comfy.samplers.SCHEDULER_HANDLERS

    def schedule(name: str, count: int) -> Tensor:
        try:
            if schedules[name].handler is _learned_schedule:
                return _learned_schedule(sampling, count, loadable())
            return comfy.samplers.calculate_sigmas(sampling, name, count).float().cpu()
        except Exception:  # another pack's schedule, or one without these steps
            return levels[:0]

    def begins(name: str, count: int) -> bool:
        first = schedule(name, count)[:steps]
        return len(first) == steps and torch.allclose(first, levels, rtol=_SAME, atol=0.0)

    def level(name: str, count: int) -> float:  # ascends with the count
        return float(schedule(name, count)[steps - 1 : steps].sum())

    if steps == 1 or any(begins(name, steps) for name in schedules):
        return None
    counts, lowest = range(steps + 1, _LONGEST_SCHEDULE + 1), float(levels[-1])
    for name in schedules:
        first = bisect_left(counts, lowest * (1 - _SAME), key=partial(level, name))
        for count in counts[first:]:  # of simple, some counts share a level
            if begins(name, count):
                return name, count
            if level(name, count) > lowest * (1 + _SAME):
                break
    return None


def _other_sampler(base: Any, x: Tensor, steps: int) -> str:
    """The beginning of an error: the sampler that can serve the model, where the chosen one has no solver for it."""
    noise, architecture = noise_of(base, base.model_sampling, x.shape), architecture_name(base)
    for family in FAMILIES.values():
        with suppress(ValueError):
            solver = choose_solver(SOLVERS.loadable(), noise, steps, architecture=architecture, family=family.name)
            return f"choose the sampler {family.sampler} ({solver.name}), or set a file in Set Learned Solver: "
    return ""


def _learned_schedule(model_sampling: Any, steps: int, solvers: Sequence[Solver] | None = None) -> Tensor:
    """Noise levels of the transferable solver for a model's prediction type, shape [steps + 1].

    They run from the model's highest level to 0, for stock samplers; learned samplers use their own levels in between.
    The host passes only the noise schedule, so this may be another solver than the one that the sampler chooses. A step
    count that the solver does not have (image-to-image needs steps / denoise) gets the levels of the nearest count,
    interpolated linearly. `solvers` are candidates, without them all files.
    """
    noise = noise_of(None, model_sampling, None)
    for solver in SOLVERS.loadable() if solvers is None else solvers:
        if solver.prediction != noise.kind or not solver.card.transferable:
            continue
        count = nearest_steps(solver.steps, steps)
        grid = solver.card.steps[count].grid
        if grid is not None and grid.needs_tokens:
            continue
        levels = solver.table(count, noise).levels.clone()
        levels[0], levels[-1] = float(model_sampling.sigma_max), 0.0
        if bool((levels.diff() < 0).all()):
            indices = torch.arange(len(levels), dtype=torch.float64)
            return interpolate(torch.linspace(0, len(levels) - 1, steps + 1).double(), indices, levels).float()
    raise ValueError(
        f"no solver transfers to {noise.kind} models, so they have no learned schedule. Choose another scheduler; a "
        "learned sampler uses only its first and last sigma"
    )
