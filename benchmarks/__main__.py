"""`python -m benchmarks`: measures what the README claims and writes results/*.json and figures/*.png beside this file.

    python -m benchmarks                     all parts: about five hours of two cores
    python -m benchmarks fidelity figures    some parts; what is measured again replaces its own records alone
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
from pathlib import Path

import torch

from .again import SEEDS, beside_the_record
from .jobs import PARTS, chosen, run
from .overhead import host_here
from .quick import quick
from .record import RESULTS, check_record


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}, figures; default: all")
    parser.add_argument("--quick", action="store_true", help="two minutes, assertions only, writes nothing")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each (2)")
    parser.add_argument("--cache", type=Path, help="folder that keeps finished jobs and teachers' ends: a run goes on")
    parser.add_argument("--only", nargs="+", default=[], help="jobs whose name holds one of these, such as digits-3.0")
    parser.add_argument("--seed", type=int, help="of the starts that `again` draws: shown, not recorded (1 and 2 are)")
    args = parser.parse_args()
    unknown = [part for part in args.parts if part not in (*PARTS, "figures")]
    if unknown:
        parser.error(f"no part {', '.join(unknown)}: name some of {', '.join(PARTS)}, figures")
    if args.workers < 1:
        parser.error(f"--workers must be at least 1, got {args.workers}")
    if args.seed is not None and (args.parts != ["again"] or not 0 <= args.seed < 2**32):
        parser.error("--seed is from 0 to 2^32 - 1 and for `again` alone: python -m benchmarks again --seed 7")
    if args.quick and (args.parts or args.only or args.cache):
        parser.error("--quick has its own small part of everything: leave parts, --only and --cache out")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # the workers'
    if args.quick:
        sys.exit(quick())
    if args.only and args.parts == ["figures"]:
        parser.error("--only names measurements, and figures has none: leave it out")
    if args.cache is not None:
        try:
            args.cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"--cache {args.cache} is no folder to keep jobs in ({error.strerror}): name another")
    with tempfile.TemporaryDirectory() as folder:
        cache = args.cache or Path(folder)
        parts = [part for part in args.parts or PARTS if part != "figures"]
        seeds = SEEDS if args.seed is None else (args.seed,)
        try:
            jobs_of_parts = chosen(parts, cache, args.only, seeds) if parts else {}
        except ValueError as error:
            parser.error(str(error))
        more = [
            *(["--only", *args.only] if args.only else []),
            *([] if args.seed is None else ["--seed", f"{args.seed}"]),
        ]
        try:
            for part in jobs_of_parts:
                check_record(part)
            if "overhead" in jobs_of_parts:
                host_here()  # refuses a COMFYUI_PATH without ComfyUI now, not after hours
            for part, jobs in jobs_of_parts.items():
                found = run(part, jobs, args.workers, cache, " ".join(["python -m benchmarks", part, *more]))
                for seed in seeds if part == "again" else ():
                    if own := [record for record in found if record["seed"] == seed]:
                        print(beside_the_record(own), flush=True)
        except (FileNotFoundError, RuntimeError, ValueError) as error:
            parser.exit(1, f"{error}\n")
    if not args.parts or "figures" in args.parts:
        from .figures import draw

        draw(RESULTS.parent / "figures")


if __name__ == "__main__":
    main()
