"""The `Compare Samplers` node: learned and stock solvers at equal calls, next to a many-step teacher."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import comfy.sample
import comfy.samplers
from torch import Tensor

from ..samplers.text import few, shown
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
    """A grid of pictures and a table of errors."""

    TITLE = "Compare Samplers"
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
        host = comfy.samplers.KSampler
        return {
            "required": {
                **inputs(
                    "model",
                    "positive",
                    "negative",
                    latent_image={
                        "tooltip": "An empty latent of the size to compare at; its batch makes several rows."
                    },
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
                        "tooltip": "Stock samplers to compare with, separated by commas. euler/karras takes another "
                        "scheduler than the widget's.",
                    },
                ),
                "scheduler": (host.SCHEDULERS, {"tooltip": "For the stock samplers and the teacher."}),
                "teacher": (host.SAMPLERS, {"default": "heun", "tooltip": "The many-step sampler to measure against."}),
                "teacher_steps": ("INT", {"default": 40, "min": 2, "max": 1000, "tooltip": "Steps of the teacher."}),
            },
            "optional": {
                **inputs(vae={"tooltip": "For the pictures; without it they are latent previews."}),
                "more_solvers": (
                    "STRING",
                    {"default": "", "tooltip": "Further solver files, separated by commas, as in the solver widget."},
                ),
            },
        }

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> str:
        """A text that changes when any solver file does."""
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
        """Returns the grid of pictures and the table of errors."""
        from ..training.comparison.measure import Entry, compare, teacher_result
        from ..training.data.samples import Samples

        check_number("teacher_steps", teacher_steps, 2, 1000)
        counts, stock = counts_of(steps), _stock_samplers(samplers, scheduler)
        for name in (more := _words(more_solvers)):
            _check_known("more_solvers", "solver", name, [AUTO, *SOLVERS.names()])
        names = dict.fromkeys([solver, *more])
        latent = fixed_latent(model, latent_image)
        if getattr(latent["samples"], "is_nested", False):
            raise ValueError(
                "a latent that holds picture and sound together cannot be compared with one error: wire the picture's "
                "latent alone"
            )
        shape, guidance = latent["samples"].shape, guidance_of(model.model, [entry[1] for entry in positive], cfg)
        runs = HostRuns(model, positive, negative, cfg, seed, 1 + len(counts) * (len(names) + len(stock)))
        entries: dict[int, list[Entry]] = {n: [] for n in counts}
        refusals = []
        for n, name in product(counts, names):
            try:
                sampler, sigmas, _, file = select_solver(model, name, n, shape=shape, guidance=guidance)
                entry = Entry(name, "" if file == name else file, partial(runs.sample, sampler, sigmas), ours=True)
            except ValueError as error:
                refusals.append(error)
                entry = Entry(name, "", partial(runs.refuse, error), ours=True)
            entries[n].append(entry)
        if len(refusals) == len(counts) * len(names):
            raise refusals[0]  # before a minute is spent on the teacher
        for n in counts:
            entries[n] += [Entry("/".join(pair), "", partial(runs.within, *pair, n)) for pair in stock]
        noise = comfy.sample.prepare_noise(latent["samples"], seed, latent.get("batch_index"))
        starts = Samples(noise, {"latent": latent["samples"]}, len(noise))
        goal = runs.stock(teacher, scheduler, teacher_steps, starts.x, starts.extra_args)
        reference = teacher_result(f"{teacher}/{scheduler}", runs.calls // len(goal), goal)
        results = compare(entries, runs, starts, goal, pictures=len(goal))
        grid = _grid(reference, results, entries, lambda ends: pictures_of(model, ends, vae))
        return grid, _table(reference, results)


def _words(text: str) -> list[str]:
    return [word for part in re.split(r"[,\n]", text) if (word := part.strip())]


def _check_known(widget: str, kind: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ValueError(f"{widget}: unknown {kind} {shown(repr(name), 200)}; choose from {few(known, most=60)}")


def _stock_samplers(text: str, scheduler: str) -> list[tuple[str, str]]:
    """Pairs of sampler and scheduler; a name that the host does not have is refused."""
    pairs = {}
    for word in _words(text):
        sampler, _, named = (part.strip() for part in word.partition("/"))
        _check_known("samplers", "sampler", sampler, comfy.samplers.KSampler.SAMPLERS)
        _check_known("samplers", "scheduler", named or scheduler, comfy.samplers.KSampler.SCHEDULERS)
        pairs[sampler, named or scheduler] = None
    return list(pairs)


def _grid(
    teacher: Result,
    results: Sequence[Result],
    entries: Mapping[int, Sequence[Entry]],
    pictures: Callable[[Tensor], Tensor],
) -> Tensor:
    """The grid: a row per step count and start; the teacher first, then the samplers in the order of the entries."""
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
    columns += [Head(e.method, "learned" if e.ours else "stock", e.ours) for e in next(iter(entries.values()))]
    for calls, samplers in entries.items():
        lines += zip(reference, *(cells(by_method[calls, entry.method]) for entry in samplers), strict=True)
        rows += [Head(f"{calls} calls")] * len(reference)
    title = "The same noise, the same model: who comes closest to the teacher?"
    return to_image(draw_sheet(title, columns, rows, lines))


def _table(teacher: Result, results: Sequence[Result]) -> str:
    """The Markdown table, best first within each step count."""
    lines = [f"Teacher: {teacher.method}, {teacher.used} calls", ""]
    lines += ["| calls | sampler | made | error |", "|---|---|---|---|"]
    for result in sorted(results, key=lambda result: (result.calls, result.error)):
        name = f"**{result.method}**{result.grid and f' ({result.grid})'}" if result.ours else result.method
        lines.append(f"| {result.calls} | {name} | {result.used} | {result.refusal or f'{result.error:.6f}'} |")
    return "\n".join(lines)
