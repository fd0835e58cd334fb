"""Samplers with k-diffusion's signature, which every host uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .choose import choose_solver
from .families import FAMILIES, Family
from .files.solver import Solver, list_solvers, load_solver
from .guidance import Guidance
from .loop import Callback, Denoiser, sample_table
from .part import part_of_table
from .schedules import Noise, VPNoise
from .table import SolverTable

__all__ = ["SAMPLERS", "sample_solver", "table_between"]


@torch.no_grad()
def sample_solver(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    solver: Solver | str | Path | None = None,
    noise: Noise | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    family: str | None = None,
) -> Tensor:
    """Samples with a learned solver: the state at sigmas[-1], or at the end of the solver's grid if that is higher.

    A learned solver has its own noise levels, so only the first and the last of `sigmas` count; the solver runs the
    part of its grid between them.

    Args:
        model: k-diffusion denoiser, `model(x, sigma, **extra_args) -> denoised`.
        x: State at noise level sigmas[0], shape [B, ...].
        sigmas: The host's noise levels, descending, shape [M + 1].
        extra_args: Passed to the model.
        callback: See `sample_table`.
        disable: Hides the progress bar.
        solver: A Solver, the name of a bundled one, or the path of a file. None: the transferable bundled solver for
            the model's prediction type.
        noise: The model's noise schedule. None: read from `model.sigmas`, as in k-diffusion's wrappers.
        steps: Network calls of the whole grid. None: M.
        guidance: Guidance of the run, see `Solver.table`. None: extra_args["cond_scale"] (the host's CFG) for a solver
            whose guidance is CFG, else the solver's usual one.
        family: Accept only solvers of this family.

    Raises:
        ValueError: The solver does not match the model, the steps or the family, or the schedule is unknown.
    """
    if len(sigmas) < 2:
        return x
    noise = _noise_of(model) if noise is None else noise
    steps = len(sigmas) - 1 if steps is None else steps
    if solver is None:
        solver = choose_solver(map(load_solver, list_solvers()), noise, steps, family=family)
    elif not isinstance(solver, Solver):
        solver = load_solver(solver)
    if family not in (None, solver.family):
        raise ValueError(
            f"{solver.name} is a {FAMILIES[solver.family].title} file; choose a {family} file, or the sampler for "
            f"family {solver.family}"
        )
    if guidance is None:
        guidance = solver.guidance_of(_guidance_of((extra_args or {}).get("cond_scale")))
    table, _ = table_between(solver, steps, noise, sigmas, guidance)
    return sample_table(model, x, table, extra_args, callback, disable)


def table_between(
    solver: Solver, steps: int, noise: Noise, sigmas: Tensor, guidance: float | None = None
) -> tuple[SolverTable, bool]:
    """The part of a solver's table between the first and the last of `sigmas`, and whether it stops early."""
    whole = solver.table(steps, noise, guidance)
    table = part_of_table(whole, float(sigmas[0]), float(sigmas[-1]))
    return table, table.sigma_end > whole.sigma_end


def _noise_of(model: Denoiser) -> Noise:
    """The schedule of one of k-diffusion's discrete wrappers, which have their table in `sigmas`."""
    sigmas = getattr(model, "sigmas", None)
    if not isinstance(sigmas, Tensor):
        name = getattr(model, "__name__", type(model).__name__)
        raise ValueError(
            f"{name} has no table of sigmas, so its noise schedule is unknown; pass noise=, one of "
            "FlowNoise(tokens=...), VPNoise.from_sigmas(...) or EDMNoise(...)"
        )
    return VPNoise.from_sigmas(sigmas)


def _guidance_of(cond_scale: object) -> Guidance | None:
    """The guidance in k-diffusion's `cond_scale`, a number or one per row; None for anything else."""
    try:
        value = float(torch.as_tensor(cond_scale, dtype=torch.float64, device="cpu").flatten()[0])
        return Guidance("cfg", (min(max(value, 0.0), 1e6),))
    except (TypeError, ValueError, IndexError, RuntimeError):
        return None


def _sampler_of(family: Family) -> Callable[..., Tensor]:
    """`sample_solver` for one family, under the name of its sampler."""

    @wraps(sample_solver)
    def sample(*args: Any, **options: Any) -> Tensor:
        return sample_solver(*args, **{"family": family.name, **options})

    sample.__name__ = sample.__qualname__ = f"sample_{family.sampler}"
    sample.__doc__ = f"""`sample_solver` with a {family.title} solver ({family.paper}).

    Without a transferable bundled solver of the family, `solver` is required.
    """
    return sample


SAMPLERS = {f"sample_{family.sampler}": _sampler_of(family) for family in FAMILIES.values()}
"""The function of each family, also exported here and from `samplers`: `sample_dyweight`, ..."""
globals().update(SAMPLERS)
