"""Fidelity per call: fitted and published solvers against the samplers that people use, at equal network calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from learned_solvers.samplers import SolverTable, load_solver
from learned_solvers.training import fit_solver
from learned_solvers.training.fit import FitResult
from learned_solvers.training.scan import Candidate, best_of_methods, candidates, rank, rmse
from learned_solvers.training.teacher import Teacher
from learned_solvers.training.trial import Trial
from torch import Tensor

from .quality import quality_of, span_error
from .subjects import SUBJECTS, Subject

__all__ = [
    "GUIDANCES",
    "STEPS",
    "TEACHER",
    "Sizes",
    "best_peers",
    "fidelity",
    "fit",
    "least_error",
    "of_best_peer",
    "unseen_of",
]

STEPS = (3, 4, 5, 6, 8, 10)
GUIDANCES = (1.0, 3.0, 7.0)
TEACHER = Teacher("ipndm", 60)


@dataclass(frozen=True)
class Sizes:
    """How many starts a measurement takes: `fitted` and `held_out` for a fit, `unseen` to judge, `ranked` for peers."""

    fitted: int = 96
    held_out: int = 32
    unseen: int = 512
    ranked: int = 48


def unseen_of(subject: Subject, guidance: float | Tensor, count: int, cache: Path | None = None) -> Trial:
    """Returns starts that no fit sees, with the teacher's ends, on the float32 network."""
    model, samples = subject.model(), subject.starts(count, 99, guidance)
    reference = TEACHER.reference(model, samples, subject.noise, cache=cache)
    return Trial(model, samples, reference, count)


def fit(
    subject: Subject,
    family: str,
    guidance: float | Tensor,
    steps: Sequence[int],
    sizes: Sizes,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> FitResult:
    """Returns a fit with default settings, but for the teacher, on starts of its own."""
    starts = subject.starts(sizes.fitted + sizes.held_out, seed, guidance)
    shown = f"{guidance:g}" if isinstance(guidance, float) else "several"
    card = {"model_family": subject.name, "checkpoint": subject.about, "guidance": shown, "licence": "MIT"}
    return fit_solver(
        subject.model(dtype).model, starts.x.to(dtype), noise=subject.noise, family=family, steps=steps,
        teacher=TEACHER.method, teacher_steps=TEACHER.steps, held_out=sizes.held_out, extra_args=starts.extra_args,
        card=card,
    )  # fmt: skip


def fidelity(name: str, guidance: float, steps: Sequence[int], sizes: Sizes, solvers: Path, cache: Path | None) -> Any:
    """Returns the records of a network at a guidance; writes the fitted solvers into a folder."""
    subject = SUBJECTS[name]
    solvers.mkdir(parents=True, exist_ok=True)
    unseen = unseen_of(subject, guidance, sizes.unseen, cache)
    fits = {}
    for family in subject.families:
        fits[family] = fit(subject, family, guidance, steps, sizes)
        fits[family].solver.save(solvers / f"{family}_{name}_guidance-{guidance:g}.safetensors", overwrite=True)
    records = []
    for n in steps:
        peers = _peers(subject, unseen, n, sizes)
        ours = {
            family: _measured(name, unseen, result.solver.table(n, subject.noise)) for family, result in fits.items()
        }
        for family, result in fits.items():
            table, report = result.solver.table(n, subject.noise), result.report[n]
            ours[family] |= {"span": span_error(unseen, table), "start": report.start}
            ours[family] |= {"network_calls": report.network_calls, "seconds": report.seconds}
        published = {}
        for file in subject.published:
            solver = load_solver(file)
            if n in solver.steps:
                published[file] = _measured(name, unseen, solver.table(n, subject.noise_with_tokens))
        records.append({"steps": n, "peers": peers, "ours": ours, "published": published})
        print(name, guidance, n, _line(records[-1]), flush=True)
    return {"network": name, "guidance": guidance, "records": records}


def _peers(subject: Subject, unseen: Trial, steps: int, sizes: Sizes) -> dict[str, dict[str, Any]]:
    """Returns the quality of the five best methods, each at its best grid; ranked on few starts, judged on all.

    Close calls of the ranking are judged too, so that no peer is the weaker for the few.
    """
    order = ranked(subject, unseen, steps, sizes)
    chosen = {c.name: c for c in [*order[:3], *best_of_methods(order)[:5]]}
    return {label: _measured(subject.name, unseen, c.table) for label, c in chosen.items()}


def ranked(subject: Subject, unseen: Trial, steps: int, sizes: Sizes) -> list[Candidate]:
    """Returns the classical solvers on all grids, best first on a few of the starts."""
    return [c for _, c in rank(unseen.first(sizes.ranked), list(candidates(steps, subject.noise)))]


def best_peers(subject: Subject, unseen: Trial, steps: int, sizes: Sizes) -> list[SolverTable]:
    """Returns the tables of the three best classical solvers by the few starts: one of them is the best on all."""
    return [candidate.table for candidate in ranked(subject, unseen, steps, sizes)[:3]]


def least_error(trial: Trial, tables: Sequence[SolverTable]) -> float:
    """Returns the error of the best of some tables over all starts."""
    return min(rmse(trial, table) for table in tables)


def _measured(name: str, unseen: Trial, table: SolverTable) -> dict[str, Any]:
    return asdict(quality_of(name, unseen, unseen.ends(table)))


def of_best_peer(record: dict[str, Any], key: str) -> float:
    """Returns the best peer's measure in a record."""
    return min(peer[key] for peer in record["peers"].values())


def _line(record: dict[str, Any]) -> str:
    """Returns what a record says, for the log: ratios to the best peer, error and Frechet; error over span."""
    least = {key: of_best_peer(record, key) for key in ("error", "frechet")}
    return "; ".join(
        f"{family}: error {mine['error']:.4f} 1/{least['error'] / mine['error']:.2f}, "
        f"frechet 1/{least['frechet'] / max(mine['frechet'], 1e-12):.1f}, span x{mine['error'] / mine['span']:.2f}"
        for family, mine in record["ours"].items()
    )
