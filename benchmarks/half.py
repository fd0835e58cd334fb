"""Half precision: solvers fitted to the float32 network or to the copy, and the best peer, on the copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from learned_solvers.training.starts.candidates import rmse

from .peers import best_peer
from .setting import fit, unseen_trial
from .suite import BENCHMARKS

__all__ = ["DTYPES", "half", "leads_in_half"]

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
STEPS, GUIDANCE = (5, 8), 3.0
_UNSEEN = {"emoji": 24}  # starts, otherwise 128: half precision is five to eight times slower on a CPU


def half(name: str, steps: tuple[int, ...] = STEPS) -> dict[str, Any]:
    """Errors on the network and on its copies, by steps; all relative to the float32 network's teacher."""
    benchmark = BENCHMARKS[name]
    unseen = unseen_trial(benchmark, GUIDANCE, _UNSEEN.get(name, 128))
    solver = fit(benchmark, steps, GUIDANCE).solver
    peers = {n: best_peer(benchmark, unseen, n).table for n in steps}
    tables = {n: solver.table(n, benchmark.noise) for n in steps}
    points: dict[int, dict[str, Any]] = {
        n: {"steps": n, "float32": {"ours": rmse(unseen, tables[n]), "peer": rmse(unseen, peers[n])}} for n in steps
    }
    for label, dtype in DTYPES.items():
        copy = replace(unseen, model=benchmark.model(dtype))
        fitted = fit(benchmark, steps, GUIDANCE, dtype=dtype).solver
        for n, point in points.items():
            point[label] = {
                "ours": rmse(copy, tables[n]), "fitted": rmse(copy, fitted.table(n, benchmark.noise)),
                "peer": rmse(copy, peers[n]),
            }  # fmt: skip
            ratios = {key: round(ratio, 2) for key, ratio in leads_in_half(point[label]).items()}
            print(f"{name}, {label}, {n} steps: {ratios}", flush=True)
    return {"network": name, "guidance": GUIDANCE, "points": list(points.values())}


def leads_in_half(errors: Mapping[str, float]) -> dict[str, float]:
    """The best peer's error divided by the solvers', by where these were fitted."""
    return {key: errors["peer"] / errors[key] for key in errors if key != "peer"}
