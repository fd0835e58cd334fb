"""Registers samplers, settings and the X/Y/Z axis in the WebUI."""

from __future__ import annotations

import logging
from functools import partial

from modules import script_callbacks, sd_samplers
from modules.sd_samplers_common import SamplerData

from ..samplers import list_solvers
from ..samplers.families import FAMILIES
from ..samplers.files.card import VERSION
from .choice import SOLVERS
from .sampler import LearnedSampler
from .ui import add_axis, add_settings

__all__ = ["register"]

_log = logging.getLogger("learned_solvers")


def register() -> None:
    """Registers one sampler per family, the settings and the axis; again after Reload UI, without a second entry."""
    if not _log.isEnabledFor(logging.INFO):  # the host itself shows warnings only
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        _log.addHandler(handler)
        _log.setLevel(logging.INFO)
        _log.propagate = False
    for family in FAMILIES.values():
        # No aliases: the X/Y/Z plot accepts them, and the host then silently samples with its default.
        data = SamplerData(family.title, partial(LearnedSampler, family=family.name), [], {})
        names = [sampler.name for sampler in sd_samplers.all_samplers]
        if data.name in names:  # in place: other modules hold the list and the map
            sd_samplers.all_samplers[names.index(data.name)] = data
        else:
            sd_samplers.all_samplers.append(data)
        sd_samplers.all_samplers_map[data.name] = data
    sd_samplers.set_samplers()
    find = getattr(sd_samplers, "get_sampler_and_scheduler", None)  # not in every host; some cache it
    if clear := getattr(find, "cache_clear", None):
        clear()
    script_callbacks.on_ui_settings(add_settings)
    script_callbacks.on_before_ui(add_axis)  # later than all scripts, the X/Y/Z plot among them
    titles = ", ".join(family.title for family in FAMILIES.values())
    bundled = len(list_solvers())
    users = len(SOLVERS.names()) - bundled
    _log.info("Learned Solvers %s: samplers %s; %d bundled and %d user solver files", VERSION, titles, bundled, users)
