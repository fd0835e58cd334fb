"""The jobs of each part of the benchmarks; running them in processes and saving their records."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from learned_solvers.samplers.files.write import write_whole
from learned_solvers.training import EFFORTS

from . import cost, generalisation
from .guidance import knots
from .measures import DTYPES, again, fidelity, half, precision, savings
from .overhead import host_version, overhead_here
from .peers import peers
from .record import provenance, read_measurements, save
from .setting import GUIDANCES, Setting

__all__ = ["PARTS", "SEEDS", "Job", "jobs_by_part", "run_job", "run_part", "select_jobs"]

PARTS = (
    "fidelity", "peers", "again", "savings", "half", "generalisation", "guidance", "precision", "cost", "overhead",
)  # fmt: skip
SEEDS = (1, 2)  # of the starts that `again` records
NETWORKS = ("patches", "shapes", "digits")  # the longest first


@dataclass(frozen=True)
class Job:
    """One measurement. Its record is `work(*place, setting)`, or `work(*place)` without a setting."""

    work: Callable[..., Any]
    place: tuple[str | float, ...] = ()
    setting: Setting | None = None

    @property
    def name(self) -> str:
        """The measurement's name, such as "fidelity-digits-3.0"."""
        return "-".join(map(str, (self.work.__name__, *self.place)))


def jobs_by_part(cache: Path, seeds: Sequence[int] = SEEDS) -> dict[str, list[Job]]:
    """The jobs of each part, the longest first. `seeds` are for `again`."""
    whole, few = Setting(cache=cache), Setting(fitted=64, held_out=16, unseen=256, ranked=32, cache=cache)
    default, thorough = (Setting(*EFFORTS[effort].sizes(None), cache=cache) for effort in ("default", "thorough"))
    places = [(name, guidance) for guidance in reversed(GUIDANCES) for name in NETWORKS]
    copies = [(name, dtype, guidance) for name, guidance in places for dtype in DTYPES]
    folders = {(name, guidance): cache / f"fidelity-{name}-{guidance}" for name, guidance in places}
    # Half precision is five to eight times slower on a CPU: few starts or step counts.
    steps_in_half = {"patches": (4,), "shapes": (4,), "digits": (4, 6, 8, 10)}
    generalised = [
        (generalisation.guidances, "patches"), (generalisation.sizes_of_pictures, "shapes"),
        (generalisation.guidances, "digits"), (generalisation.classes, "patches"), (generalisation.classes, "digits"),
        (generalisation.fine_tuned,), (generalisation.seeds, "digits"),
    ]  # fmt: skip
    return {
        "fidelity": [Job(fidelity, place, replace(whole, solvers=folder)) for place, folder in folders.items()],
        "peers": [Job(peers, place, whole) for place in places],
        "again": [Job(again, (*place, seed), whole) for seed in seeds for place in places],
        "savings": [Job(savings, (name, guidance), whole) for guidance in GUIDANCES for name in NETWORKS],
        "half": [Job(half, copy, replace(whole, unseen=128)) for copy in copies],
        "generalisation": [Job(work, tuple(place), replace(few, steps=(5,))) for work, *place in generalised],
        "precision": [Job(precision, c, replace(few, steps=steps_in_half[c[0]])) for c in copies if c[2] == 3],
        "guidance": [Job(knots, (name,), replace(default, steps=(5,))) for name in ("patches", "digits")],
        "cost": [
            *(Job(cost.error_by_calls, (name, steps), thorough) for steps in (8, 5) for name in NETWORKS),
            *(Job(cost.growth_with_steps, (name,)) for name in NETWORKS),
            *map(Job, (cost.growth_with_size, cost.memory)),
        ],
        # Its name without ComfyUI differs, so that it does not replace a measurement with ComfyUI's sampler.
        "overhead": [Job(overhead_here())],
    }


def select_jobs(
    parts: Sequence[str], cache: Path, only: Sequence[str] = (), seeds: Sequence[int] = SEEDS
) -> dict[str, list[Job]]:
    """The jobs of some parts whose name contains one of the texts `only`; ValueError for a text that matches none."""
    by_part = {part: jobs for part, jobs in jobs_by_part(cache, seeds).items() if part in parts}
    names = [job.name for jobs in by_part.values() for job in jobs]
    for text in only:
        if not any(text in name for name in names):
            raise ValueError(f"--only {text} matches no job: choose a name or part of one from {', '.join(names)}")
    selected = {p: [job for job in js if any(text in job.name for text in only or [""])] for p, js in by_part.items()}
    return {part: jobs for part, jobs in selected.items() if jobs}


def run_job(job: Job, cache: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """The measurement of a job, from the cache if it has one of the same sizes."""
    path, sizes = cache / f"{job.name}.json", job.setting and job.setting.sizes
    stored = read_measurements(path)
    if "record" in stored and stored.get("about", {}).get("samples") == sizes:
        print(f"{job.name}: from {path}", flush=True)
        return stored
    print(f"{job.name}: started", flush=True)
    began = time.monotonic()
    record = job.work(*job.place, *([job.setting] if job.setting else []))
    about = {**about, "samples": sizes, "seconds": round(time.monotonic() - began)}
    content = json.dumps({"about": about, "record": record})
    write_whole(path, content.encode())
    return json.loads(content)  # with string keys, as from the cache


def run_part(part: str, jobs: Sequence[Job], workers: int, cache: Path, command: str) -> list[Any]:
    """The records of some jobs of a part, run in processes of one thread and saved as they finish.

    Records of seeds other than SEEDS are not saved. Raises RuntimeError at the end if a job failed.
    """
    order = [job.name for job in jobs_by_part(cache)[part]]
    workers, host = (1, host_version()) if part == "overhead" else (workers, {})  # timings need an idle machine
    about, records, failures = provenance(command, workers=workers, **host), [], []
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        pending = {pool.submit(run_job, job, cache, about): job.name for job in jobs}
        for future in as_completed(pending):
            name = pending[future]
            if error := future.exception():
                failures.append(f"{name}: {type(error).__name__}: {error}")
                continue
            records.append(future.result()["record"])
            if name in order:
                save(part, name, future.result(), order, cache / name)
                print(f"{name}: saved in {part}.json", flush=True)
    if failures:
        raise RuntimeError("failed: " + "; ".join(failures))
    return records
