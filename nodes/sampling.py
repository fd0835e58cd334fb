"""The sampler function that ComfyUI calls: a learned solver on the model as it is at sampling time."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from comfy.samplers import CFGGuider
from torch import Tensor

from ..samplers import Guidance, Solver, SolverTable, sample_table
from ..samplers.comfy_models import default_guidance, has_guidance, noise_of
from ..samplers.k_diffusion import table_between
from ..samplers.loop import Callback
from ..samplers.remarks import guidance_mismatch
from ..samplers.schedules import Noise
from ..samplers.text import count_noun
from .base import cost_of_fit, show_text

__all__ = ["SolverRefused", "guidance_of", "guidance_of_run", "guider_of", "refusals", "sample_learned_solver"]

_log = logging.getLogger("learned_solvers")


class SolverRefused(Exception):
    """A sampler cannot run. Not a ValueError: packs that sample step by step skip a step that raises one."""


@contextmanager
def refusals(subject: str = "") -> Iterator[None]:
    """Raises a SolverRefused for a ValueError or OSError, and logs it, as the calling pack may hide exceptions."""
    try:
        yield
    except (OSError, ValueError) as error:
        _log.error("%s%s", subject, error)
        raise SolverRefused(f"{subject}{error}") from error


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
    noise: Noise,
    report: bool = False,
    note: str = "",
) -> Tensor:
    """Returns the sampled latent; noise schedule and guidance are read from the model being sampled.

    A change after the node ran (image size, guidance, a model patch such as v prediction, zero terminal SNR or EDM)
    therefore selects the right table or is refused. `noise` is the node's: its tokens are for latents without an
    image's shape, and all of it is for a wrapped model that hides the host's. `report`: log a guidance mismatch here,
    as the node did not know the guidance. `note`: shown on the running node afterwards, with what a fit would take.

    Learned levels fall between the 1000 levels of an eps or v model. ComfyUI scales the input and the output by the
    level itself, but passes the network the nearest index: 0 below the lowest level, 999 above the highest, the same
    index for two levels close together. Flow and EDM models have no such rounding.
    """
    if len(sigmas) < 2:
        return x
    with refusals():
        guider, guidance, grid = guider_of(model), None, solver.card.steps[steps].grid
        if guider is not None:
            base, guidance = guider.inner_model, guidance_of_run(guider)
            noise = noise_of(base, base.model_sampling, x.shape).with_tokens(noise.tokens)
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
    extra_args = _with_called_levels(_with_mask_function(extra_args or {}, sigmas), table, x)
    kept, started = _KeptRegion(model, x, table, extra_args, callback), time.perf_counter()
    end = kept.restore(sample_table(model, x, table, extra_args, kept.watch, disable), sigmas, unfinished)
    if note:
        seconds = (time.perf_counter() - started) / (table.nfe * len(x))
        show_text(f"{note} A fit usually takes {cost_of_fit((steps,), seconds)}.")
    return end


def guider_of(model: Any) -> Any:
    """The host's guider inside the model that a sampler received; None if another pack's wrapper hides it."""
    for _ in range(8):  # wrappers around wrappers
        inner = getattr(model, "inner_model", None)
        if inner is None or hasattr(inner, "model_sampling"):
            return None if inner is None else model
        model = inner
    return None


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


def _with_called_levels(extra_args: Mapping[str, Any], table: SolverTable, x: Tensor) -> Mapping[str, Any]:
    """The arguments, with the levels at which the model is called, and the last one, as the host's `sample_sigmas`.

    Context windows, guidance schedules, caches and mean-flow models look up the current step there.
    """
    options = extra_args.get("model_options", {})
    levels = torch.cat([table.sigmas[int(table.analytic_first) :], table.levels[-1:]])
    levels = levels.to(torch.promote_types(x.dtype, torch.float32)).to(x.device)  # as the loop does
    transformer_options = {**options.get("transformer_options", {}), "sample_sigmas": levels}
    return {**extra_args, "model_options": {**options, "transformer_options": transformer_options}}


class _KeptRegion:
    """The kept region of an inpaint mask, as a stock sampler leaves it: a learned row need not sum to 1.

    The host composites the model's input and output, but not the state. `model.latent_image` may be hidden by another
    pack's wrapper; the host's outputs show it where the mask keeps it.
    """

    def __init__(
        self, model: Any, x: Tensor, table: SolverTable, extra_args: Mapping[str, Any], callback: Callback | None
    ) -> None:
        self.guider, self.start, self.table, self.callback = guider_of(model), x, table, callback
        self.mask, self.original = extra_args.get("denoise_mask"), getattr(model, "latent_image", None)
        self.change_mask = extra_args.get("model_options", {}).get("denoise_mask_function")
        self.output: Tensor | None = None

    def watch(self, step: dict[str, Any]) -> None:
        """The sampler's callback."""
        called = step["i"] >= self.table.analytic_first
        if called and (self.output is None or not self.change_mask):  # a differential mask keeps most in the first call
            self.output = step["denoised"]
        if self.callback is not None:
            self.callback(step)

    def restore(self, x: Tensor, sigmas: Tensor, unfinished: bool) -> Tensor:
        """The end state with the kept region, which moves on a straight line towards the clean latent."""
        mask, original = self.mask, self.output if self.original is None else self.original
        if mask is None or original is None:
            return x
        if self.change_mask and self.guider is not None:
            # The mask of the last call: at the end itself a differential mask keeps nothing. Nor does it at the model's
            # lowest level, where some grids make their last call, so a value of 0 always keeps its place.
            last = self.table.sigmas[-1].item() * x.new_ones([x.shape[0]])
            options = {"model": self.guider, "sigmas": sigmas}
            mask = self.change_mask(last, mask, extra_options=options) * (mask > 0)
        if unfinished:
            original = torch.lerp(original, self.start, float(sigmas[-1] / sigmas[0]))
        return torch.where(mask > 0, x, original.to(x.dtype))  # within a soft mask the host has mixed already
