"""Measures what the README claims; writes results/*.json and figures/*.png.

    python -m benchmarks                     all parts: about five hours on two cores
    python -m benchmarks cost guidance       some parts and their figures; a measurement replaces only its own record
    python -m benchmarks figures             all figures, from the records
    python -m benchmarks again --seed 7      recorded solvers and peers on a new set of starts: a quarter of an hour
    python -m benchmarks --quick             two minutes: checks ratios on small samples, writes nothing
    python -m benchmarks.recipe              the papers' gradient recipe, run separately: an hour and a half

Every worker is a process with one thread.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from .jobs import PARTS, SEEDS, run_part, select_jobs
from .overhead import host_version
from .peers import compare_with_record
from .quick import quick
from .record import RESULTS, check_part


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    all_parts = (*PARTS, "figures")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(all_parts)}; default: all")
    parser.add_argument("--quick", action="store_true", help="check ratios on small samples in two minutes; no output")
    parser.add_argument("--workers", type=int, default=2, help="number of processes, one thread each (2)")
    parser.add_argument(
        "--cache", type=Path, help="folder that keeps finished jobs and the teacher's end states, to resume a run"
    )
    parser.add_argument("--only", nargs="+", default=[], help="only jobs whose name contains one of these: digits-3.0")
    parser.add_argument("--seed", type=int, help="seed of the starts of `again`; results are recorded for 1 and 2 only")
    args = parser.parse_args(arguments)
    for part in args.parts:
        if part not in all_parts:
            parser.error(f"unknown part {part}: choose from {', '.join(all_parts)}")
    if args.workers < 1:
        parser.error(f"--workers must be at least 1, got {args.workers}")
    if args.seed is not None and (args.parts != ["again"] or not 0 <= args.seed < 2**32):
        parser.error("--seed must be between 0 and 2^32 - 1, with `again` only: python -m benchmarks again --seed 7")
    if args.quick and (args.parts or args.only or args.cache):
        parser.error("--quick cannot be combined with parts, --only or --cache: remove them")
    parts = [part for part in PARTS if part in (args.parts or PARTS)]
    if args.only and not parts:
        parser.error("--only selects measurements, but figures makes none: remove it")
    options = [*(["--only", *args.only] if args.only else []), *([] if args.seed is None else [f"--seed {args.seed}"])]
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the workers
    if args.quick:
        sys.exit(quick())
    with tempfile.TemporaryDirectory() as folder:
        cache, seeds = args.cache or Path(folder), SEEDS if args.seed is None else (args.seed,)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            selected = select_jobs(parts, cache, args.only, seeds)
        except (OSError, ValueError) as error:
            parser.error(str(error))
        try:
            for part in selected:
                check_part(part)
            if "overhead" in selected:
                host_version()  # fails now, not after hours, if COMFYUI_PATH has no ComfyUI
            for part, jobs in selected.items():
                records = run_part(part, jobs, args.workers, cache, " ".join(["python -m benchmarks", part, *options]))
                for seed in seeds if part == "again" else ():
                    if seed_records := [record for record in records if record["seed"] == seed]:
                        print(compare_with_record(seed_records), flush=True)
        except (FileNotFoundError, RuntimeError, ValueError) as error:
            parser.exit(1, f"{error}\n")
    if args.seed is None:
        from .figures import draw
        from .tables import write_tables

        draw(RESULTS.parent / "figures", () if "figures" in (args.parts or all_parts) else parts)
        write_tables(RESULTS.parent / "README.md")


if __name__ == "__main__":
    main()
