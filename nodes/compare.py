"""The `Compare Samplers` node: learned and stock samplers at equal model calls, compared with a teacher."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from ..samplers.text import format_list, printable
from .base import AUTO, SolverNode, check_number, counts_of, fixed_latent, inputs
from .folder import SOLVERS
from .host_runs import HostRuns
from .pictures import pictures_of, to_image
from .sampling import guidance_of
from .selection import select_solver

if TYPE_CHECKING:
    from ..training.comparison.measure import Entry, Result

__all__ = ["CompareSamplers"]


class CompareSamplers(SolverNode):
    """A grid of images and a table of errors."""

    TITLE = "Compare Samplers"
    SEARCH_ALIASES = ("benchmark samplers", "sampler grid", "xy plot")
    DESCRIPTION = (
        "Samples the same noise with a learned solver and with stock samplers, all with the same number of model "
        "calls, and with a many-step teacher. The error under each image is its distance to the teacher's result."
    )
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("grid", "table")
    OUTPUT_TOOLTIPS = (
        "One column per sampler, one row per step count and image, with the error under each.",
        "The errors as a Markdown table, best first: root mean square over the latent, in the model's own scale.",
    )
    FUNCTION = "compare"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's
        host = comfy.samplers.KSampler
        return {
            "required": {
                **inputs(
                    "model",
                    "positive",
                    "negative",
                    latent_image={"tooltip": "An empty latent of the size to compare at; a batch gives several rows."},
                    seed={},
                    cfg={},
                    solver={},
                ),
                "steps": (
                    "STRING",
                    {"default": "6", "tooltip": "Numbers of model calls to compare at, such as 4 6 8."},
                ),
                "samplers": (
                    "STRING",
                    {
                        "default": "euler, dpmpp_2m, uni_pc, deis",
                        "tooltip": "Stock samplers to compare with, separated by commas. Write euler/karras to "
                        "override the scheduler widget for one sampler.",
                    },
                ),
                "scheduler": (host.SCHEDULERS, {"tooltip": "For the stock samplers and the teacher."}),
                "teacher": (host.SAMPLERS, {"default": "heun", "tooltip": "Many-step sampler to measure against."}),
                "teacher_steps": ("INT", {"default": 40, "min": 2, "max": 1000, "tooltip": "Steps of the teacher."}),
            },
            "optional": {
                **inputs(vae={"tooltip": "Decodes the images. Without it, latent previews are shown."}),
                "more_solvers": (
                    "STRING",
                    {"default": "", "tooltip": "More solver files, separated by commas, as in the solver widget."},
                ),
            },
        }

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> str:
        """A fingerprint of all solver files."""
        return SOLVERS.fingerprint()

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
        """Returns the grid of images and the table of errors."""
        from ..training.comparison.measure import Entry, compare, teacher_result
        from ..training.data.samples import Samples

        check_number("teacher_steps", teacher_steps, 2, 1000)
        counts, stock = counts_of(steps), _stock_samplers(samplers, scheduler)
        for name in (more := _split_words(more_solvers)):
            _check_name("more_solvers", "solver", name, [AUTO, *SOLVERS.names()])
        names = dict.fromkeys([solver, *more])
        latent = fixed_latent(model, latent_image)
        if getattr(latent["samples"], "is_nested", False):
            raise ValueError(
                "this latent combines video and audio, but one error cannot cover both: connect only the video latent"
            )
        shape, guidance = latent["samples"].shape, guidance_of(model.model, [entry[1] for entry in positive], cfg)
        runs = HostRuns(model, positive, negative, cfg, seed, 1 + len(counts) * (len(names) + len(stock)))
        entries: dict[int, list[Entry]] = {n: [] for n in counts}
        refusals = []
        for n, name in product(counts, names):
            try:
                sampler, sigmas, _, file, _ = select_solver(model, name, n, shape=shape, guidance=guidance)
                run = partial(runs.attempt, partial(runs.sample, sampler, sigmas))
                entry = Entry(name, "" if file == name else file, run, learned=True)
            except ValueError as error:
                refusals.append(error)
                entry = Entry(name, "", partial(runs.refuse, error), learned=True)
            entries[n].append(entry)
        if len(refusals) == len(counts) * len(names):
            raise refusals[0]  # before the teacher's slow run
        for n in counts:
            entries[n] += [
                Entry("/".join(pair), "", partial(runs.attempt, partial(runs.within, *pair, n))) for pair in stock
            ]
        noise = comfy.sample.prepare_noise(latent["samples"], seed, latent.get("batch_index"))
        starts = Samples(noise, {"latent": latent["samples"]}, len(noise))

        def run_teacher(start: int, stop: int) -> Tensor:
            rows = starts.rows(start, stop)
            return runs.stock(teacher, scheduler, teacher_steps, rows.x, rows.extra_args)

        goal = torch.cat(list(runs.each(starts, run_teacher)))
        reference = teacher_result(f"{teacher}/{scheduler}", runs.calls // len(goal), goal)
        results = compare(entries, runs, starts, goal, pictures=len(goal))
        grid = _grid(reference, results, entries, lambda ends: pictures_of(model, ends, vae))
        return grid, _table(reference, results)


def _split_words(text: str) -> list[str]:
    return [word for part in re.split(r"[,\n]", text) if (word := part.strip())]


def _check_name(widget: str, kind: str, name: str, choices: Sequence[str]) -> None:
    if name not in choices:
        raise ValueError(
            f"{widget}: unknown {kind} {printable(repr(name), 200)}; choose from {format_list(choices, most=60)}"
        )


def _stock_samplers(text: str, scheduler: str) -> list[tuple[str, str]]:
    """Pairs of sampler and scheduler; ValueError for a name that the host does not have."""
    pairs = {}
    for word in _split_words(text):
        sampler, _, own_scheduler = (part.strip() for part in word.partition("/"))
        _check_name("samplers", "sampler", sampler, comfy.samplers.KSampler.SAMPLERS)
        _check_name("samplers", "scheduler", own_scheduler or scheduler, comfy.samplers.KSampler.SCHEDULERS)
        pairs[sampler, own_scheduler or scheduler] = None
    return list(pairs)


def _grid(
    teacher: Result,
    results: Sequence[Result],
    entries: Mapping[int, Sequence[Entry]],
    pictures: Callable[[Tensor], Tensor],
) -> Tensor:
    """The grid of images: a row per step count and start; the teacher first, then the samplers as in `entries`."""
    from ..training.comparison.sheet import Cell, Head, draw_sheet

    def cells(result: Result) -> list[Cell]:
        if result.ends is None:
            return [Cell(None, result.refusal)] * len(teacher.errors)
        remark = f" ({result.used} calls)" if result.used != result.calls else result.grid and f", {result.grid}"
        captions = [f"error {error:.4f}{remark}" for error in result.errors]
        return [Cell(picture, text) for picture, text in zip(pictures(result.ends), captions, strict=True)]

    reference = [replace(cell, caption=f"{teacher.used} calls") for cell in cells(teacher)]
    by_method = {(result.calls, result.method): result for result in results}
    rows, lines = [], []
    columns = [Head(teacher.method, "the teacher")]
    columns += [Head(e.method, "learned" if e.learned else "stock", e.learned) for e in next(iter(entries.values()))]
    for calls, samplers in entries.items():
        lines += zip(reference, *(cells(by_method[calls, entry.method]) for entry in samplers), strict=True)
        rows += [Head(f"{calls} calls")] * len(reference)
    title = "Same noise, same model: which sampler is closest to the teacher?"
    return to_image(draw_sheet(title, columns, rows, lines))


def _table(teacher: Result, results: Sequence[Result]) -> str:
    """The Markdown table, best first within each step count."""
    lines = [f"Teacher: {teacher.method}, {teacher.used} calls", ""]
    lines += ["| calls | sampler | calls made | error |", "|---|---|---|---|"]
    for result in sorted(results, key=lambda result: (result.calls, result.error)):
        name = f"**{result.method}**{result.grid and f' ({result.grid})'}" if result.learned else result.method
        lines.append(f"| {result.calls} | {name} | {result.used} | {result.refusal or f'{result.error:.6f}'} |")
    return "\n".join(lines)
