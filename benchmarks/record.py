"""The results files: a record per measurement, each with how, when and with what it was made.

    {"fidelity-digits-3.0": {"about": {"command": "python -m benchmarks ...", "date": ..., ...}, "record": {...}}, ...}

Measurements that are made again replace their own records alone.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from learned_solvers.samplers.files.card import VERSION
from learned_solvers.samplers.files.write import write_whole

__all__ = ["RESULTS", "SOLVERS", "Run", "about", "check_record", "keep", "named", "read_records", "records"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
SOLVERS = RESULTS / "solvers"


@dataclass(frozen=True)
class Run:
    """One measurement that was made: how, what was found, and the folder of the solver files that it wrote."""

    about: Mapping[str, Any]
    record: Any
    solvers: Path | None = None


def about(command: str, **more: Any) -> dict[str, Any]:
    """Returns what is to be known of measurements that begin now: date, commit, versions, and what is given."""
    return {
        "command": command, **more, "date": date.today().isoformat(), "version": VERSION, "commit": _commit(),
        "torch": torch.__version__, "python": platform.python_version(),
    }  # fmt: skip


def named(part: str) -> dict[str, Any]:
    """Returns the records of a part by name, in the order of its jobs; none where it has not been measured."""
    return {name: kept["record"] for name, kept in read_records(RESULTS / f"{part}.json").items()}


def records(part: str) -> list[Any]:
    """Returns the records of a part, in the order of its jobs."""
    return list(named(part).values())


def keep(part: str, name: str, run: Run, order: Sequence[str]) -> None:
    """Puts a measurement in the place of the one of its name, its solver files with it.

    Args:
        part: What it belongs to, the name of the results file.
        name: Its name.
        run: What was found.
        order: The names that the part has, in the order of the file; what is recorded under others comes after them.
    """
    path = RESULTS / f"{part}.json"
    kept = {**read_records(path), name: {"about": dict(run.about), "record": run.record}}
    kept = {n: kept[n] for n in [*(n for n in order if n in kept), *(n for n in kept if n not in order)]}
    write_whole(path, (json.dumps(kept, indent=1) + "\n").encode())
    for file in sorted(run.solvers.glob("*.safetensors")) if run.solvers else ():
        write_whole(SOLVERS / file.name, file.read_bytes())


def check_record(part: str) -> None:
    """Refuses, before hours of measuring, a results file that the measurements cannot be put into.

    Raises:
        ValueError: It cannot be read, or its folder cannot be written to.
    """
    read_records(RESULTS / f"{part}.json")
    RESULTS.mkdir(exist_ok=True)
    if not os.access(RESULTS, os.W_OK):
        raise ValueError(f"{RESULTS} cannot be written to: measurements would be lost")


def read_records(path: Path) -> dict[str, Any]:
    """Returns what a results file holds; nothing where there is none.

    Raises:
        ValueError: It is broken.
    """
    try:
        found = json.loads(path.read_text("utf-8")) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path} is broken ({error}): take it back from git, or delete it") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold records by name: take it back from git, or delete it")
    return found


def _commit() -> str | None:
    """Returns the commit that is checked out, with a + where its code is changed; None outside a repository."""

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != ROOT:  # unpacked below another repository
            return None
        changed = git("status", "--porcelain", "--", "samplers", "training", "benchmarks/*.py", "benchmarks/networks")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
