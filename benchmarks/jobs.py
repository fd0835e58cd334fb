"""The jobs of each part of the benchmarks; running them in processes and saving their records."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import torch

from . import cost, generalisation
from .fidelity import fidelity
from .guidance import knots
from .half import half
from .overhead import host_version, overhead_here
from .record import RESULTS, code_hash, provenance, read_measurements, save
from .suite import BENCHMARKS

__all__ = ["PARTS", "Job", "jobs_by_part", "run_jobs", "select_jobs"]

PARTS = ("fidelity", "guidance", "generalisation", "half", "cost", "overhead")
_NETWORKS = ("emoji", "patches", "shapes", "digits")  # the longest first


@dataclass(frozen=True)
class Job:
    """One measurement. Its record is `work(*place)`."""

    work: Callable[..., Any]
    place: tuple[str | float, ...] = ()

    @property
    def name(self) -> str:
        """The measurement's name, such as "fidelity-digits-3.0"."""
        return "-".join(map(str, (self.work.__name__, *self.place)))


def jobs_by_part() -> dict[str, list[Job]]:
    """The jobs of each part, the longest first."""
    places = [(name, guidance) for name in _NETWORKS for guidance in reversed(BENCHMARKS[name].guidances)]
    classes = [(generalisation.classes, name) for name in _NETWORKS if name != "shapes"]
    generalised = [(generalisation.sizes_of_pictures, "shapes"), *classes, (generalisation.fine_tuned,)]
    return {
        "fidelity": [Job(fidelity, place) for place in places],
        "guidance": [Job(knots, (name,)) for name in _NETWORKS if name != "shapes"],
        "generalisation": [Job(work, tuple(place)) for work, *place in generalised],
        "half": [Job(half, (name,)) for name in _NETWORKS],
        "cost": [
            *(Job(cost.error_by_calls, (name, steps)) for name in _NETWORKS for steps in reversed(cost.STEPS)),
            *map(Job, (cost.growth_with_size, cost.memory)),
        ],
        # Its name without ComfyUI differs, so that it is not taken for a measurement with ComfyUI's sampler.
        "overhead": [Job(overhead_here())],
    }


def select_jobs(parts: Sequence[str], only: Sequence[str] = (), *, repeat: bool = False) -> dict[str, list[Job]]:
    """The jobs of some parts whose name contains one of the texts `only`, without those with a current record.

    ValueError for a text that matches none. With `repeat`, current records are measured again.
    """
    by_part = {part: jobs for part, jobs in jobs_by_part().items() if part in parts}
    names = [job.name for jobs in by_part.values() for job in jobs]
    for text in only:
        if not any(text in name for name in names):
            raise ValueError(f"--only {text} matches no job: choose a name or part of one from {', '.join(names)}")
    selected = {}
    for part, jobs in by_part.items():
        stored = {} if repeat else read_measurements(RESULTS / f"{part}.json")
        current = {name for name, made in stored.items() if made["about"]["code"] == code_hash()}
        selected[part] = [job for job in jobs if any(text in job.name for text in only or [""])]
        for job in selected[part]:
            if job.name in current:
                print(f"{job.name}: recorded with this code; --repeat measures it again", flush=True)
        selected[part] = [job for job in selected[part] if job.name not in current]
    return {part: jobs for part, jobs in selected.items() if jobs}


def run_jobs(selected: Mapping[str, Sequence[Job]], workers: int, command: str) -> None:
    """Runs jobs in processes of one thread and saves their records as they finish; `overhead` last and alone.

    Raises RuntimeError at the end if a job failed.
    """
    failures: list[str] = []
    together = {part: jobs for part, jobs in selected.items() if part != "overhead"}
    _run(together, workers, provenance(command, workers=workers), failures)
    if "overhead" in selected:  # timings need an idle machine
        _run({"overhead": selected["overhead"]}, 1, provenance(command, workers=1, **host_version()), failures)
    if failures:
        raise RuntimeError("failed: " + "; ".join(failures))


def _run(selected: Mapping[str, Sequence[Job]], workers: int, about: Mapping[str, Any], failures: list[str]) -> None:
    orders = {part: [job.name for job in jobs] for part, jobs in jobs_by_part().items()}
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,),
        max_tasks_per_child=1,  # the peak memory of a subprocess is at least that of its parent
    )  # fmt: skip
    with pool:
        pending = {pool.submit(_timed, job): (part, job.name) for part, jobs in selected.items() for job in jobs}
        for future in as_completed(pending):
            part, name = pending[future]
            if error := future.exception():
                failures.append(f"{name}: {type(error).__name__}: {error}")
                continue
            record, seconds = future.result()
            save(part, name, {"about": {**about, "seconds": seconds}, "record": record}, orders[part])
            print(f"{name}: {seconds} seconds, saved in {part}.json", flush=True)


def _timed(job: Job) -> tuple[Any, int]:
    """The record of a job and its duration in seconds."""
    print(f"{job.name}: started", flush=True)
    began = time.monotonic()
    return job.work(*job.place), round(time.monotonic() - began)
