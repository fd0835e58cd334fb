"""The `Compare Samplers` node: learned and stock solvers at equal calls beside a many-step teacher."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import comfy.samplers
import comfy.utils
from torch import Tensor

from ..samplers.text import few, shown
from .bench import Bench, Run
from .folder import fingerprint, solver_names
from .inputs import (
    AUTO,
    CATEGORY,
    cfg_input,
    check_number,
    counts_of,
    latent_input,
    model_input,
    negative_input,
    positive_input,
    seed_input,
    solver_input,
)
from .latents import fixed_latent
from .picture_grid import Cell, Column, draw_grid
from .pictures import pictures_of

__all__ = ["CompareSamplers"]


class CompareSamplers:
    """A grid of pictures and a table of errors."""

    TITLE = "Compare Samplers"
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Samples the same noise with a learned solver and with stock samplers, all with the same number of model "
        "calls, and with a teacher of many steps. The error under each picture is its distance to the teacher's."
    )
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("grid", "table")
    OUTPUT_TOOLTIPS = (
        "A column per sampler, a row per step count and picture, the error under each.",
        "The errors as a Markdown table, best first: root mean square over the latent, in the model's own scale.",
    )
    FUNCTION = "compare"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's
        samplers = comfy.samplers.KSampler.SAMPLERS
        return {
            "required": {
                "model": model_input(),
                "positive": positive_input(),
                "negative": negative_input(),
                "latent_image": latent_input(
                    "An empty latent of the size to compare at; its batch makes several rows."
                ),
                "seed": seed_input(),
                "cfg": cfg_input(),
                "solver": solver_input(),
                "steps": (
                    "STRING",
                    {"default": "6", "tooltip": "Numbers of model calls to compare at, such as 4 6 8."},
                ),
                "samplers": (
                    "STRING",
                    {
                        "default": "euler, dpmpp_2m, uni_pc, deis",
                        "tooltip": "Stock samplers to compare with, separated by commas. euler/karras takes another "
                        "scheduler than the widget's.",
                    },
                ),
                "scheduler": (
                    comfy.samplers.KSampler.SCHEDULERS,
                    {"tooltip": "For the stock samplers and the teacher."},
                ),
                "teacher": (samplers, {"default": "heun", "tooltip": "The many-step sampler that is the measure."}),
                "teacher_steps": ("INT", {"default": 40, "min": 2, "max": 1000, "tooltip": "Steps of the teacher."}),
            },
            "optional": {
                "vae": ("VAE", {"tooltip": "For the pictures; without it they are latent previews."}),
                "more_solvers": (
                    "STRING",
                    {"default": "", "tooltip": "Further solver files, separated by commas, as in the solver widget."},
                ),
            },
        }

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> str:
        """Returns what changes when a solver file does."""
        return fingerprint(None)

    def compare(
        self,
        model: Any,
        positive: Any,
        negative: Any,
        latent_image: dict[str, Any],
        seed: int,
        cfg: float,
        solver: str,
        steps: str,
        samplers: str,
        scheduler: str,
        teacher: str,
        teacher_steps: int,
        vae: Any = None,
        more_solvers: str = "",
    ) -> tuple[Tensor, str]:
        """Returns the grid of pictures and the table of errors."""
        check_number("teacher_steps", teacher_steps, 2, 1000)
        counts, stock = counts_of(steps), _stock(samplers, scheduler)
        names = list(dict.fromkeys([solver, *_more(more_solvers)]))
        latent = fixed_latent(model, latent_image)
        if getattr(latent["samples"], "is_nested", False):
            raise ValueError(
                "a latent that holds picture and sound together cannot be compared with one error: wire the picture's "
                "latent alone"
            )
        bench = Bench(model, positive, negative, cfg, seed, latent)
        plans = {(count, entry): bench.plan(entry, count) for count in counts for entry in names}
        if all(isinstance(made, str) for made in plans.values()):
            raise ValueError(next(iter(plans.values())))  # before a minute is spent on the teacher
        bar = comfy.utils.ProgressBar(1 + len(counts) * (len(names) + len(stock)))
        goal = bench.stock(teacher, scheduler, teacher_steps, None)
        bar.update(1)
        runs = []
        for count in counts:
            for entry in names:
                runs.append((count, bench.learned(entry, plans[count, entry])))
                bar.update(1)
            for sampler, own in stock:
                runs.append((count, bench.stock(sampler, own, count, count)))
                bar.update(1)
        return _grid(model, vae, goal, runs, len(names) + len(stock)), _table(goal, runs)


def _words(text: str) -> list[str]:
    return [word for word in (part.strip() for part in re.split(r"[,\n]", text)) if word]


def _more(text: str) -> list[str]:
    """Returns the further solver files.

    Raises:
        ValueError: There is none of that name.
    """
    names = _words(text)
    for name in names:
        if name not in (known := [AUTO, *solver_names()]):
            raise ValueError(f"more_solvers: {shown(repr(name), 200)} is none of {few(known)}")
    return names


def _stock(text: str, scheduler: str) -> list[tuple[str, str]]:
    """Returns pairs of sampler and scheduler.

    Raises:
        ValueError: The host has no such sampler or scheduler.
    """
    pairs = []
    for word in _words(text):
        sampler, _, own = (part.strip() for part in word.partition("/"))
        for name, known in (
            (sampler, comfy.samplers.KSampler.SAMPLERS),
            (own, ["", *comfy.samplers.KSampler.SCHEDULERS]),
        ):
            if name not in known:
                raise ValueError(f"samplers: {word!r} names none of {', '.join(filter(None, known))}")
        pairs.append((sampler, own or scheduler))
    return list(dict.fromkeys(pairs))


def _grid(model: Any, vae: Any, goal: Run, runs: Sequence[tuple[int, Run]], width: int) -> Tensor:
    """Returns the grid: the teacher first, then `width` samplers, in every row."""
    assert goal.states is not None
    teacher = [Cell(p, f"{goal.calls} calls") for p in pictures_of(model, goal.states, vae)]
    columns, rows = [Column(goal.name, "the teacher")], []
    for start in range(0, len(runs), width):
        count, row = runs[start][0], [run for _, run in runs[start : start + width]]
        columns += [Column(run.name, "learned" if run.ours else "", run.ours) for run in row] if start == 0 else []
        cells = [_cells(model, vae, goal.states, run, count) for run in row]
        rows += [(f"{count} calls", [teacher[i], *(c[i] for c in cells)]) for i in range(len(teacher))]
    return draw_grid("The same noise, the same model: who comes closest to the teacher?", columns, rows)


def _cells(model: Any, vae: Any, goal: Tensor, run: Run, count: int) -> list[Cell]:
    if run.states is None:
        return [Cell(None, run.refusal)] * len(goal)
    remark = f" ({run.calls} calls)" if run.calls != count else f", {run.file}" if run.file else ""
    pictures = pictures_of(model, run.states, vae)
    return [Cell(p, f"error {e:.4f}{remark}") for p, e in zip(pictures, run.errors(goal), strict=True)]


def _table(goal: Run, runs: Sequence[tuple[int, Run]]) -> str:
    """Returns the Markdown table, best first within each step count."""
    end = goal.states
    assert end is not None
    lines = [f"Teacher: {goal.name}, {goal.calls} calls", "", "| calls | sampler | made | error |", "|---|---|---|---|"]
    for count, run in sorted(runs, key=lambda pair: (pair[0], pair[1].error(end))):
        name = f"**{run.name}**{run.file and f' ({run.file})'}" if run.ours else run.name
        shown = run.refusal if run.states is None else f"{run.error(end):.6f}"
        lines.append(f"| {count} | {name} | {run.calls} | {shown} |")
    return "\n".join(lines)
