"""The picture of a fitted solver: the same starts by the teacher, the best classical solvers and ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...samplers import Solver, SolverTable, sample_table
from ...samplers.loop import Denoiser
from ...samplers.schedules import Noise
from ..data.batch_limit import Room
from ..data.samples import Samples
from ..data.teacher import Teacher
from ..report import FitResult
from ..starts.candidates import candidate_named
from .sheet import Strip

__all__ = ["strips_of"]


def strips_of(
    solver: Solver,
    result: FitResult,
    teacher: Teacher,
    model: Denoiser,
    starts: Samples,
    noise: Noise,
    pictures: Callable[[Tensor], Tensor],
) -> list[Strip]:
    """Returns rows of pictures: the teacher's, then per step count the best classical solver's and ours.

    Args:
        solver: As read from its file.
        result: Names the best classical solvers.
        teacher: The reference.
        model: The denoiser.
        starts: Starting states, run a microbatch at a time.
        noise: The model's schedule.
        pictures: Turns end states into pictures [B, C, H, W] in [0, 1].
    """
    end = _run(starts, lambda x, extra_args: teacher.end_of(model, x, extra_args, noise))
    strips: list[Strip] = [(f"{teacher.method}, {teacher.calls} calls", "the teacher", pictures(end))]

    def add(name: str, steps: int, table: SolverTable) -> None:
        own = _run(starts, lambda x, extra_args: sample_table(model, x, table, extra_args, disable=True))
        error = float((own - end).square().mean().sqrt())
        strips.append((name, f"{steps} calls, error {error:.3g}", pictures(own)))

    for steps in solver.steps:
        best = result.report[steps].peers[0].name
        add(best, steps, candidate_named(best, steps, noise).table)
        add("Learned Solvers", steps, solver.table(steps, noise))
    return strips


def _run(starts: Samples, run: Callable[[Tensor, Mapping[str, Any]], Tensor]) -> Tensor:
    def of_part(start: int, stop: int) -> Tensor:
        batch = starts.rows(start, stop)
        return run(batch.x, batch.extra_args)

    return torch.cat(list(Room().each(len(starts), starts.microbatch, of_part)))
