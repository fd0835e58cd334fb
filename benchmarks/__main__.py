"""Measures what the documents claim; writes results/*.json, figures/*.png and the tables of the documents.

    python -m benchmarks                     everything: about an hour on two idle cores
    python -m benchmarks cost guidance       some parts
    python -m benchmarks figures             figures, tables and goals from the records
    python -m benchmarks --quick             a minute: checks ratios on small samples, writes nothing

Every worker is a process with one thread. A record is saved as soon as it is measured, and measurements that are on
record with the same code are not repeated: after an interruption, the same command resumes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import torch

from .jobs import PARTS, run_jobs, select_jobs
from .overhead import host_version
from .quick import quick
from .record import RESULTS, ROOT, check_part


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    all_parts = (*PARTS, "figures")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(all_parts)}; default: all")
    parser.add_argument("--quick", action="store_true", help="check ratios on small samples in a minute; no output")
    parser.add_argument("--workers", type=int, default=2, help="number of processes, one thread each (2)")
    parser.add_argument("--only", nargs="+", default=[], help="only jobs whose name contains one of these: digits-3.0")
    parser.add_argument("--repeat", action="store_true", help="measure again what is recorded with the same code")
    args = parser.parse_args(arguments)
    for part in args.parts:
        if part not in all_parts:
            parser.error(f"unknown part {part}: choose from {', '.join(all_parts)}")
    if args.workers < 1:
        parser.error(f"--workers must be at least 1, got {args.workers}")
    if args.quick and (args.parts or args.only or args.repeat):
        parser.error("--quick cannot be combined with parts, --only or --repeat: remove them")
    parts = [part for part in PARTS if part in (args.parts or PARTS)]
    if (args.only or args.repeat) and not parts:
        parser.error("--only and --repeat concern measurements, but figures makes none: remove them")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the workers
    if args.quick:
        sys.exit(quick())
    try:
        selected = select_jobs(parts, args.only, repeat=args.repeat)
        for part in selected:
            check_part(part)
        if "overhead" in selected:
            host_version()  # fails now, not after an hour, if COMFYUI_PATH has no ComfyUI
    except (OSError, ValueError) as error:
        parser.error(str(error))
    try:
        run_jobs(
            selected,
            args.workers,
            " ".join(["python -m benchmarks", *(sys.argv[1:] if arguments is None else arguments)]),
        )
    except (FileNotFoundError, RuntimeError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    from .figures import draw
    from .goals import goals
    from .tables import write_tables

    draw(RESULTS.parent / "figures")
    for document in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), RESULTS.parent / "README.md"):
        write_tables(document)
    print("\n".join(map(str, goals())))


if __name__ == "__main__":
    main()
