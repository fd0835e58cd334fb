"""The recorded solvers and peers on other starts: does the table hold where neither was chosen?

Nothing is fitted and no peer is ranked, so this is the quick way to doubt fidelity.json and peers.json.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from learned_solvers.training.scan import candidates

from .fidelity import Sizes, fitted_of, unseen_of
from .peers import compared, finite_quality, lead_at, peers_of
from .quality import quality_of, span_error
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
            ours[family] = asdict(quality_of(name, unseen, unseen.ends(table))) | {"span": span_error(unseen, table)}
        measured = {
            c.name: finite_quality(name, unseen, c) for c in candidates(n, subject.noise) if c.name in peers_at[n]
        }
        peers = {label: asdict(own) for label, own in measured.items() if own is not None}
        found.append({"steps": n, "ours": ours, "peers": peers})
        print(
            f"{name}, guidance {guidance:g}, {n} calls: best peer's error / ours {lead_at(found[-1]):.2f}", flush=True
        )
    return {"network": name, "guidance": guidance, "seed": int(seed), "records": found}


def beside_the_record(found: Sequence[dict[str, Any]]) -> str:
    """Returns what records of one seed come to, and what fidelity and the peers have on record for the same points."""
    places = {(own["network"], own["guidance"]) for own in found}
    before = [own for own in compared() if (own["network"], own["guidance"]) in places]
    lines = [f"On record: {_told(before)}.", f"Starts of seed {found[0]['seed']}: {_told(found)}."]
    pairs = [
        (f"{own['network']}, guidance {own['guidance']:g}, {new['steps']} calls", lead_at(old), lead_at(new))
        for own in found
        for other in before
        if (other["network"], other["guidance"]) == (own["network"], own["guidance"])
        for new in own["records"]
        for old in other["records"]
        if old["steps"] == new["steps"]
    ]
    farthest = sorted(pairs, key=lambda pair: abs(math.log(pair[2] / pair[1])), reverse=True)[:5]
    lines.append("Best peer's error / ours that differ most, on record and here:")
    return "\n".join([*lines, *(f"  {place}: {old:.2f}, {new:.2f}" for place, old, new in farthest)])


def _told(found: Sequence[dict[str, Any]]) -> str:
    points = [point for own in found for point in own["records"]]
    later = [point for point in points if point["steps"] >= 4]
    ours = [point["ours"]["dyweight"] for point in later]
    return (
        f"error below the best peer's at {sum(lead_at(point) > 1 for point in points)} of {len(points)} points, half "
        f"of it at {sum(lead_at(point) >= 2 for point in points)}; of the {len(later)} from 4 calls on half of it at "
        f"{sum(lead_at(point) >= 2 for point in later)}, a third of the best peer's Frechet distance at "
        f"{sum(lead_at(point, 'frechet') >= 3 for point in later)}, within 1.15 of the span bound at "
        f"{sum(own['error'] <= 1.15 * own['span'] for own in ours)}"
    )
