"""Settings of a measurement; unseen starts, fits and records by step count under these settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from learned_solvers.samplers import Solver, load_solver
from learned_solvers.samplers.guidance import Guidance
from learned_solvers.training import EFFORTS, fit_solver
from learned_solvers.training.data.teacher import Teacher
from learned_solvers.training.data.trial import Trial
from learned_solvers.training.report import FitResult
from torch import Tensor

from .record import SOLVERS
from .suite import BENCHMARKS, Benchmark

__all__ = [
    "GUIDANCES",
    "Setting",
    "fit",
    "fit_as_users_do",
    "load_fitted",
    "record_by_steps",
    "solver_file",
    "unseen_trial",
]

GUIDANCES = (1.0, 3.0, 7.0)
TEACHER = Teacher("ipndm", 60)
SEEDS = (0, 1, 2)  # of the starts of fits with an effort's samples: they are few, so that the results vary


@dataclass(frozen=True)
class Setting:
    """Numbers of starts, step counts and folders of a measurement."""

    fitted: int = 480  # starts of a fit
    held_out: int = 32  # held-out starts of a fit
    unseen: int = 512  # starts that the results are evaluated on
    ranked: int = 48  # unseen starts that choose the peers
    steps: Sequence[int] = (3, 4, 5, 6, 8, 10)
    cache: Path | None = None  # folder for the teacher's end states
    solvers: Path = SOLVERS  # folder of fitted solvers: `fidelity` writes them, other parts read them

    @property
    def sizes(self) -> dict[str, int]:
        """The numbers of starts, for a record."""
        return {name: getattr(self, name) for name in ("fitted", "held_out", "unseen", "ranked")}


def unseen_trial(benchmark: Benchmark, guidance: float | Tensor, setting: Setting, seed: int = 99) -> Trial:
    """Starts that no fit uses, with the teacher's end states, on the float32 network."""
    model, samples = benchmark.model(), benchmark.starts(setting.unseen, seed, guidance)
    reference = TEACHER.reference(model, samples, benchmark.noise, cache=setting.cache)
    return Trial(model, samples, reference, len(samples))


def fit(
    benchmark: Benchmark,
    guidance: float | Tensor,
    setting: Setting,
    *,
    family: str = "dyweight",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> FitResult:
    """A fit to all the setting's starts, with default settings except for the teacher; `seed` draws the starts."""
    starts = benchmark.starts(setting.fitted + setting.held_out, seed, guidance)
    values = tuple(torch.as_tensor(guidance, dtype=torch.float64).unique().tolist())
    card = {"architecture": benchmark.name, "checkpoint": benchmark.about, "guidance": Guidance("cfg", values)}
    return fit_solver(
        benchmark.model(dtype).model, starts.x.to(dtype), noise=benchmark.noise, family=family, steps=setting.steps,
        teacher=TEACHER.method, teacher_steps=TEACHER.steps, held_out=setting.held_out, extra_args=starts.extra_args,
        optimizer=replace(EFFORTS["default"].optimizer, samples=setting.fitted),
        card={**card, "licence": "MIT"},
    )  # fmt: skip


def fit_as_users_do(
    benchmark: Benchmark,
    steps: int,
    *guidance: float,
    effort: str = "default",
    samples: int | None = None,
    seed: int = 0,
    model: Callable[..., Tensor] | None = None,
) -> FitResult:
    """A fit with an effort's settings and the usual teacher, as the command and the node make it.

    Args:
        benchmark: The network.
        steps: Step count.
        guidance: The guidance, or several as knots.
        effort: A key of EFFORTS.
        samples: Number of samples, as `--samples` sets it; None: the effort's.
        seed: Seed of the starts.
        model: A denoiser that calls the network; None: the network itself.
    """
    settings = EFFORTS[effort]
    fitted, held_out = settings.sizes(samples)
    starts = benchmark.starts(fitted + held_out, seed, guidance[0])
    return fit_solver(
        model or benchmark.model().model, starts.x, noise=benchmark.noise, steps=(steps,), effort=effort,
        optimizer=replace(settings.optimizer, samples=fitted), held_out=held_out, guidance=guidance,
        guidance_argument="guidance", extra_args=starts.extra_args,
    )  # fmt: skip


def solver_file(family: str, name: str, guidance: float) -> str:
    """The file name of a fitted solver."""
    return f"{family}_{name}_guidance-{guidance:g}.safetensors"


def load_fitted(name: str, guidance: float, setting: Setting) -> dict[str, Solver]:
    """The solvers that `fidelity` fitted to a network at a guidance, by family."""
    files = {family: solver_file(family, name, guidance) for family in BENCHMARKS[name].families}
    return {family: load_solver(setting.solvers / file) for family, file in files.items()}


def record_by_steps(
    facts: Mapping[str, Any], setting: Setting, measure: Callable[[int], Mapping[str, Any]]
) -> dict[str, Any]:
    """A record: identifying facts and `measure(steps)` at each step count. Prints the errors."""
    records = []
    for n in setting.steps:
        records.append({"steps": n, **measure(n)})
        print(*facts.values(), f"{n} calls:", "; ".join(_errors(records[-1])), flush=True)
    return {**facts, "records": records}


def _errors(record: Mapping[str, Any], label: str = "") -> Iterator[str]:
    """Yields the errors in a record, with the path to each."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _errors(value, f"{label}{key} ")
        elif key in ("error", "span", "ours", "peer"):
            yield f"{label}{key} {value:.4f}"
