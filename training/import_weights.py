"""Turn published solver parameters into solver files.

    python training/import_weights.py FILE ... --output solver_weights [--overwrite]

Reads the papers' figures as JSON, and the DyWeight authors' FLUX .pt and other .pkl files; nothing in them is executed.
Writes one solver file per family and model. Where two tables have the same number of network calls, the one whose loss
is in the paper's released code is kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from datetime import date
from pathlib import Path

if not __package__:  # run as a file
    import _as_package

    __package__ = _as_package.TRAINING

from ..samplers.files.card import VERSION
from ..samplers.files.solver import Solver
from .published.read import RELEASED_LOSSES, read_tables

__all__ = ["assemble", "main"]


def assemble(tables: Iterable[Solver], day: str) -> list[Solver]:
    """One solver per model, dated `day`, of solvers of one step count; of two for a count that with a released loss."""
    kept: dict[str, dict[int, Solver]] = {}
    for table in sorted(tables, key=lambda table: table.card.steps[table.steps[0]].loss not in RELEASED_LOSSES):
        kept.setdefault(table.name, {}).setdefault(table.steps[0], table)
    solvers = []
    for name, by_calls in kept.items():
        steps = {calls: table.card.steps[calls] for calls, table in by_calls.items()}
        parameters = {calls: table.parameters[calls] for calls, table in by_calls.items()}
        facts = next(iter(by_calls.values())).card
        solvers.append(Solver(name, replace(facts, steps=steps, date=day, package_version=VERSION), parameters))
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
            raise ValueError(f"{existing[0]} exists already: choose another --output, or add --overwrite")
        for solver, path in zip(solvers, paths, strict=True):
            solver.save(path, overwrite=args.overwrite)
            print(f"{path}: {', '.join(map(str, solver.steps))} steps")
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")


def iso_date(text: str) -> str:
    """A date as YYYY-MM-DD, checked."""
    return date.fromisoformat(text).isoformat()


if __name__ == "__main__":
    main()
