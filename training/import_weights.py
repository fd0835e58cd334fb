"""Turn published solver parameters into solver files.

    python training/import_weights.py FILE ... --output solver_weights [--overwrite]

Reads the papers' parameters as JSON, and the DyWeight authors' .pt (FLUX) and .pkl files, without executing anything in
them. Writes one solver file per family and model. If two tables have the same number of network calls, the one whose
loss is in the paper's released code is kept.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from datetime import date
from pathlib import Path

if not __package__:  # run as a file
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # absent with python -I and in portable builds
    import _as_package

    __package__ = _as_package.TRAINING

from ..samplers.files.card import VERSION
from ..samplers.files.solver import Solver
from .published.read import RELEASED_LOSSES, read_tables

__all__ = ["assemble", "main"]


def assemble(tables: Iterable[Solver], day: str) -> list[Solver]:
    """Merges solvers with one step count into one per model, dated `day`; prefers released losses, see the module."""
    by_name: dict[str, dict[int, Solver]] = {}
    for table in sorted(tables, key=lambda table: table.card.steps[table.steps[0]].loss not in RELEASED_LOSSES):
        by_name.setdefault(table.name, {}).setdefault(table.steps[0], table)
    solvers = []
    for name, by_calls in by_name.items():
        steps = {calls: table.card.steps[calls] for calls, table in by_calls.items()}
        parameters = {calls: table.parameters[calls] for calls, table in by_calls.items()}
        card = next(iter(by_calls.values())).card
        solvers.append(Solver(name, replace(card, steps=steps, date=day, package_version=VERSION), parameters))
    return solvers


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--output", type=Path, required=True, help="folder for the solver files")
    parser.add_argument("--overwrite", action="store_true", help="replace existing solver files")
    parser.add_argument("--date", type=iso_date, default=date.today().isoformat(), help="ISO date for the cards")
    args = parser.parse_args(arguments)
    try:
        solvers = assemble([table for path in args.files for table in read_tables(path)], args.date)
        paths = [args.output / f"{solver.name}.safetensors" for solver in solvers]
        if not args.overwrite and (existing := [path for path in paths if path.exists()]):
            raise ValueError(f"{existing[0]} already exists: choose another --output, or add --overwrite")
        for solver, path in zip(solvers, paths, strict=True):
            solver.save(path, overwrite=args.overwrite)
            print(f"{path}: {', '.join(map(str, solver.steps))} steps")
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")


def iso_date(text: str) -> str:
    """A valid date as YYYY-MM-DD."""
    return date.fromisoformat(text).isoformat()


if __name__ == "__main__":
    main()
