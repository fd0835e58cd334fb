"""The peers: the samplers of ComfyUI and k-diffusion on the grids that people use, each measure's best among them.

Few starts rank them, all judge: of some two hundred candidates the best by error and the best by Frechet distance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from learned_solvers.samplers import SolverTable
from learned_solvers.training.data.trial import Trial
from learned_solvers.training.starts.candidates import Candidate, best_of_methods, candidates, rank, rmse

from .fidelity import Sizes, unseen_of
from .quality import Quality, quality_of
from .record import records
from .subjects import SUBJECTS, Subject

__all__ = [
    "best_of",
    "best_peers",
    "compared",
    "finite_quality",
    "lead_at",
    "least_error",
    "of_best_peer",
    "peers",
    "peers_of",
    "with_peers",
]


def peers(name: str, guidance: float, steps: Sequence[int], sizes: Sizes, cache: Path | None) -> dict[str, Any]:
    """Returns the quality of the best peers of a network at a guidance, by step count."""
    subject = SUBJECTS[name]
    unseen = unseen_of(subject, guidance, sizes.unseen, cache)
    found = []
    for n in steps:
        few = unseen.first(sizes.ranked)
        chosen = _chosen(name, few, list(candidates(n, subject.noise)))
        found_of = {c.name: finite_quality(name, unseen, c) for c in chosen}
        measured = {label: asdict(own) for label, own in found_of.items() if own is not None}
        found.append({"steps": n, "peers": measured})
        best = "; ".join(f"{key}: {best_of(measured, key)}" for key in ("error", "frechet"))
        print(name, guidance, n, best, flush=True)
    return {"network": name, "guidance": guidance, "records": found}


def finite_quality(name: str, trial: Trial, candidate: Candidate) -> Quality | None:
    """Returns a candidate's quality; None where it leaves the numbers."""
    ends = trial.ends(candidate.table)
    return quality_of(name, trial, ends) if bool(ends.isfinite().all()) else None


def _chosen(name: str, few: Trial, tried: Sequence[Candidate]) -> list[Candidate]:
    """Returns the best three and the best grid of each of the five best methods by error, the best five by Frechet."""
    measured = {candidate: finite_quality(name, few, candidate) for candidate in tried}
    finite = {candidate: found for candidate, found in measured.items() if found is not None}
    by_error = sorted(finite, key=lambda candidate: finite[candidate].error)
    by_frechet = sorted(finite, key=lambda candidate: finite[candidate].frechet)
    return list(dict.fromkeys([*by_error[:3], *best_of_methods(by_error)[:5], *by_frechet[:5]]))


def best_peers(subject: Subject, unseen: Trial, steps: int, sizes: Sizes) -> list[SolverTable]:
    """Returns the tables of the three best by error on the few starts: one of them is the best on all."""
    order = rank(unseen.first(sizes.ranked), list(candidates(steps, subject.noise)))
    return [candidate.table for _, candidate in order[:3]]


def least_error(trial: Trial, tables: Sequence[SolverTable]) -> float:
    """Returns the error of the best of some tables over all starts."""
    return min(rmse(trial, table) for table in tables)


def peers_of(name: str, guidance: float) -> dict[int, dict[str, Any]]:
    """Returns the recorded peers of a network at a guidance, by step count: their measures by name.

    Raises:
        ValueError: There are none.
    """
    for own in records("peers"):
        if (own["network"], own["guidance"]) == (name, guidance):
            return {point["steps"]: point["peers"] for point in own["records"]}
    raise ValueError(f"no peers of {name} at guidance {guidance:g} are recorded: run python -m benchmarks peers first")


def compared() -> list[dict[str, Any]]:
    """Returns the records of fidelity with those of the peers; none where a network's peers were not measured."""
    return with_peers(records("fidelity"), records("peers"))


def with_peers(fidelity: Sequence[dict[str, Any]], measured: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns records of fidelity, each point with the peers of the same network, guidance and step count."""
    at = {(own["network"], own["guidance"], r["steps"]): r["peers"] for own in measured for r in own["records"]}
    found = []
    for own in fidelity:
        places = [(own["network"], own["guidance"], r["steps"]) for r in own["records"]]
        if all(place in at for place in places):
            points = [{**r, "peers": at[place]} for r, place in zip(own["records"], places, strict=True)]
            found.append({**own, "records": points})
    return found


def best_of(measured: Mapping[str, Mapping[str, float]], key: str) -> str:
    """Returns the name of the peer whose measure is the least."""
    return min(measured, key=lambda label: measured[label][key])


def of_best_peer(record: dict[str, Any], key: str) -> float:
    """Returns the best peer's measure in a record."""
    return min(peer[key] for peer in record["peers"].values())


def lead_at(record: dict[str, Any], key: str = "error") -> float:
    """Returns the best peer's measure over DyWeight's in a record."""
    return of_best_peer(record, key) / record["ours"]["dyweight"][key]
