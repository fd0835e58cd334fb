"""Benchmarks: what the README claims, measured. `python -m benchmarks` runs them all, see README.md in this folder."""

import sys
from pathlib import Path

# Loads this checkout as the package `learned_solvers`, whether or not another one is installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))
import _as_package  # noqa: F401
