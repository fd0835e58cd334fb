"""Fidelity per call with the networks in half precision: the fitted solvers and the best peers as fidelity found them.

precision.py fits to such copies too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from learned_solvers.training.starts.candidates import candidates

from .fidelity import Sizes, fitted_of, unseen_of
from .peers import best_of, peers_of
from .precision import DTYPES
from .quality import measured
from .subjects import SUBJECTS

__all__ = ["half", "lead_of"]


def half(
    name: str, dtype: str, guidance: float, steps: Sequence[int], sizes: Sizes, solvers: Path, cache: Path | None
) -> dict[str, Any]:
    """Returns the quality on the half-precision copy of a network and on the network itself, beside its own teacher.

    Of the fitted solvers in a folder, and of the recorded peers with the least error and the least Frechet distance.
    """
    subject = SUBJECTS[name]
    unseen = unseen_of(subject, guidance, sizes.unseen, cache)
    trials = {"network": unseen, "copy": replace(unseen, model=subject.model(DTYPES[dtype]))}
    fitted, peers_at, found = fitted_of(name, guidance, solvers), peers_of(name, guidance), []
    for n in steps:
        labels = dict.fromkeys(best_of(peers_at[n], measure) for measure in ("error", "frechet"))
        classical = {candidate.name: candidate.table for candidate in candidates(n, subject.noise)}
        tables = {
            "ours": {family: solver.table(n, subject.noise) for family, solver in fitted.items()},
            "peers": {label: classical[label] for label in labels},
        }
        found.append({"steps": n} | {
            side: {
                label: {where: measured(name, trial, table) for where, trial in trials.items()}
                for label, table in own.items()
            }
            for side, own in tables.items()
        })  # fmt: skip
        print(name, dtype, guidance, n, _line(found[-1]), flush=True)
    return {"network": name, "dtype": dtype, "guidance": guidance, "records": found}


def lead_of(record: dict[str, Any], where: str) -> float:
    """Returns the best peer's error over DyWeight's in a record of half, on the "network" or its "copy"."""
    return min(peer[where]["error"] for peer in record["peers"].values()) / record["ours"]["dyweight"][where]["error"]


def _line(record: dict[str, Any]) -> str:
    """Returns what a record says, for the log."""
    return "; ".join(
        f"{label}: error {own['network']['error']:.4f}, on the copy {own['copy']['error']:.4f}"
        for label, own in {**record["ours"], **record["peers"]}.items()
    )
