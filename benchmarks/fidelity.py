"""Fidelity per call: fitted and published solvers beside a many-step teacher; peers.py has the others' samplers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from learned_solvers.samplers import Solver, load_solver
from learned_solvers.training import fit_solver
from learned_solvers.training.data.teacher import Teacher
from learned_solvers.training.data.trial import Trial
from learned_solvers.training.fit import FitResult
from torch import Tensor

from .quality import measured, span_error
from .subjects import SUBJECTS, Subject

__all__ = [
    "GUIDANCES",
    "STEPS",
    "TEACHER",
    "Sizes",
    "fidelity",
    "fit",
    "fitted_of",
    "unseen_of",
]

STEPS = (3, 4, 5, 6, 8, 10)
GUIDANCES = (1.0, 3.0, 7.0)
TEACHER = Teacher("ipndm", 60)


@dataclass(frozen=True)
class Sizes:
    """How many starts a measurement takes: `fitted` and `held_out` for a fit, `unseen` to judge, `ranked` for peers."""

    fitted: int = 480
    held_out: int = 32
    unseen: int = 512
    ranked: int = 48


def unseen_of(
    subject: Subject, guidance: float | Tensor, count: int, cache: Path | None = None, seed: int = 99
) -> Trial:
    """Returns starts that no fit sees, with the teacher's ends, on the float32 network."""
    model, samples = subject.model(), subject.starts(count, seed, guidance)
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
        fits[family].solver.save(solvers / _file_of(family, name, guidance), overwrite=True)
    records = []
    for n in steps:
        ours = {
            family: measured(name, unseen, result.solver.table(n, subject.noise)) for family, result in fits.items()
        }
        for family, result in fits.items():
            table, report = result.solver.table(n, subject.noise), result.report[n]
            ours[family] |= {"span": span_error(unseen, table), "start": report.start}
            ours[family] |= {"network_calls": report.network_calls, "seconds": report.seconds}
        published = {}
        for file in subject.published:
            solver = load_solver(file)
            if n in solver.steps:
                published[file] = measured(name, unseen, solver.table(n, subject.noise_with_tokens))
        records.append({"steps": n, "ours": ours, "published": published})
        print(name, guidance, n, _line(records[-1]), flush=True)
    return {"network": name, "guidance": guidance, "records": records}


def fitted_of(name: str, guidance: float, solvers: Path) -> dict[str, Solver]:
    """Returns the fitted solvers of a network at a guidance, by family, that `fidelity` wrote into a folder."""
    return {family: load_solver(solvers / _file_of(family, name, guidance)) for family in SUBJECTS[name].families}


def _file_of(family: str, name: str, guidance: float) -> str:
    return f"{family}_{name}_guidance-{guidance:g}.safetensors"


def _line(record: dict[str, Any]) -> str:
    """Returns what a record says, for the log."""
    return "; ".join(
        f"{family}: error {mine['error']:.4f}, of the span bound {mine['error'] / mine['span']:.2f}, "
        f"frechet {mine['frechet']:.3f}"
        for family, mine in record["ours"].items()
    )
