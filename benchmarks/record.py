"""The results files: measurements by name, each with its record and its provenance.

    {"fidelity-digits-3.0": {"about": {"command": "python -m benchmarks", "commit": ..., ...}, "record": {...}}, ...}

A measurement is current while the code that it depends on is the same; others are measured again by the next run.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch
from learned_solvers.samplers.files.card import VERSION
from learned_solvers.samplers.files.write import write_whole

__all__ = ["RESULTS", "check_part", "code_hash", "provenance", "read_measurements", "read_records", "save"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
_FITTING = ("data", "models", "optimise", "spaces", "starts", "store")  # not: command, comparison, published
_MEASURED_CODE = (
    "samplers/**/*",
    "training/*",
    *(f"training/{part}/*" for part in _FITTING),
    "benchmarks/*",
    "benchmarks/networks/*",
)
_TEXTS = ("__main__", "figures", "goals", "jobs", "quick", "record", "tables")
_NOT_MEASURED = {"training/report.py", *(f"benchmarks/{name}.py" for name in _TEXTS)}


@cache
def code_hash() -> str:
    """A hash of the code, weights and lists that measurements depend on."""
    files = {path for pattern in _MEASURED_CODE for path in ROOT.glob(pattern)}
    digest = hashlib.sha256()
    for path in sorted(files):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix in (".py", ".json", ".safetensors") and name not in _NOT_MEASURED:
            digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    return digest.hexdigest()[:12]


def provenance(command: str, **more: Any) -> dict[str, Any]:
    """The provenance of measurements that begin now: command, date, code, machine and versions."""
    return {
        "command": command, **more, "date": date.today().isoformat(), "version": VERSION, "commit": _commit(),
        "code": code_hash(), "machine": _machine(), "torch": torch.__version__, "numpy": numpy.__version__,
        "python": platform.python_version(),
    }  # fmt: skip


def read_measurements(path: Path) -> dict[str, Any]:
    """The content of a results file; empty if it does not exist, ValueError if it is broken."""
    try:
        content = json.loads(path.read_text("utf-8")) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path} is broken ({error}): restore it from git or delete it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} contains no measurements by name: restore it from git or delete it")
    return {name: measurement for name, measurement in content.items() if "code" in measurement.get("about", {})}


def read_records(part: str) -> dict[str, Any]:
    """The records of a part by name, in the order of its jobs; empty if it has not been measured."""
    return {name: measurement["record"] for name, measurement in read_measurements(RESULTS / f"{part}.json").items()}


def check_part(part: str) -> None:
    """Raises ValueError, before an hour of work, if a part's results file cannot be read or written."""
    read_measurements(RESULTS / f"{part}.json")
    RESULTS.mkdir(exist_ok=True)
    if not os.access(RESULTS, os.W_OK):
        raise ValueError(f"{RESULTS} is not writable: make it writable, or the measurements would be lost")


def save(part: str, name: str, measurement: Mapping[str, Any], order: Sequence[str]) -> None:
    """Replaces one measurement of a part; those that are not in `order` are dropped."""
    path = RESULTS / f"{part}.json"
    stored = {**read_measurements(path), name: measurement}
    write_whole(path, (json.dumps({n: stored[n] for n in order if n in stored}, indent=1) + "\n").encode())


def _machine() -> str:
    """Processor, cores and system."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(models or [platform.machine()])[0]}, {os.cpu_count()} cores, {platform.system()}"


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
