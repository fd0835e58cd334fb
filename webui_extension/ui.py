"""The accordion of both tabs, the settings, and the X/Y/Z plot's axis over solver files."""

from __future__ import annotations

from typing import Any

import gradio as gr
from modules import scripts, sd_samplers, shared
from modules.ui_common import create_refresh_button

from ..samplers.families import FAMILIES
from ..samplers.text import format_list
from .choice import AS_SET, AUTO, SOLVERS, Request, requested_file, wants_nearest
from .host_model import noise_of
from .sampler import LearnedSampler

__all__ = ["LearnedSolversScript", "add_axis", "add_settings"]

AXIS = "[Learned Solvers] Solver file"
_SECTION = ("learned_solvers", "Learned Solvers")
_HELP = (
    f"For the samplers {' and '.join(f'**{family.title}** ({family.about})' for family in FAMILIES.values())}. They "
    "have their own noise levels: *Schedule type* does not affect them. Put your solver files into "
    f"`{SOLVERS.place}`."
)


class LearnedSolversScript(scripts.Script):
    """The accordion; its choices are stored in the job, so that tabs and users do not share them.

    `file` and `nearest` are those of the last job, for jobs within it.
    """

    file, nearest = AUTO, False

    def title(self) -> str:
        """The script's name in the API's alwayson_scripts."""
        return "Learned Solvers"

    def show(self, is_img2img: bool) -> Any:
        """Shown in both tabs."""
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        """The accordion's inputs: solver file, nearest."""
        with gr.Accordion(self.title(), open=False, elem_id=self.elem_id("accordion")):
            gr.Markdown(_HELP)
            with gr.Row():
                file = gr.Dropdown(
                    _choices(),
                    value=AS_SET,
                    label="Solver file",
                    allow_custom_value=True,  # a pasted name without a file gets our error, not Gradio's
                    elem_id=self.elem_id("file"),
                )
                create_refresh_button(file, lambda: None, lambda: {"choices": _choices()}, self.elem_id("refresh"))
            about = gr.Markdown(_about(AS_SET), elem_id=self.elem_id("about"))
            nearest = gr.Checkbox(
                value=False,
                label="Use the nearest supported step count (otherwise an unsupported count is an error)",
                elem_id=self.elem_id("nearest"),
            )
            file.change(_about, inputs=[file], outputs=[about], show_progress="hidden")
        self.infotext_fields = [(file, lambda d: d.get("Learned solver") or d.get("Hires learned solver"))]
        self.paste_field_names = ["Learned solver"]
        return [file, nearest]

    def process(self, p: Any, file: str = AS_SET, nearest: bool = False) -> None:
        """Stores the choices in the job; sets the nearest steps before the host makes the prompt schedule."""
        p.learned_solvers_file, p.learned_solvers_nearest = file, nearest
        self.file, self.nearest = requested_file(p), wants_nearest(p)
        if not self.nearest:
            return
        sampler = sd_samplers.create_sampler(p.sampler_name, p.sd_model)
        if not isinstance(sampler, LearnedSampler):
            return
        try:
            noise = noise_of(sampler.model_wrap, (1, 1, p.height // 8, p.width // 8))
            steps = Request.of(p, sampler.family, noise, p.sd_model).nearest(p.steps)
        except (ValueError, OSError):
            return  # the host only logs errors from here; sampling raises it again, visibly
        if steps != p.steps:
            p.comment(f"No matching solver has {p.steps} steps: using the nearest count, {steps}")
            p.steps = steps


def add_settings() -> None:
    """Adds the settings, the defaults of the accordion and the API."""
    file = shared.OptionInfo(
        AUTO,
        f"Solver file for the samplers {' and '.join(family.title for family in FAMILIES.values())}",
        gr.Dropdown,
        lambda: {"choices": [AUTO, *SOLVERS.choices()]},
        refresh=SOLVERS.choices,
        section=_SECTION,
    )
    nearest = shared.OptionInfo(
        False, "Use the nearest supported step count instead of raising an error", gr.Checkbox, section=_SECTION
    )
    shared.opts.add_option("learned_solvers_file", file)
    shared.opts.add_option("learned_solvers_nearest", nearest)


def add_axis() -> None:
    """Adds the axis to the X/Y/Z plot, if the host has loaded that, unless it has the axis already."""
    for data in scripts.scripts_data:
        options = getattr(data.module, "axis_options", None)
        if data.path.endswith("xyz_grid.py") and options is not None and all(o.label != AXIS for o in options):
            choices = {"confirm": _confirm, "choices": lambda: [AUTO, *SOLVERS.choices()]}
            options.append(data.module.AxisOption(AXIS, str, _apply, **choices))


def _apply(p: Any, file: str, files: list[str]) -> None:
    p.learned_solvers_axis = file


def _confirm(p: Any, files: list[str]) -> None:
    names = [AUTO, *SOLVERS.names()]
    if missing := [file for file in files if file not in names]:
        raise RuntimeError(f"there is no solver file named {format_list(missing)}: choose from {format_list(names)}")


def _choices() -> list[str]:
    return [AS_SET, AUTO, *SOLVERS.choices()]


def _about(file: str | None) -> str:
    """A description of a drop-down entry, one line of Markdown."""
    if not file or file == AS_SET:
        return "As chosen in *Settings > Learned Solvers*."
    if file == AUTO:
        return "A file fitted for this checkpoint, else for its architecture, else one that transfers to it."
    try:
        solver = SOLVERS.load(file)
    except (ValueError, OSError) as error:
        return f"**{error}**"
    card = solver.card
    guidance = f", at {card.guidance}" if card.guidance is not None and card.guidance.kind != "none" else ""
    return (
        f"{FAMILIES[solver.family].title} for {card.architecture} ({card.checkpoint}, {solver.prediction} prediction"
        f"{guidance}): {', '.join(map(str, solver.steps))} steps"
    )
