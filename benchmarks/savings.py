"""How many calls a fitted solver saves: those that the best peer needs for the error of ours at five."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from learned_solvers.samplers import load_solver
from learned_solvers.training.starts.candidates import rmse

from .fidelity import Sizes, unseen_of
from .peers import best_peers, least_error
from .subjects import SUBJECTS

__all__ = ["CALLS", "savings"]

CALLS = 5
_MOST = 40


def savings(name: str, guidance: float, sizes: Sizes, solvers: Path, cache: Path | None) -> dict[str, Any]:
    """Returns our error at five calls and the best peer's at five and more, up to the count that reaches ours."""
    subject = SUBJECTS[name]
    unseen = unseen_of(subject, guidance, sizes.unseen, cache)
    solver = load_solver(solvers / f"dyweight_{name}_guidance-{guidance:g}.safetensors")
    ours = rmse(unseen, solver.table(CALLS, subject.noise))
    peers: dict[int, float] = {}

    def reaches(calls: int) -> bool:
        peers[calls] = least_error(unseen, best_peers(subject, unseen, calls, sizes))
        return peers[calls] <= ours

    found = next((calls for calls in range(CALLS, _MOST + 1) if reaches(calls)), None)
    print(name, guidance, f"our error at {CALLS}: {ours:.4f}, the best peer's at {found} calls", flush=True)
    return {"network": name, "guidance": guidance, "ours": ours, "peers": peers, "calls": found}
