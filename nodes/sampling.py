"""The sampler function that ComfyUI calls: a learned solver on the model as it is at sampling time."""

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
from ..samplers.text import count_noun

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
    """Returns the sampled latent; noise schedule and guidance are read from the model being sampled.

    A change after the node ran (image size, guidance, a model patch such as v prediction, zero terminal SNR or EDM)
    therefore selects the right table or is refused. `tokens` is the node's value, for latents without an image's
    shape. `report`: log a guidance mismatch here, as the node did not know the guidance.

    Learned levels fall between the 1000 levels of an eps or v model. ComfyUI scales the input and the output by the
    level itself, but passes the network the nearest index: 0 below the lowest level, 999 above the highest, the same
    index for two levels close together. Flow and EDM models have no such rounding.
    """
    if len(sigmas) < 2:
        return x
    guider = model.inner_model  # the only attribute required of `model`: another pack may wrap it
    base, guidance, grid = guider.inner_model, guidance_of_run(guider), solver.card.steps[steps].grid
    noise = noise_of(base, base.model_sampling, x.shape).with_tokens(tokens)
    if grid is not None and grid.needs_tokens and noise.kind == "flow" and noise.tokens is None:
        raise ValueError(
            f"the grid of {solver.name} depends on the image size, which is not known for this latent. Connect the "
            "latent to the Learned Solver node, or choose a solver whose grid does not depend on it"
        )
    table, unfinished = table_between(solver, steps, noise, sigmas, solver.guidance_of(guidance))
    if table.steps != len(sigmas) - 1:
        _log.info("%s makes %s; only the first and last of the %d sigmas are used", solver.name,
                  count_noun(table.nfe, "model call"), len(sigmas))  # fmt: skip
    if report and (mismatch := guidance_mismatch(solver, steps, guidance)):
        _log.info("%s: %s", solver.name, mismatch)
    extra_args = _with_mask_function(extra_args or {}, sigmas)
    x = sample_table(model, x, table, extra_args, callback, disable)
    return _with_kept_region(model, x, sigmas, table, unfinished, extra_args)


def guidance_of_run(guider: Any) -> Guidance | None:
    """The guidance that a guider samples with; None without a single CFG, as in core's DualCFGGuider.

    Of a CFG that changes from step to step (a list, as in KJNodes' schedule) this is the first value.
    """
    if not isinstance(guider, CFGGuider) or [*inspect.signature(guider.set_cfg).parameters][:1] != ["cfg"]:
        return None  # DualCFGGuider inherits a cfg of 1 that it never uses
    cfg: Any = guider.cfg[0] if isinstance(guider.cfg, list | tuple) and guider.cfg else guider.cfg
    return guidance_of(guider.inner_model, guider.conds.get("positive", ()), cfg)


def guidance_of(base: Any, conds: Iterable[Mapping[str, Any]], *cfgs: float) -> Guidance | None:
    """The guidance of a run, or of a fit at several CFGs; None if it is unknown or the CFG is negative.

    Args:
        base: ComfyUI's BaseModel.
        conds: Entries of the positive conditioning, without their tensors.
        cfgs: Classifier-free guidance, ascending.
    """
    try:
        if has_guidance(base):
            default = default_guidance(base)
            given = [cond["guidance"] for cond in conds if "guidance" in cond]
            if not given and default is None:
                return None
            embedded = given[0] if given else default
            if embedded is not None and not embedded == default == 0:  # None, and Chroma's default of 0, mean off
                return Guidance("embedded", (float(embedded),), cfg=float(cfgs[len(cfgs) // 2]))
        return Guidance("cfg", tuple(map(float, cfgs)))
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: from a tensor
        return None


def _with_mask_function(extra_args: Mapping[str, Any], sigmas: Tensor) -> Mapping[str, Any]:
    """The arguments, with levels for a differential mask limited to the first sigma.

    A learned first call may be above it (FLUX's is, by 1 %), where such a mask would keep the whole image.
    """
    options = extra_args.get("model_options", {})
    if not (change_mask := options.get("denoise_mask_function")):
        return extra_args

    def change(sigma: Tensor, mask: Tensor, **more: Any) -> Tensor:
        return change_mask(sigma.clamp(max=float(sigmas[0])), mask, **more)

    return {**extra_args, "model_options": {**options, "denoise_mask_function": change}}


def _with_kept_region(
    model: Any, x: Tensor, sigmas: Tensor, table: SolverTable, unfinished: bool, extra_args: Mapping[str, Any]
) -> Tensor:
    """Restores the kept region of an inpaint mask in x, as a learned row need not sum to 1.

    The host composites the model's input and output, but not the state.
    """
    mask, original = extra_args.get("denoise_mask"), getattr(model, "latent_image", None)
    if mask is None or original is None:  # another pack's wrapper may hide the latent
        return x
    if change_mask := extra_args.get("model_options", {}).get("denoise_mask_function"):
        # The mask of the last call: at the end itself a differential mask keeps nothing. Nor does it at the model's
        # lowest level, where some grids make their last call, so a value of 0 always keeps its place.
        last = table.sigmas[-1].item() * x.new_ones([x.shape[0]])
        changed = change_mask(last, mask, extra_options={"model": model.inner_model, "sigmas": sigmas})
        mask = changed * (mask > 0)
    if unfinished:
        # By the noise schedule, not scale_latent_inpaint: video models show the network a clean region, but stock
        # samplers leave a noisy one behind.
        original = model.inner_model.inner_model.model_sampling.noise_scaling(sigmas[-1], model.noise, original)
    return x * mask + original * (1 - mask)
