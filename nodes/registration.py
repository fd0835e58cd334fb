"""Adds `dyweight` and `ds_solver` to every stock sampler list, and the scheduler `learned` beside them.

The host has no way to register a sampler but to append to its lists and to put the function where it looks it up by
name, at sampling time. Nothing is rebound and nothing moved: other modules hold the same lists. A name of ours that is
someone else's already stays theirs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import comfy.samplers
from comfy.k_diffusion import sampling

from .dropdown import learned_schedule, sample_ds_solver, sample_dyweight

__all__ = ["SCHEDULER", "register"]

SCHEDULER = "learned"
_log = logging.getLogger("learned_solvers")


def register() -> None:
    """Adds our names to the host's drop-downs; a second call changes nothing."""
    # One list today; another pack may have given one of the two places a list of its own.
    samplers = [comfy.samplers.KSampler.SAMPLERS, comfy.samplers.SAMPLER_NAMES]
    for name, function in (("dyweight", sample_dyweight), ("ds_solver", sample_ds_solver)):
        if _put(sampling, f"sample_{name}", function):
            _append(samplers, name)
    handler = comfy.samplers.SchedulerHandler(learned_schedule)
    if _is_ours(comfy.samplers.SCHEDULER_HANDLERS.setdefault(SCHEDULER, handler).handler, learned_schedule):
        _append([comfy.samplers.KSampler.SCHEDULERS, comfy.samplers.SCHEDULER_NAMES], SCHEDULER)
    else:
        _log.warning("another pack has a scheduler called %s: ours is left out of the drop-downs", SCHEDULER)


def _put(module: Any, attribute: str, function: Callable[..., Any]) -> bool:
    """Whether the attribute is our function now; another pack's is left alone."""
    if not hasattr(module, attribute):
        setattr(module, attribute, function)
    if _is_ours(getattr(module, attribute), function):
        return True
    _log.warning(
        "another pack has %s: ours is left out of the drop-downs, use the Learned Solver node instead", attribute
    )
    return False


def _is_ours(found: Any, function: Callable[..., Any]) -> bool:
    """Whether it is the function, or the same one of another copy of this pack."""
    return getattr(found, "__qualname__", None) == function.__qualname__ and (
        getattr(found, "__module__", "").rpartition(".")[2] == function.__module__.rpartition(".")[2]
    )


def _append(lists: list[list[str]], name: str) -> None:
    for entries in lists:
        if name not in entries:
            entries.append(name)
