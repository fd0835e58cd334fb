"""The accordion of the txt2img and img2img tabs: a solver file for this tab, and what to do about missing steps."""

from __future__ import annotations

from typing import Any

import gradio as gr
from modules import scripts, sd_samplers
from modules.ui_common import create_refresh_button

from ..samplers.choose import nearest_steps
from .choice import AS_SET, AUTO, fitting_solvers, wants_nearest
from .files import PLACE, described, solver_names
from .host_model import architecture, noise_of
from .sampler import LearnedSampler

__all__ = ["LearnedSolversScript"]

_HELP = (
    "For the samplers **DyWeight** and **DS-Solver**. They have noise levels of their own: *Schedule type* does not "
    f"act on them. Your solver files go into `{PLACE.as_posix()}`."
)


class LearnedSolversScript(scripts.Script):
    """The accordion; its choices go into the job, so that tabs and users do not see each other's."""

    def title(self) -> str:
        """Returns the name by which the API's alwayson_scripts call it."""
        return "Learned Solvers"

    def show(self, is_img2img: bool) -> Any:
        """Returns that it is there in both tabs."""
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        """Returns the accordion's inputs: solver file, nearest."""
        with gr.Accordion(self.title(), open=False, elem_id=self.elem_id("accordion")):
            gr.Markdown(_HELP)
            with gr.Row():
                file = gr.Dropdown(
                    _choices(),
                    value=AS_SET,
                    label="Solver file",
                    allow_custom_value=True,  # a pasted name whose file is missing is refused with words, not by Gradio
                    elem_id=self.elem_id("file"),
                )
                create_refresh_button(file, lambda: None, lambda: {"choices": _choices()}, self.elem_id("refresh"))
            about = gr.Markdown(_about(AS_SET), elem_id=self.elem_id("about"))
            near = gr.Checkbox(
                value=False,
                label="Take the nearest step count that the solver has (otherwise a missing one is an error)",
                elem_id=self.elem_id("nearest"),
            )
            file.change(_about, inputs=[file], outputs=[about], show_progress="hidden")
        self.infotext_fields = [(file, lambda d: d.get("Learned solver") or d.get("Hires learned solver"))]
        self.paste_field_names = ["Learned solver"]
        return [file, near]

    def process(self, p: Any, file: str = AS_SET, near: bool = False) -> None:
        """Notes the choices in the job; takes the nearest steps before the host makes the prompt schedule."""
        p.learned_solvers_file, p.learned_solvers_nearest = file, near
        if not wants_nearest(p):
            return
        sampler = sd_samplers.create_sampler(p.sampler_name, p.sd_model)
        if not isinstance(sampler, LearnedSampler):
            return
        try:
            noise = noise_of(sampler.model_wrap, (1, 1, p.height // 8, p.width // 8))
            fitting = fitting_solvers(p, sampler.family, noise, architecture(p.sd_model))
        except ValueError:
            return  # the host only logs what is raised here; sampling raises it again, where the user sees it
        counts = {count for solver in fitting for count in solver.steps}
        if counts and p.steps not in counts:
            steps = nearest_steps(counts, p.steps)
            p.comment(f"No solver that fits has {p.steps} steps: took the nearest count, {steps}")
            p.steps = steps


def _choices() -> list[str]:
    return [AS_SET, AUTO, *solver_names()]


def _about(file: str | None) -> str:
    if not file or file == AS_SET:
        return "*Settings > Learned Solvers* decides."
    if file == AUTO:
        return "A file that was fitted for the model's architecture with these steps, else one that transfers to it."
    return described(file)
