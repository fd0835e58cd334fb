"""The peers: the samplers of ComfyUI and k-diffusion on the usual grids, and the best of them by each measure.

Some two hundred candidates are ranked on a few starts; the best by error and by Frechet distance are evaluated on all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from learned_solvers.training.data.trial import Trial
from learned_solvers.training.starts.candidates import Candidate, best_of_methods, candidates, rank, rmse

from .quality import quality_of_ends
from .record import read_records
from .setting import Setting, record_by_steps, unseen_trial
from .suite import BENCHMARKS, Benchmark

__all__ = ["best_value", "compare_with_record", "lead", "peer_errors", "peers", "recorded_peers", "recorded_points"]


def peers(name: str, guidance: float, setting: Setting) -> dict[str, Any]:
    """The quality of the best peers of a network at a guidance, by step count."""
    benchmark = BENCHMARKS[name]
    unseen = unseen_trial(benchmark, guidance, setting)

    def measure(steps: int) -> dict[str, Any]:
        chosen = _choose(name, unseen.first(setting.ranked), list(candidates(steps, benchmark.noise)))
        return {"peers": finite_qualities(name, unseen, chosen)}

    return record_by_steps({"network": name, "guidance": guidance}, setting, measure)


def finite_qualities(name: str, trial: Trial, peers: Iterable[Candidate]) -> dict[str, dict[str, float]]:
    """The quality of candidates by name, without those whose states overflow."""
    ends = {candidate.name: trial.ends(candidate.table) for candidate in peers}
    return {label: quality_of_ends(name, trial, end) for label, end in ends.items() if bool(end.isfinite().all())}


def _choose(name: str, ranked: Trial, peers: Sequence[Candidate]) -> list[Candidate]:
    """The three best and the best grid of each of the five best methods by error; the five best by Frechet distance."""
    qualities = finite_qualities(name, ranked, peers)
    finite = [candidate for candidate in peers if candidate.name in qualities]
    by_error = sorted(finite, key=lambda candidate: qualities[candidate.name]["error"])
    by_frechet = sorted(finite, key=lambda candidate: qualities[candidate.name]["frechet"])
    return list(dict.fromkeys([*by_error[:3], *best_of_methods(by_error)[:5], *by_frechet[:5]]))


def peer_errors(benchmark: Benchmark, steps: int, ranked: Trial, *trials: Trial) -> list[float]:
    """The best peer's error on each trial, from the three candidates that are best on the `ranked` starts."""
    best = rank(ranked, list(candidates(steps, benchmark.noise)))[:3]
    return [min(rmse(trial, candidate.table) for _, candidate in best) for trial in trials]


def recorded_peers(name: str, guidance: float) -> dict[int, dict[str, Any]]:
    """The recorded peers of a network at a guidance: measures by step count and name. ValueError without a record."""
    for record in read_records("peers").values():
        if (record["network"], record["guidance"]) == (name, guidance):
            return {point["steps"]: point["peers"] for point in record["records"]}
    raise ValueError(f"no peers of {name} at guidance {guidance:g} are recorded: run python -m benchmarks peers first")


def recorded_points() -> list[dict[str, Any]]:
    """The records of `fidelity`, each point with its peers; networks without measured peers are left out."""
    peers_at = {
        (r["network"], r["guidance"], p["steps"]): p for r in read_records("peers").values() for p in r["records"]
    }
    joined = []
    for record in read_records("fidelity").values():
        points = [(point, (record["network"], record["guidance"], point["steps"])) for point in record["records"]]
        if all(place in peers_at for _, place in points):
            joined.append({**record, "records": [point | peers_at[place] for point, place in points]})
    return joined


def best_value(point: Mapping[str, Any], key: str) -> float:
    """The lowest value of a measure among the peers at a point."""
    return min(peer[key] for peer in point["peers"].values())


def lead(point: Mapping[str, Any], key: str = "error") -> float:
    """The best peer's measure divided by DyWeight's at a point."""
    return best_value(point, key) / point["ours"]["dyweight"][key]


def compare_with_record(measured: Sequence[dict[str, Any]]) -> str:
    """A text that compares records of one seed with those of the same points on record: summaries and leads."""
    new, recorded = _by_place(measured), _by_place(recorded_points())
    old = {place: recorded[place] for place in new}
    leads = [f"{place}: {lead(old[place]):.2f}, {lead(new[place]):.2f}" for place in new]
    lines = [
        f"On record: {_summary(old.values())}.",
        f"Starts of seed {measured[0]['seed']}: {_summary(new.values())}.",
        "Best peer's error / ours, on record and on these starts:",
    ]
    return "\n".join([*lines, *leads])


def _by_place(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        f"  {record['network']}, guidance {record['guidance']:g}, {point['steps']} calls": point
        for record in records
        for point in record["records"]
    }


def _summary(points: Collection[dict[str, Any]]) -> str:
    later = [point for point in points if point["steps"] >= 4]
    ours = [point["ours"]["dyweight"] for point in later]
    leads, leads_later = ([lead(point) for point in group] for group in (points, later))
    return (
        f"error below the best peer's at {sum(ratio > 1 for ratio in leads)} of {len(leads)} points, at most half at "
        f"{sum(ratio >= 2 for ratio in leads)}; from 4 calls on ({len(later)} points): at most half at "
        f"{sum(ratio >= 2 for ratio in leads_later)}, Frechet distance at most a third at "
        f"{sum(lead(point, 'frechet') >= 3 for point in later)}, error at most 1.15 times the span bound at "
        f"{sum(measures['error'] <= 1.15 * measures['span'] for measures in ours)}"
    )
