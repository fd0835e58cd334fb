"""Which measurements make a part of the benchmarks, and how they are shared out to processes and recorded."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from learned_solvers.samplers.files.write import write_whole

from . import cost, generalisation
from .again import SEEDS, again
from .fidelity import GUIDANCES, STEPS, Sizes, fidelity
from .half import half
from .overhead import host_here, overhead_here
from .peers import peers
from .precision import DTYPES, precision
from .record import SOLVERS, Run, about, keep, read_records
from .savings import savings

__all__ = ["PARTS", "chosen", "run"]

Jobs = list[tuple[Callable[..., Any], tuple[Any, ...]]]

NETWORKS = ("patches", "shapes", "digits")  # the longest first
WHOLE, FEW = Sizes(), Sizes(fitted=64, held_out=16, unseen=256, ranked=32)


def jobs_of(part: str, cache: Path, seeds: Sequence[int] = SEEDS) -> Jobs:
    """Returns the calls that make a part's records, the longest first; `seeds` are those of `again`."""
    if part == "fidelity":
        order = [(name, g) for g in reversed(GUIDANCES) for name in NETWORKS]
        return [(fidelity, (*own, STEPS, WHOLE, cache / name_of(fidelity, own), cache)) for own in order]
    if part == "peers":
        return [(peers, (name, g, STEPS, WHOLE, cache)) for g in reversed(GUIDANCES) for name in NETWORKS]
    if part == "savings":
        return [(savings, (name, g, WHOLE, SOLVERS, cache)) for g in GUIDANCES for name in NETWORKS]
    if part == "again":
        order = [(name, g, str(seed)) for seed in seeds for g in reversed(GUIDANCES) for name in NETWORKS]
        return [(again, (*own, STEPS, WHOLE, SOLVERS, cache)) for own in order]
    if part == "half":
        order = [(name, dtype, g) for g in reversed(GUIDANCES) for name in NETWORKS for dtype in DTYPES]
        return [(half, (*own, STEPS, Sizes(unseen=128), SOLVERS, cache)) for own in order]
    if part == "precision":
        # On a CPU half precision takes five to eight times as long: few step counts.
        steps = {"digits": (4, 6, 8, 10), "patches": (4,), "shapes": (4,)}
        return [(precision, (name, dtype, 3.0, steps[name], FEW, cache)) for name in NETWORKS for dtype in DTYPES]
    if part == "generalisation":
        return [
            (generalisation.guidances, ("patches", FEW, cache)),
            (generalisation.sizes_of_pictures, ("shapes", FEW, cache)),
            (generalisation.guidances, ("digits", FEW, cache)),
            (generalisation.classes, ("patches", FEW, cache)),
            (generalisation.classes, ("digits", FEW, cache)),
            (generalisation.fine_tuned, (FEW,)),
            (generalisation.seeds, ("digits", FEW, cache)),
        ]
    if part == "cost":
        return [
            *((cost.growth_with_steps, (name,)) for name in NETWORKS),
            (cost.growth_with_samples, (cache,)), (cost.growth_with_size, ()), (cost.memory, ()),
        ]  # fmt: skip
    # Without ComfyUI a record of its own: it must not take the place of one that has ComfyUI's sampler.
    return [(overhead_here(), ())]


PARTS = ("fidelity", "peers", "again", "savings", "half", "generalisation", "precision", "cost", "overhead")


def name_of(work: Callable[..., Any], arguments: tuple[Any, ...]) -> str:
    """Returns a job's name, such as "fidelity-digits-3.0"."""
    return "-".join(str(a) for a in (work.__name__, *arguments) if isinstance(a, str | float))


def measured(cache: Path, how: Mapping[str, Any], work: Callable[..., Any], arguments: tuple[Any, ...]) -> Run:
    """Returns what a job found, from the cache if it has been done before, at the same sizes."""
    name = name_of(work, arguments)
    path = cache / f"{name}.json"
    how = {**how, "samples": next((vars(value) for value in arguments if isinstance(value, Sizes)), None)}
    kept = read_records(path)
    if kept.get("about", {}).get("samples") == how["samples"] and "record" in kept:
        print(f"{name}: from {path}", flush=True)
    else:
        print(f"{name}: begun", flush=True)
        began = time.monotonic()
        record = work(*arguments)
        content = json.dumps({"about": {**how, "seconds": round(time.monotonic() - began)}, "record": record})
        write_whole(path, content.encode())
        kept = json.loads(content)  # the same as from the cache: numbers that are keys are texts there
    return Run(kept["about"], kept["record"], cache / name)


def chosen(parts: Sequence[str], cache: Path, only: Sequence[str], seeds: Sequence[int] = SEEDS) -> dict[str, Jobs]:
    """Returns the jobs of each part whose name holds one of the texts `only`; all if there are none.

    Raises:
        ValueError: One of them names no job.
    """
    every = {part: jobs_of(part, cache, seeds) for part in parts}
    found = {
        part: [job for job in jobs if not only or any(text in name_of(*job) for text in only)]
        for part, jobs in every.items()
    }
    names = [name_of(*job) for jobs in every.values() for job in jobs]
    for text in only:
        if not any(text in name for name in names):
            raise ValueError(f"--only {text} names no job: take a text that is in one of {', '.join(names)}")
    return {part: jobs for part, jobs in found.items() if jobs}


def run(part: str, jobs: Jobs, workers: int, cache: Path, command: str) -> list[Any]:
    """Returns what a part's jobs found, and puts it into its results file, each as it ends, in the place of the last.

    Jobs that are not the part's own, of another seed, leave no record.

    Args:
        part: One of PARTS.
        jobs: What to do of it.
        workers: Processes that share the jobs.
        cache: Folder of the jobs' own records.
        command: How this was asked for.

    Raises:
        RuntimeError: A job failed; what the others found is recorded.
    """
    order = [name_of(*job) for job in jobs_of(part, cache)]
    host: dict[str, str] = {}
    if part == "overhead":  # timed: nothing beside it
        workers, host = 1, host_here()
    how, found, failed = about(command, workers=workers, **host), [], []
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        waiting = {pool.submit(measured, cache, how, *job): name_of(*job) for job in jobs}
        for future in as_completed(waiting):
            name = waiting[future]
            if error := future.exception():  # the others' work is kept
                failed.append(f"{name}: {type(error).__name__}: {error}")
                continue
            found.append(future.result().record)
            if name in order:
                keep(part, name, future.result(), order)
                print(f"{name}: recorded in {part}.json", flush=True)
    if failed:
        raise RuntimeError("failed: " + "; ".join(failed))
    return found
