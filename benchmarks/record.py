"""The results files: measurements by name, each with its record and its provenance.

    {"fidelity-digits-3.0": {"about": {"command": "python -m benchmarks ...", "date": ..., ...}, "record": {...}}, ...}

A repeated measurement replaces only its own entry.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from learned_solvers.samplers.files.card import VERSION
from learned_solvers.samplers.files.write import write_whole

__all__ = ["RESULTS", "SOLVERS", "check_part", "provenance", "read_measurements", "read_records", "save"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
SOLVERS = RESULTS / "solvers"


def provenance(command: str, **more: Any) -> dict[str, Any]:
    """The provenance of measurements that begin now: command, date, commit and versions."""
    return {
        "command": command, **more, "date": date.today().isoformat(), "version": VERSION, "commit": _commit(),
        "torch": torch.__version__, "python": platform.python_version(),
    }  # fmt: skip


def read_measurements(path: Path) -> dict[str, Any]:
    """The content of a results file; empty if it does not exist, ValueError if it is broken."""
    try:
        content = json.loads(path.read_text("utf-8")) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path} is broken ({error}): restore it from git or delete it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} contains no measurements by name: restore it from git or delete it")
    return content


def read_records(part: str) -> dict[str, Any]:
    """The records of a part by name, in the order of its jobs; empty if it has not been measured."""
    return {name: measurement["record"] for name, measurement in read_measurements(RESULTS / f"{part}.json").items()}


def check_part(part: str) -> None:
    """Raises ValueError, before hours of work, if a part's results file cannot be read or written."""
    read_measurements(RESULTS / f"{part}.json")
    RESULTS.mkdir(exist_ok=True)
    if not os.access(RESULTS, os.W_OK):
        raise ValueError(f"{RESULTS} is not writable: make it writable, or the measurements would be lost")


def save(
    part: str, name: str, measurement: Mapping[str, Any], order: Sequence[str] = (), solvers: Path | None = None
) -> None:
    """Replaces one measurement of a part, and the solver files that it made in the folder `solvers`.

    Names that are not in `order` come last in the file.
    """
    path = RESULTS / f"{part}.json"
    stored = {**read_measurements(path), name: measurement}
    names = [*(n for n in order if n in stored), *(n for n in stored if n not in order)]
    write_whole(path, (json.dumps({n: stored[n] for n in names}, indent=1) + "\n").encode())
    for file in sorted(solvers.glob("*.safetensors")) if solvers else ():
        write_whole(SOLVERS / file.name, file.read_bytes())


def _commit() -> str | None:
    """The current commit, with a + if the code has uncommitted changes; None outside a repository."""

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != ROOT:  # unpacked below another repository
            return None
        changed = git("status", "--porcelain", "--", "samplers", "training", "benchmarks/*.py", "benchmarks/networks")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
