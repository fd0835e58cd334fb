"""The repository: its root, pyproject.toml, what git tracks, copies of it and processes on them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CLONE = (ROOT / ".git").exists() and shutil.which("git") is not None
needs_git = pytest.mark.skipif(not CLONE, reason="not a git clone: the tracked files are unknown")
NOT_SOURCE = shutil.ignore_patterns(".git", ".venv*", ".*_cache", "__pycache__", "build", "dist", "*.egg-info")


def git_files(*options: str) -> set[str]:
    """The names of existing files that `git ls-files` lists."""
    command = ["git", "ls-files", "-z", *options]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in output.split("\0") if name and (ROOT / name).is_file()}


def run_python(*arguments: object, cwd: Path = ROOT, python: object = sys.executable, **environment: str) -> str:
    """The output of a Python process without the variables that pytest and CI set for this one; it must succeed."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_") and k != "PYTHONPATH"}
    command, variables = [str(python), "-B", *map(str, arguments)], inherited | environment
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout
