"""Fit a solver for a model.

python training/fit_weights.py --demo                the whole path on the bundled small model, any CPU
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

if not __package__:  # run as a file
    import _as_package

    __package__ = _as_package.TRAINING

from .demo import run_demo

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", action="store_true", help="fit the bundled small model and draw the result")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for what is written")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument("--threads", type=int, help="CPU threads")
    args = parser.parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    if not args.demo:
        parser.error("name what to fit: --demo")
    try:
        run_demo(args.output, overwrite=args.overwrite)
    except FileExistsError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
