"""`python -m benchmarks`: measures what the README claims and writes results/*.json and figures/*.png.

    python -m benchmarks                     all parts: about five hours of two cores
    python -m benchmarks fidelity figures    some parts; a repeated measurement replaces its own record alone
    python -m benchmarks again --seed 7      recorded solvers and peers on starts of your own: a quarter of an hour
    python -m benchmarks --quick             two minutes: asserts ratios on small samples, writes nothing
    python -m benchmarks.recipe              the papers' gradient recipe, which takes an hour and a half alone

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
    every = (*PARTS, "figures")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(every)}; default: all")
    parser.add_argument("--quick", action="store_true", help="two minutes, assertions only, writes nothing")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each (2)")
    parser.add_argument(
        "--cache", type=Path, help="folder that keeps finished jobs and teachers' ends, to resume a run"
    )
    parser.add_argument("--only", nargs="+", default=[], help="jobs whose name contains one of these: digits-3.0")
    parser.add_argument("--seed", type=int, help="of the starts that `again` draws: shown, not recorded (1 and 2 are)")
    args = parser.parse_args(arguments)
    for part in args.parts:
        if part not in every:
            parser.error(f"unknown part {part}: choose from {', '.join(every)}")
    if args.workers < 1:
        parser.error(f"--workers must be at least 1, got {args.workers}")
    if args.seed is not None and (args.parts != ["again"] or not 0 <= args.seed < 2**32):
        parser.error("--seed is from 0 to 2^32 - 1 and for `again` alone: python -m benchmarks again --seed 7")
    if args.quick and (args.parts or args.only or args.cache):
        parser.error("--quick has a small selection of its own: leave parts, --only and --cache out")
    parts = [part for part in PARTS if part in (args.parts or PARTS)]
    if args.only and not parts:
        parser.error("--only selects measurements, and figures has none: leave it out")
    options = [*(["--only", *args.only] if args.only else []), *([] if args.seed is None else [f"--seed {args.seed}"])]
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # the workers'
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
                host_version()  # refuses a COMFYUI_PATH without ComfyUI now, not after hours
            for part, jobs in selected.items():
                records = run_part(part, jobs, args.workers, cache, " ".join(["python -m benchmarks", part, *options]))
                for seed in seeds if part == "again" else ():
                    if of_seed := [record for record in records if record["seed"] == seed]:
                        print(compare_with_record(of_seed), flush=True)
        except (FileNotFoundError, RuntimeError, ValueError) as error:
            parser.exit(1, f"{error}\n")
    if "figures" in (args.parts or every):
        from .figures import draw

        draw(RESULTS.parent / "figures")


if __name__ == "__main__":
    main()
