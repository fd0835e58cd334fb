"""The results files: a record per measurement, each with how, when and with what it was made.

    {"fidelity-digits-3.0": {"about": {"command": "python -m benchmarks ...", "date": ..., ...}, "record": {...}}, ...}

Measurements that are made again replace their own records alone.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from learned_solvers.samplers.version import VERSION

__all__ = ["RESULTS", "SOLVERS", "Run", "keep", "records"]

RESULTS = Path(__file__).resolve().parent / "results"
SOLVERS = RESULTS / "solvers"


@dataclass(frozen=True)
class Run:
    """One measurement that was made: its record, and the solver files that it wrote into a folder of its own."""

    record: Any
    seconds: float
    solvers: Path | None = None


def records(part: str, folder: Path = RESULTS) -> list[Any]:
    """Returns the records of a part, in the order of its jobs; none where it has not been measured."""
    return [kept["record"] for kept in _read(folder / f"{part}.json").values()]


def keep(part: str, name: str, run: Run, order: Sequence[str], about: Mapping[str, Any]) -> None:
    """Puts a measurement in the place of the one of its name, its solver files with it.

    Args:
        part: What it belongs to, the name of the results file.
        name: Its name.
        run: What was found.
        order: All names that the part has, in the order of the file; what is recorded of others is dropped.
        about: How it was made, beside what is known here.
    """
    SOLVERS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{part}.json"
    about = {
        **about, "date": date.today().isoformat(), "seconds": round(run.seconds), "version": VERSION,
        "commit": _commit(), "torch": torch.__version__, "python": platform.python_version(),
    }  # fmt: skip
    kept = {**_read(path), name: {"about": about, "record": run.record}}
    path.write_text(json.dumps({n: kept[n] for n in order if n in kept}, indent=1) + "\n")
    for file in sorted(run.solvers.glob("*.safetensors")) if run.solvers else ():
        shutil.copy(file, SOLVERS / file.name)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _commit() -> str | None:
    """Returns the commit that is checked out, with a + where code differs from it; None outside a repository."""

    def git(*command: str) -> str:
        own = Path(__file__).resolve().parent.parent
        return subprocess.run(["git", *command], cwd=own, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "--", "*.py") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
