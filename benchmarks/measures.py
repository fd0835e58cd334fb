"""Quality per call: fitted solvers, on other starts and in half precision, and the calls that they save."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from learned_solvers.samplers import SolverTable, load_solver
from learned_solvers.training.data.trial import Trial
from learned_solvers.training.report import FitResult
from learned_solvers.training.starts.candidates import candidates, rmse

from .peers import finite_qualities, lead, peer_errors, recorded_peers
from .quality import quality, span_error
from .setting import Setting, fit, load_fitted, record_by_steps, solver_file, unseen_trial
from .suite import BENCHMARKS, Benchmark

__all__ = ["DTYPES", "SAVING_STEPS", "again", "fidelity", "half", "lead_in_half", "precision", "savings"]

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
SAVING_STEPS = 5  # of our solver; the peers take this many calls and more
_MOST_CALLS = 40  # of a peer in `savings`
_FIRST_SEED = 10_000  # of the starts of `again`; fits and other measurements use smaller seeds


def fidelity(name: str, guidance: float, setting: Setting) -> dict[str, Any]:
    """The quality of fitted and published solvers; saves the fitted ones in the setting's folder."""
    benchmark = BENCHMARKS[name]
    unseen = unseen_trial(benchmark, guidance, setting)
    fits = {family: fit(benchmark, guidance, setting, family=family) for family in benchmark.families}
    for family, result in fits.items():
        result.solver.save(setting.solvers / solver_file(family, name, guidance), overwrite=True)
    published = {file: load_solver(file) for file in benchmark.published}

    def fitted_quality(result: FitResult, steps: int) -> dict[str, Any]:
        report = result.report[steps]
        cost = {"start": report.start, "network_calls": report.network_calls, "seconds": report.seconds}
        return {**_with_span(name, unseen, result.solver.table(steps, benchmark.noise)), **cost}

    def measure(steps: int) -> dict[str, Any]:
        tables = {
            file: solver.table(steps, benchmark.published_noise)
            for file, solver in published.items()
            if steps in solver.steps
        }
        return {
            "ours": {family: fitted_quality(result, steps) for family, result in fits.items()},
            "published": {file: quality(name, unseen, table) for file, table in tables.items()},
        }

    return record_by_steps({"network": name, "guidance": guidance}, setting, measure)


def again(name: str, guidance: float, seed: int, setting: Setting) -> dict[str, Any]:
    """The quality of the recorded solvers and peers on starts of another seed, used to choose neither.

    Without fits and without ranking of peers: the quick check of the records of `fidelity` and `peers`.
    """
    benchmark = BENCHMARKS[name]
    unseen = unseen_trial(benchmark, guidance, setting, _FIRST_SEED + seed)
    solvers, peers_at = load_fitted(name, guidance, setting), recorded_peers(name, guidance)

    def measure(steps: int) -> dict[str, Any]:
        tables = {family: solver.table(steps, benchmark.noise) for family, solver in solvers.items()}
        ours = {family: _with_span(name, unseen, table) for family, table in tables.items()}
        peers = [candidate for candidate in candidates(steps, benchmark.noise) if candidate.name in peers_at[steps]]
        if len(peers) < len(peers_at[steps]):
            raise ValueError(f"some recorded peers of {name} no longer exist: run python -m benchmarks peers first")
        return {"ours": ours, "peers": finite_qualities(name, unseen, peers)}

    return record_by_steps({"network": name, "guidance": guidance, "seed": seed}, setting, measure)


def half(name: str, dtype: str, guidance: float, setting: Setting) -> dict[str, Any]:
    """The quality of the recorded solvers and best peers on a network and on its half-precision copy."""
    benchmark = BENCHMARKS[name]
    trials = _with_copy(benchmark, dtype, unseen_trial(benchmark, guidance, setting))
    solvers, peers_at = load_fitted(name, guidance, setting), recorded_peers(name, guidance)

    def qualities(tables: Mapping[str, SolverTable]) -> dict[str, Any]:
        return {
            label: {where: quality(name, trial, table) for where, trial in trials.items()}
            for label, table in tables.items()
        }

    def measure(steps: int) -> dict[str, Any]:
        classical = {candidate.name: candidate.table for candidate in candidates(steps, benchmark.noise)}
        best = dict.fromkeys(min(peers_at[steps], key=lambda p: peers_at[steps][p][k]) for k in ("error", "frechet"))
        return {
            "ours": qualities({family: solver.table(steps, benchmark.noise) for family, solver in solvers.items()}),
            "peers": qualities({label: classical[label] for label in best}),
        }

    return record_by_steps({"network": name, "dtype": dtype, "guidance": guidance}, setting, measure)


def lead_in_half(point: Mapping[str, Any], where: str) -> float:
    """The best peer's error divided by DyWeight's at a point of `half`, on the "network" or its "copy"."""
    return lead({side: {label: pair[where] for label, pair in point[side].items()} for side in ("ours", "peers")})


def precision(name: str, dtype: str, guidance: float, setting: Setting) -> dict[str, Any]:
    """The errors of a solver fitted to a half-precision copy and of the best peer, on the network and on the copy."""
    benchmark = BENCHMARKS[name]
    trials = _with_copy(benchmark, dtype, unseen_trial(benchmark, guidance, setting))
    solver = fit(benchmark, guidance, setting, dtype=DTYPES[dtype]).solver

    def measure(steps: int) -> dict[str, Any]:
        table = solver.table(steps, benchmark.noise)
        peers = peer_errors(benchmark, steps, trials["network"].first(setting.ranked), *trials.values())
        errors = [{"ours": rmse(t, table), "peer": peer} for t, peer in zip(trials.values(), peers, strict=True)]
        return {**errors[0], "on_copy": errors[1]}

    return record_by_steps({"network": name, "dtype": dtype, "guidance": guidance}, setting, measure)


def savings(name: str, guidance: float, setting: Setting) -> dict[str, Any]:
    """Our error at 5 calls, and the best peer's at 5 calls and more, up to the count that reaches ours."""
    benchmark = BENCHMARKS[name]
    unseen = unseen_trial(benchmark, guidance, setting)
    ours = rmse(unseen, load_fitted(name, guidance, setting)["dyweight"].table(SAVING_STEPS, benchmark.noise))
    peers: dict[int, float] = {}
    reached = None
    for calls in range(SAVING_STEPS, _MOST_CALLS + 1):
        (peers[calls],) = peer_errors(benchmark, calls, unseen.first(setting.ranked), unseen)
        if peers[calls] <= ours:
            reached = calls
            break
    print(name, guidance, f"error in {SAVING_STEPS} calls: {ours:.4f}; the best peer needs {reached}", flush=True)
    return {"network": name, "guidance": guidance, "ours": ours, "peers": peers, "calls": reached}


def _with_span(name: str, unseen: Trial, table: SolverTable) -> dict[str, float]:
    """The quality of a table, with the span bound of its trajectory."""
    return {**quality(name, unseen, table), "span": span_error(unseen, table)}


def _with_copy(benchmark: Benchmark, dtype: str, unseen: Trial) -> dict[str, Trial]:
    """The same starts and teacher's end states, on the network and on its copy in a dtype."""
    return {"network": unseen, "copy": replace(unseen, model=benchmark.model(DTYPES[dtype]))}
