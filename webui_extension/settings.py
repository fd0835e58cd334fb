"""The page *Learned Solvers* of the settings, and the X/Y/Z plot's axis over solver files."""

from __future__ import annotations

from typing import Any

import gradio as gr
from modules import scripts, shared

from ..samplers.text import few
from .choice import AUTO
from .files import solver_names

__all__ = ["add_axis", "add_settings"]

AXIS = "[Learned Solvers] Solver file"
_SECTION = ("learned_solvers", "Learned Solvers")


def add_settings() -> None:
    """Adds the settings that hold where a tab's accordion, or the API, says nothing else."""
    file = shared.OptionInfo(
        AUTO,
        "Solver file of the samplers DyWeight and DS-Solver",
        gr.Dropdown,
        lambda: {"choices": [AUTO, *solver_names()]},
        refresh=solver_names,
        section=_SECTION,
    )
    near = shared.OptionInfo(
        False, "Take the nearest step count that the solver has, instead of an error", gr.Checkbox, section=_SECTION
    )
    shared.opts.add_option("learned_solvers_file", file)
    shared.opts.add_option("learned_solvers_nearest", near)


def add_axis() -> None:
    """Adds the axis to the X/Y/Z plot, if the host has loaded that and it is not there yet."""
    for data in scripts.scripts_data:
        options = getattr(data.module, "axis_options", None)
        if data.path.endswith("xyz_grid.py") and options is not None and all(o.label != AXIS for o in options):
            axis = data.module.AxisOption(AXIS, str, _apply, confirm=_confirm, choices=lambda: [AUTO, *solver_names()])
            options.append(axis)


def _apply(p: Any, file: str, files: list[str]) -> None:
    p.learned_solvers_axis = file


def _confirm(p: Any, files: list[str]) -> None:
    known = [AUTO, *solver_names()]
    if missing := [file for file in files if file not in known]:
        raise RuntimeError(f"no solver file is called {few(missing)}: choose from {few(known)}")
