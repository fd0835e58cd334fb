"""Feeds the readers hostile files, guided by which of this project's code they reach (atheris, libFuzzer).

    pip install atheris && python tests/fuzz/run.py                     100,000 inputs for each reader
    python tests/fuzz/run.py --reader pickle --runs 5000    one of them, to try

Each reader runs in a process of its own, with 2 GB of address space beyond what it starts with. A finding stops it,
is named, and its input is kept in the working folder. `benchmarks/results/fuzz.json` is the record, of whole runs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
NAMES = ("solver_file", "pickle", "torch_file", "figures")
WHOLE = 100_000  # inputs of a run that is recorded
SECONDS, MORE = 5, 2 * 2**30  # an input's time on the CPU, whatever else runs; address space


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", choices=NAMES, action="append", help="default: all of them")
    parser.add_argument("--runs", type=int, default=WHOLE, help=f"inputs for each reader; fewer than {WHOLE} are tries")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        _fuzz(args.child[0], Path(args.child[1]), args.runs, args.seed)
        return
    if args.runs < 1:
        parser.error(f"--runs must be at least 1, got {args.runs}")
    if find_spec("atheris") is None:
        parser.error(f"this needs atheris: {sys.executable} -m pip install atheris")
    sys.path.insert(0, str(TESTS))
    import conftest  # noqa: F401 - loads this checkout

    from benchmarks.record import Run, about, keep

    found = {}
    for name in args.reader or NAMES:
        began = about(f"python tests/fuzz/run.py --reader {name} --runs {args.runs} --seed {args.seed}")
        found[name] = _run(name, args.runs, args.seed)
        print(json.dumps({name: found[name]}), flush=True)
        if args.runs >= WHOLE:
            keep("fuzz", name, Run(began, found[name]), NAMES)
        else:
            print(f"not recorded: fewer than {WHOLE} inputs")
    sys.exit(any(reader["finding"] for reader in found.values()))


def _run(name: str, runs: int, seed: int) -> dict[str, object]:
    """Returns what a process found that fuzzes one reader."""
    memory = Path("/dev/shm")  # a folder in memory, where there is one: a file is written for every input
    work = Path(tempfile.mkdtemp(prefix=f"fuzz_{name}_", dir=memory if memory.is_dir() else None))
    command = [sys.executable, __file__, "--child", name, str(work), "--runs", str(runs), "--seed", str(seed)]
    began = time.monotonic()
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    counts = json.loads((work / "counts.json").read_text())
    (work / "log").write_text(ran.stdout)
    covered = re.findall(r"cov: (\d+) ft: (\d+)", ran.stdout)
    findings = re.findall(r"Finding: (.*)", ran.stdout) or re.findall(r"ERROR: libFuzzer: (.*)", ran.stdout)
    finding = (findings or [f"exit {ran.returncode}"])[0] if ran.returncode else None
    if finding:
        print(f"{name}: {finding}; log and input: {work}", file=sys.stderr)
    features = int(covered[-1][1]) if covered else 0
    return {**counts, "seconds": round(time.monotonic() - began), "features": features, "finding": finding}


def _fuzz(name: str, work: Path, runs: int, seed: int) -> None:
    """Fuzzes one reader; the process ends here."""
    import atheris

    sys.path.insert(0, str(TESTS))
    with atheris.instrument_imports(include=["learned_solvers"], enable_loader_override=False):
        import conftest  # noqa: F401 - loads this checkout
        import learned_solvers.training.import_weights  # noqa: F401
    from fuzz.readers import READERS

    reader = READERS[name]
    corpus, counts = work / "corpus", {"inputs": 0, "accepted": 0, "peak_mb": 0}
    corpus.mkdir()
    for i, content in enumerate(reader.seeds()):
        (corpus / str(i)).write_bytes(content)
        assert reader.accepts(content, work)  # what is loaded late is loaded now
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MORE,) * 2)

    def one(content: bytes) -> None:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # ends the process; the input is the file in the working folder
        counts["inputs"] += 1
        counts["accepted"] += reader.accepts(content, work)
        if counts["inputs"] % 500 == 0 or counts["inputs"] == runs:
            counts["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            (work / "counts.json").write_text(json.dumps(counts))

    def change(content: bytes, longest: int, drawn: int) -> bytes:
        random = Random(drawn)
        if random.random() < 0.1:
            return atheris.Mutate(content, longest)
        return reader.spoilt(content or b"\0", random)[:longest]

    def or_end(work: Any) -> Any:
        def call(*arguments: Any) -> Any:
            try:
                return work(*arguments)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)  # libFuzzer's own exit may wait for Python for ever

        return call

    (work / "counts.json").write_text(json.dumps(counts))
    options = [f"-runs={runs}", f"-seed={seed}", "-timeout=1000000", "-max_len=65536", "-rss_limit_mb=0"]
    options += [f"-artifact_prefix={work}/", "-len_control=0", str(corpus)]
    os.environ["OMP_NUM_THREADS"] = "1"
    atheris.Setup([sys.argv[0], *options], or_end(one), custom_mutator=or_end(change))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
