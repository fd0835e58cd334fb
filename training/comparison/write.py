"""What a comparison leaves: the table, the record it was made from, the plot and the pictures."""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...samplers.files.card import VERSION
from ..data.teacher import Teacher
from .measure import Entry, Row, Subject, run_entry
from .plot import save_plot
from .sheet import Strip, save_strips

__all__ = ["FILES", "write_files"]

FILES = ("compare.md", "compare.json", "compare.png", "pictures.png")
_SHOWN = 6  # starts in the picture grid


def write_files(
    args: argparse.Namespace, subject: Subject, teacher: Teacher, found: dict[Row, Entry], ends: Tensor
) -> str:
    """Returns the table and where all files are, for people, after writing them.

    Args:
        args: The command's options.
        subject: What was compared on.
        teacher: The measure.
        found: The comparison's result.
        ends: The teacher's ends, shape [S, ...].
    """
    rows = list(found)
    args.output.mkdir(parents=True, exist_ok=True)
    facts = {
        "command": args.command,
        "date": date.today().isoformat(),
        "versions": {"learned_solvers": VERSION, "torch": torch.__version__, "python": platform.python_version()}
        | subject.versions,
        "model": subject.name,
        "teacher": {"method": args.teacher, "steps": args.teacher_steps, "calls": teacher.calls},
        "samples": len(subject.samples),
        "seed": args.seed,
        "network_calls": subject.model.calls,
    }
    table, record, plot, pictures = (args.output / name for name in FILES)
    table.write_text(_markdown(facts, rows), encoding="utf-8")
    record.write_text(json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=1) + "\n", encoding="utf-8")
    if not args.no_plot:
        save_plot(plot, f"Error to a {teacher.calls}-call teacher: {subject.name}", rows, subject.best_peer)
    _draw(pictures, subject, found, ends, f"{args.teacher}, {teacher.calls} calls")
    written = [table, record, *([] if args.no_plot else [plot]), pictures]
    return f"{_table(rows)}\n\nwritten: {', '.join(map(str, written))}"


def _markdown(facts: dict[str, Any], rows: list[Row]) -> str:
    teacher, versions = facts["teacher"], ", ".join(f"{k} {v}" for k, v in facts["versions"].items())
    return (
        f"# Solvers compared: {facts['model']}\n\n{_table(rows)}\n\n"
        f"Root mean square distance to the ends of {teacher['method']} with {teacher['calls']} calls, over "
        f"{facts['samples']} starts (seed {facts['seed']}); bold is the least. In brackets the peer's best grid, the "
        "one with the least error on these very starts. Peers are ComfyUI's samplers of these names; those with an "
        "order (ab 2, ipndm 3) keep it to the last step. Heun takes two calls a step and one in the last: of an even "
        "number it leaves one unused. A dash: the solver has no such number of calls.\n\n"
        f"`{facts['command']}`, {facts['date']}, {versions}; {facts['network_calls']:,} network calls.\n"
    )


def _table(rows: list[Row]) -> str:
    """Returns a Markdown table: a line per solver, ours first, a column per number of calls."""
    steps = sorted({row.calls for row in rows})
    cells = {(row.method, row.calls): row for row in rows}
    best = {n: min(row.error for row in rows if row.calls == n) for n in steps}
    ours = [m for m in dict.fromkeys(row.method for row in rows if row.ours)]
    peers = sorted(
        dict.fromkeys(row.method for row in rows if not row.ours),
        key=lambda m: min((cells[m, n].error / best[n] for n in steps if (m, n) in cells), default=0),
    )

    def cell(method: str, n: int) -> str:
        row = cells.get((method, n))
        if row is None:
            return "-"
        error = f"**{row.error:.4f}**" if row.error == best[n] else f"{row.error:.4f}"
        return error if row.ours else f"{error} ({row.grid})"

    lines = ["| calls | " + " | ".join(map(str, steps)) + " |", "|---" * (len(steps) + 1) + "|"]
    lines += [f"| {method} | " + " | ".join(cell(method, n) for n in steps) + " |" for method in [*ours, *peers]]
    return "\n".join(lines)


def _draw(path: Path, subject: Subject, found: dict[Row, Entry], ends: Tensor, teacher: str) -> None:
    """Draws a few starts: the teacher, and of up to three numbers of calls the best peer and the best of ours."""
    shown = subject.samples.rows(0, min(_SHOWN, len(subject.samples)))
    strips: list[tuple[str, str, Tensor]] = [(teacher, "the teacher", ends[: len(shown)])]
    steps = sorted({row.calls for row in found})
    for n in steps if len(steps) <= 3 else (steps[0], steps[len(steps) // 2], steps[-1]):
        for ours in (False, True):
            rows = [row for row in found if row.calls == n and row.ours == ours]
            if rows:
                row = min(rows, key=lambda row: row.error)
                remark = f"{row.used} calls{'' if ours else f' on {row.grid}'}: {row.error:.4f}"
                strips.append((row.method, remark, run_entry(found[row], shown)))
    pictures = subject.pictures(torch.cat([end for _, _, end in strips]))
    parts: list[Strip] = [
        (name, remark, part) for (name, remark, _), part in zip(strips, pictures.split(len(shown)), strict=True)
    ]
    title = f"{subject.name}: the same starts, with the errors over all {len(subject.samples)}"
    save_strips(path, title, parts, size=96)
