"""Kills and resumes fits as tests/fitting/test_faults.py does, but more often. Needs Linux or macOS.

python -m benchmarks.kill_fit            50 kills in a few minutes; writes benchmarks/results/kill_fit.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from .record import RESULTS, ROOT, provenance, save

RECORDED_KILLS = 50


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kills", type=int, default=RECORDED_KILLS, help="number of kills; recorded from %(default)s on"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.kills < 1:
        parser.error(f"--kills must be at least 1, got {args.kills}")
    sys.path.append(str(ROOT / "tests" / "fitting"))
    from killed_fits import kill_fits

    about = provenance(f"python -m benchmarks.kill_fit --kills {args.kills} --seed {args.seed}")
    with tempfile.TemporaryDirectory() as folder:
        record = kill_fits(args.kills, args.seed, Path(folder))
    print(f"{record['kills']} kills, {record['finished']} fits finished with the same files")
    if args.kills >= RECORDED_KILLS:
        save("kill_fit", "kill_fit", {"about": about, "record": record})
        print(f"saved in {RESULTS}/kill_fit.json")


if __name__ == "__main__":
    main()
