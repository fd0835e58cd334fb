"""The files of a comparison: the table, the record, the plot and the pictures."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...samplers.files.card import VERSION
from ..data.teacher import Teacher
from .measure import ComparedModel, Result, teacher_result
from .plot import draw_errors
from .sheet import draw_results

__all__ = ["FILES", "PICTURES", "write_files"]

FILES = ("compare.md", "compare.json", "compare.png", "pictures.png")
PICTURES = 6  # starts drawn in the picture
_RECORDED = ("calls", "used", "method", "grid", "error", "grids")


def write_files(
    folder: Path,
    command: str,
    model: ComparedModel,
    teacher: Teacher,
    seed: int,
    goal: Tensor,
    results: Sequence[Result],
    *,
    plot: bool,
) -> str:
    """Writes the files and returns the table and their paths as text; `goal`: the teacher's end states."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / name for name in FILES if plot or name != "compare.png"}
    versions = {"learned_solvers": VERSION, "torch": torch.__version__, "python": platform.python_version()}
    if "comfy.samplers" in sys.modules:
        versions["comfyui"] = import_module("comfyui_version").__version__
    record = {
        "command": command,
        "date": date.today().isoformat(),
        "versions": versions,
        "model": model.name,
        "teacher": {"method": teacher.method, "steps": teacher.steps, "calls": teacher.calls},
        "samples": len(model.samples),
        "seed": seed,
        "network_calls": model.denoiser.calls,
        "rows": [{**{name: getattr(result, name) for name in _RECORDED}, "ours": result.learned} for result in results],
    }
    table = _table(results)
    paths["compare.md"].write_text(_markdown(record, table), encoding="utf-8")
    paths["compare.json"].write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if plot:
        title = f"Error to a {teacher.calls}-call teacher: {model.name}"
        draw_errors(title, results).save(paths["compare.png"])
    rows = [teacher_result(teacher.method, teacher.calls, goal[:PICTURES]), *_best_results(results)]
    title = f"{model.name}: the same starts, with the errors over all {len(model.samples)}"
    draw_results(title, rows, model.pictures, side=96).save(paths["pictures.png"])
    return f"{table}\n\nwritten: {', '.join(map(str, paths.values()))}"


def _markdown(facts: Mapping[str, Any], table: str) -> str:
    teacher, versions = facts["teacher"], ", ".join(f"{name} {text}" for name, text in facts["versions"].items())
    return (
        f"# Solvers compared: {facts['model']}\n\n{table}\n\n"
        f"Errors are root mean square distances to the end states of {teacher['method']} with {teacher['calls']} "
        f"calls, over {facts['samples']} starts (seed {facts['seed']}). Bold: the smallest error of a column. In "
        "parentheses: a stock sampler's best grid, chosen on the same starts. Stock samplers go by their ComfyUI "
        "names; those with an order (ab 2, ipndm 3) use it up to the last step. Heun's method makes two calls per step "
        "and one in the last, so if the number of calls is even, one is left unused. A dash: the solver does not "
        "support that number of calls.\n\n"
        f"`{facts['command']}`, {facts['date']}, {versions}; {facts['network_calls']:,} network calls.\n"
    )


def _table(results: Sequence[Result]) -> str:
    """A Markdown table with a line per solver, learned ones first, and a column per number of calls."""
    counts = sorted({result.calls for result in results})
    cells = {(result.method, result.calls): result for result in results}
    smallest = {n: min(result.error for result in results if result.calls == n) for n in counts}

    def rank(method: str) -> float:
        return min(result.error / smallest[n] for (name, n), result in cells.items() if name == method)

    def text(method: str, n: int) -> str:
        result = cells.get((method, n))
        if result is None:
            return "-"
        error = f"**{result.error:.4f}**" if result.error == smallest[n] else f"{result.error:.4f}"
        return error if result.learned else f"{error} ({result.grid})"

    learned = list(dict.fromkeys(result.method for result in results if result.learned))
    peers = sorted(dict.fromkeys(result.method for result in results if not result.learned), key=rank)
    lines = ["| calls | " + " | ".join(map(str, counts)) + " |", "|---" * (len(counts) + 1) + "|"]
    lines += [f"| {method} | " + " | ".join(text(method, n) for n in counts) + " |" for method in [*learned, *peers]]
    return "\n".join(lines)


def _best_results(results: Sequence[Result]) -> list[Result]:
    """The best learned solver and the best peer at up to three numbers of calls."""
    counts = sorted({result.calls for result in results})
    counts = counts if len(counts) <= 3 else [counts[0], counts[len(counts) // 2], counts[-1]]
    groups = ([r for r in results if (r.calls, r.learned) == (n, learned)] for n in counts for learned in (True, False))
    return [min(group, key=lambda result: result.error) for group in groups if group]
