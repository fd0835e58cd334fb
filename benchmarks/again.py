"""The recorded solvers and peers on other starts: does the table hold where neither was chosen?

Nothing is fitted and no peer is ranked, so this is the quick way to doubt fidelity.json and peers.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from learned_solvers.samplers import SolverTable
from learned_solvers.training.scan import candidates

from .fidelity import Sizes, fitted_of, unseen_of
from .peers import of_best_peer, peers_of
from .quality import quality_of, span_error
from .subjects import SUBJECTS

__all__ = ["SEEDS", "again", "told"]

SEEDS = (1, 2)  # of what is recorded
_APART = 10_000  # fits and the other measurements draw their starts by smaller seeds


def again(
    name: str, guidance: float, seed: str, steps: Sequence[int], sizes: Sizes, solvers: Path, cache: Path | None
) -> dict[str, Any]:
    """Returns the quality of a network's recorded solvers and peers at a guidance, on starts of a seed of its own."""
    subject = SUBJECTS[name]
    unseen = unseen_of(subject, guidance, sizes.unseen, cache, _APART + int(seed))
    fitted, peers_at, found = fitted_of(name, guidance, solvers), peers_of(name, guidance), []

    def measured(table: SolverTable) -> dict[str, Any]:
        return asdict(quality_of(name, unseen, unseen.ends(table)))

    for n in steps:
        own = {family: solver.table(n, subject.noise) for family, solver in fitted.items()}
        classical = {candidate.name: candidate.table for candidate in candidates(n, subject.noise)}
        ours = {family: measured(table) | {"span": span_error(unseen, table)} for family, table in own.items()}
        found.append({"steps": n, "ours": ours, "peers": {label: measured(classical[label]) for label in peers_at[n]}})
        lead = of_best_peer(found[-1], "error") / ours["dyweight"]["error"]
        print(f"{name}, guidance {guidance:g}, {n} calls: best peer's error / ours {lead:.2f}", flush=True)
    return {"network": name, "guidance": guidance, "seed": int(seed), "records": found}


def told(found: Sequence[dict[str, Any]]) -> str:
    """Returns what records of one seed, or of fidelity with its peers, come to."""
    points = [point for own in found for point in own["records"]]
    ours = [point["ours"]["dyweight"] for point in points]
    leads, nearness = (
        [of_best_peer(point, key) / own[key] for point, own in zip(points, ours, strict=True)]
        for key in ("error", "frechet")
    )
    return (
        f"error below the best peer's at {sum(lead > 1 for lead in leads)} of {len(points)} points, half of it at "
        f"{sum(lead >= 2 for lead in leads)}, lead {min(leads):.2f} to {max(leads):.2f}; Frechet distance below the "
        f"best peer's at {sum(lead > 1 for lead in nearness)}, a third of it at {sum(lead >= 3 for lead in nearness)}; "
        f"error within 1.15 of the span bound at {sum(own['error'] <= 1.15 * own['span'] for own in ours)}"
    )
