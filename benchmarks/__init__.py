"""Benchmarks: the measurements behind the README's claims. `python -m benchmarks` runs them, see README.md here."""

import sys
from pathlib import Path

# Loads this checkout as the package `learned_solvers`, even if another one is installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))
import _as_package  # noqa: F401
