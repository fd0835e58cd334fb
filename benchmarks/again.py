"""The recorded solvers and peers on other starts: does the table hold where neither was chosen?

Nothing is fitted and no peer is ranked, so this is the quick way to doubt fidelity.json and peers.json.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from learned_solvers.training.starts.candidates import candidates

from .fidelity import Sizes, fitted_of, unseen_of
from .peers import compared, finite_quality, lead_at, peers_of
from .quality import measured, span_error
from .subjects import SUBJECTS

__all__ = ["SEEDS", "again", "beside_the_record"]

SEEDS = (1, 2)  # of what is recorded
_APART = 10_000  # fits and the other measurements draw their starts by smaller seeds


def again(
    name: str, guidance: float, seed: str, steps: Sequence[int], sizes: Sizes, solvers: Path, cache: Path | None
) -> dict[str, Any]:
    """Returns the quality of a network's recorded solvers and peers at a guidance, on starts of a seed of its own."""
    subject = SUBJECTS[name]
    unseen = unseen_of(subject, guidance, sizes.unseen, cache, _APART + int(seed))
    fitted, peers_at, found = fitted_of(name, guidance, solvers), peers_of(name, guidance), []
    for n in steps:
        ours = {}
        for family, solver in fitted.items():
            table = solver.table(n, subject.noise)
            ours[family] = measured(name, unseen, table) | {"span": span_error(unseen, table)}
        theirs = {
            c.name: finite_quality(name, unseen, c) for c in candidates(n, subject.noise) if c.name in peers_at[n]
        }
        if set(theirs) != set(peers_at[n]):
            raise ValueError(f"peers of {name} are on record that are none now: run python -m benchmarks peers first")
        peers = {label: asdict(own) for label, own in theirs.items() if own is not None}
        found.append({"steps": n, "ours": ours, "peers": peers})
        print(
            f"{name}, guidance {guidance:g}, {n} calls: best peer's error / ours {lead_at(found[-1]):.2f}", flush=True
        )
    return {"network": name, "guidance": guidance, "seed": int(seed), "records": found}


def beside_the_record(found: Sequence[dict[str, Any]]) -> str:
    """Returns what records of one seed come to, and what fidelity and the peers have on record for the same points."""
    here, every = _points(found), _points(compared())
    before = {place: every[place] for place in here}
    leads = {place: (lead_at(before[place]), lead_at(here[place])) for place in here}
    farthest = sorted(leads, key=lambda place: abs(math.log(leads[place][0] / leads[place][1])), reverse=True)[:5]
    return "\n".join(
        [
            f"On record: {_told(before)}.",
            f"Starts of seed {found[0]['seed']}: {_told(here)}.",
            "Best peer's error / ours that differ most, on record and here:",
            *(f"  {place}: {leads[place][0]:.2f}, {leads[place][1]:.2f}" for place in farthest),
        ]
    )


def _points(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        f"{own['network']}, guidance {own['guidance']:g}, {point['steps']} calls": point
        for own in found
        for point in own["records"]
    }


def _told(points: dict[str, dict[str, Any]]) -> str:
    later = [point for point in points.values() if point["steps"] >= 4]
    leads, leads_later = ([lead_at(point) for point in some] for some in (points.values(), later))
    third = sum(lead_at(point, "frechet") >= 3 for point in later)
    near = sum(own["error"] <= 1.15 * own["span"] for own in (point["ours"]["dyweight"] for point in later))
    return (
        f"error below the best peer's at {sum(lead > 1 for lead in leads)} of {len(leads)} points, half of it at "
        f"{sum(lead >= 2 for lead in leads)}; of the {len(later)} from 4 calls on half of it at "
        f"{sum(lead >= 2 for lead in leads_later)}, a third of the best peer's Frechet distance at {third}, within "
        f"1.15 of the span bound at {near}"
    )
