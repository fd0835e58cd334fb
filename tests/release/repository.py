"""The repository: its root, pyproject.toml, and what git tracks."""

from __future__ import annotations

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
needs_git = pytest.mark.skipif(not CLONE, reason="not a git clone: what git tracks cannot be told")


def git_files(*options: str) -> set[str]:
    """Returns the names of files that `git ls-files` lists and that are there."""
    command = ["git", "ls-files", "-z", *options]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.split("\0") if name and (ROOT / name).is_file()}
