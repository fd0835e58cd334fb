"""The function that ComfyUI's sampling calls: runs a learned solver on whatever model arrives at sampling time."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..samplers import FlowNoise, Solver, SolverTable, sample_table
from ..samplers.comfy_models import noise_of
from ..samplers.k_diffusion import table_between
from ..samplers.loop import Callback
from ..samplers.text import counted

__all__ = ["sample_learned_solver", "table_for"]

_log = logging.getLogger("learned_solvers")


def sample_learned_solver(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    solver: Solver,
    steps: int,
    tokens: int | None = None,
) -> Tensor:
    """Returns the sampled latent; the noise schedule is read from the model that is being sampled.

    So another picture size than the node saw, or a model patch after it (v prediction, zero terminal SNR, EDM), is met
    with the right grid, or refused. `tokens` is what the node saw, for latents that have no picture's shape here.

    Learned levels lie between the 1000 of an eps or v model. ComfyUI scales the input and reads the output at the level
    itself, but hands the network the nearest index: 0 below the lowest level, 999 above the highest, one and the same
    for two levels close together. Flow and EDM models are not rounded.
    """
    if len(sigmas) < 2:
        return x
    extra_args = {} if extra_args is None else extra_args
    table, goes_on = table_for(model, x, sigmas, solver, steps, tokens)  # goes_on: another sampler takes over
    extra_args = _with_mask_function(extra_args, sigmas)
    if table.steps != len(sigmas) - 1:
        _log.info("%s makes %s; of the %d sigmas it was handed only the ends count", solver.name,
                  counted(table.nfe, "model call"), len(sigmas))  # fmt: skip
    x = sample_table(model, x, table, extra_args, callback, disable)
    return _with_kept_region(model, x, sigmas, table, goes_on, extra_args)


def table_for(
    model: Any, x: Tensor, sigmas: Tensor, solver: Solver, steps: int, tokens: int | None = None
) -> tuple[SolverTable, bool]:
    """Returns the table that will run on the model that is being sampled, and whether more is left of it.

    Raises:
        ValueError: The solver does not fit the steps, the model or the latent's shape.
    """
    base = model.inner_model.inner_model
    noise = noise_of(base, base.model_sampling, x.shape)
    if isinstance(noise, FlowNoise) and noise.tokens is None:
        noise = FlowNoise(tokens)
    grid = solver.card.steps[steps].grid if steps in solver.steps else None
    if isinstance(noise, FlowNoise) and noise.tokens is None and grid is not None and grid.rule == "flux_shift":
        raise ValueError(
            f"{solver.name} has a grid that shifts with the picture's size, which these latents do not tell: connect "
            "the latent to the Learned Solver node, or choose a solver with times of its own, such as ds_flow-sit"
        )
    return table_between(solver, steps, noise, sigmas)


def _with_mask_function(extra_args: Mapping[str, Any], sigmas: Tensor) -> Mapping[str, Any]:
    """Returns the arguments with a differential mask that knows no level above the first.

    A learned first call may stand above it (FLUX's does, by 1 %), where such a mask keeps the whole picture.
    """
    options = extra_args.get("model_options", {})
    if not (change_mask := options.get("denoise_mask_function")):
        return extra_args

    def change(sigma: Tensor, mask: Tensor, **more: Any) -> Tensor:
        return change_mask(sigma.clamp(max=float(sigmas[0])), mask, **more)

    return {**extra_args, "model_options": {**options, "denoise_mask_function": change}}


def _with_kept_region(
    model: Any, x: Tensor, sigmas: Tensor, table: SolverTable, goes_on: bool, extra_args: Mapping[str, Any]
) -> Tensor:
    """Returns x with the region that an inpaint mask keeps put back, as a learned row need not sum to 1.

    The host composites what the model sees and says, never the state itself.
    """
    mask = extra_args.get("denoise_mask")
    if mask is None:
        return x
    if change_mask := extra_args.get("model_options", {}).get("denoise_mask_function"):
        # As the host saw it last, in the last call: at the end itself a differential mask keeps nothing. Nor does it at
        # the model's lowest level, where some grids call last; what is not masked at all stays.
        last = table.sigmas[-1].item() * x.new_ones([x.shape[0]])
        changed = change_mask(last, mask, extra_options={"model": model.inner_model, "sigmas": sigmas})
        mask = changed * (mask > 0)
    kept = model.latent_image
    if goes_on:
        # By the noise schedule, not scale_latent_inpaint: video models show the network a clean kept region, but a
        # stock sampler leaves a noisy one behind.
        kept = model.inner_model.inner_model.model_sampling.noise_scaling(sigmas[-1], model.noise, kept)
    return x * mask + kept * (1 - mask)
