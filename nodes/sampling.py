"""The function that ComfyUI's sampling calls: runs a learned solver on the model that arrives at sampling time."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from comfy.samplers import CFGGuider
from torch import Tensor

from ..samplers import Guidance, Solver, SolverTable, sample_table
from ..samplers.comfy_models import default_guidance, has_guidance, noise_of
from ..samplers.k_diffusion import table_between
from ..samplers.loop import Callback
from ..samplers.remarks import guidance_mismatch
from ..samplers.text import counted

__all__ = ["guidance_of", "guidance_of_run", "sample_learned_solver"]

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
    report: bool = False,
) -> Tensor:
    """Returns the sampled latent; noise schedule and guidance are read from the model that is being sampled.

    So another picture size or guidance than the node saw, or a model patch after it (v prediction, zero terminal SNR,
    EDM), gets the right table or is refused. `tokens` is what the node saw, for latents without a picture's shape.
    `report`: the node saw no guidance, so the log says here where it does not match.

    Learned levels lie between the 1000 of an eps or v model. ComfyUI scales the input and reads the output at the level
    itself, but hands the network the nearest index: 0 below the lowest level, 999 above the highest, the same one for
    two levels close together. Flow and EDM models are not rounded.
    """
    if len(sigmas) < 2:
        return x
    guider = model.inner_model  # of `model` itself nothing more: another pack's sampler may wrap it in a function
    base, guidance, grid = guider.inner_model, guidance_of_run(guider), solver.card.steps[steps].grid
    noise = noise_of(base, base.model_sampling, x.shape).with_tokens(tokens)
    if grid is not None and grid.needs_tokens and noise.kind == "flow" and noise.tokens is None:
        raise ValueError(
            f"the grid of {solver.name} shifts with the picture's size, which this latent does not show. Connect the "
            "latent to the Learned Solver node, or choose a solver whose grid does not shift"
        )
    table, goes_on = table_between(solver, steps, noise, sigmas, solver.guidance_of(guidance))
    if table.steps != len(sigmas) - 1:
        _log.info("%s makes %s; of the %d sigmas it was handed only the ends count", solver.name,
                  counted(table.nfe, "model call"), len(sigmas))  # fmt: skip
    if report and (mismatch := guidance_mismatch(solver, steps, guidance)):
        _log.info("%s: %s", solver.name, mismatch)
    extra_args = _with_mask_function(extra_args or {}, sigmas)
    x = sample_table(model, x, table, extra_args, callback, disable)
    return _with_kept_region(model, x, sigmas, table, goes_on, extra_args)


def guidance_of_run(guider: Any) -> Guidance | None:
    """The guidance that a guider samples with; None for one without a single CFG, such as core's DualCFGGuider.

    A CFG that changes from step to step (a list, as in KJNodes' schedule) counts with its first value.
    """
    if not isinstance(guider, CFGGuider) or [*inspect.signature(guider.set_cfg).parameters][:1] != ["cfg"]:
        return None  # DualCFGGuider inherits a cfg of 1 that it never uses
    cfg: Any = guider.cfg[0] if isinstance(guider.cfg, list | tuple) and guider.cfg else guider.cfg
    return guidance_of(guider.inner_model, guider.conds.get("positive", ()), cfg)


def guidance_of(base: Any, conds: Iterable[Mapping[str, Any]], *cfgs: float) -> Guidance | None:
    """The guidance of a run, or of a fit at several CFGs; None where it is unknown or no guidance (a negative CFG).

    Args:
        base: ComfyUI's BaseModel.
        conds: The entries of the positive conditioning, without their tensors.
        cfgs: Classifier-free guidance, ascending.
    """
    try:
        if has_guidance(base):
            default = default_guidance(base)
            given = [cond["guidance"] for cond in conds if "guidance" in cond]
            if not given and default is None:
                return None
            embedded = given[0] if given else default
            if embedded is not None and not embedded == default == 0:  # not switched off; Chroma's 0 is as good as that
                return Guidance("embedded", (float(embedded),), cfg=float(cfgs[len(cfgs) // 2]))
        return Guidance("cfg", tuple(map(float, cfgs)))
    except (TypeError, ValueError, RuntimeError):  # the last of a tensor
        return None


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
    mask, kept = extra_args.get("denoise_mask"), getattr(model, "latent_image", None)
    if mask is None or kept is None:  # another pack's wrapper may hide the latent
        return x
    if change_mask := extra_args.get("model_options", {}).get("denoise_mask_function"):
        # As the host saw it last, in the last call: at the end itself a differential mask keeps nothing. Nor does it at
        # the model's lowest level, where some grids call last; what is not masked at all stays.
        last = table.sigmas[-1].item() * x.new_ones([x.shape[0]])
        changed = change_mask(last, mask, extra_options={"model": model.inner_model, "sigmas": sigmas})
        mask = changed * (mask > 0)
    if goes_on:
        # By the noise schedule, not scale_latent_inpaint: video models show the network a clean kept region, but a
        # stock sampler leaves a noisy one behind.
        kept = model.inner_model.inner_model.model_sampling.noise_scaling(sigmas[-1], model.noise, kept)
    return x * mask + kept * (1 - mask)
