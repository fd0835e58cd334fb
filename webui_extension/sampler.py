"""The WebUI's sampler: a KDiffusionSampler that runs a learned solver on the solver's grid."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from modules import sd_samplers_common, shared
from modules.sd_samplers_kdiffusion import KDiffusionSampler
from torch import Tensor

from ..samplers import part_of_table, sample_table
from ..samplers.loop import Callback
from ..samplers.remarks import mismatches, notes
from .choice import Part, Pass, Request, make_pass, wants_nearest
from .host_model import flow_shift, guidance_of, noise_of

__all__ = ["LearnedSampler"]

_log = logging.getLogger("learned_solvers")


class LearnedSampler(KDiffusionSampler):
    """Runs solver files of one family; `get_sigmas` alone decides solver, grid, guidance and number of calls."""

    current: Pass

    def __init__(self, sd_model: Any, family: str) -> None:
        super().__init__(self.run, sd_model)
        self.family = family
        self.shape: tuple[int, ...] | None = None
        self.part: Part | None = None

    def sample(self, p: Any, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """The sampled latent; stores its shape, which the host does not pass to `get_sigmas`."""
        self.shape, self.part = tuple(x.shape), None
        return super().sample(p, x, *args, **options)

    def sample_img2img(
        self,
        p: Any,
        x: Tensor,
        noise: Tensor,
        conditioning: Any,
        unconditional_conditioning: Any,
        steps: int | None = None,
        image_conditioning: Any = None,
    ) -> Tensor:
        """The sampled latent; stores its shape and the calls, which the host does not pass to `get_sigmas`."""
        _, t_enc = sd_samplers_common.setup_img2img_steps(p, steps)
        self.shape = tuple(x.shape)
        derived = bool(shared.opts.img2img_fix_steps or steps is not None)
        self.part = Part(t_enc + 1, derived, p.denoising_strength)
        return super().sample_img2img(p, x, noise, conditioning, unconditional_conditioning, steps, image_conditioning)

    def get_sigmas(self, p: Any, steps: int) -> Tensor:
        """The noise levels of this pass, padded so that the host's slice for image-to-image starts at the right one.

        The user's schedule type, sigma limits and rho have no effect on a learned solver: the infotext omits them.
        """
        if getattr(p, "sampler_noise_scheduler_override", None):
            raise ValueError(
                "a script overrides the noise levels, but a learned solver needs its own: choose a stock sampler"
            )
        guidance, noise = guidance_of(p, shared.sd_model), noise_of(self.model_wrap, self.shape)
        request = Request.of(p, self.family, noise, shared.sd_model)
        model = request.architecture
        # The solver of hires fix's first pass, unless that has another sampler or architecture.
        first = getattr(p, "learned_solvers_first", {}).get((self.family, model)) if p.is_hr_pass else None
        policy = {"part": self.part, "first": first, "nearest": wants_nearest(p)}
        self.current = current = make_pass(request, steps, guidance, **policy)
        solver, extra = current.solver, p.extra_generation_params
        if p.is_hr_pass:
            size, prefix = f"{p.hr_upscale_to_x}x{p.hr_upscale_to_y}", "Hires learned"
        else:
            size, prefix = f"{p.width}x{p.height}", "Learned"
            p.learned_solvers_first = {(self.family, model): solver}
            extra["Schedule type"] = None
        extra[f"{prefix} solver"], extra[f"{prefix} solver calls"] = solver.name, current.calls
        run = {"architecture": model, "checkpoint": request.checkpoint, "shift": flow_shift(self.model_wrap)}
        facts = mismatches(solver, current.steps, noise, guidance=guidance, size=size, **run)
        for fact in (*facts, *request.alternatives(solver, current.steps), *notes(solver, current.steps)):
            self._comment(p, f"{solver.name}: {fact}")
        levels = current.table.levels.float()
        if self.part is None:
            return levels
        if current.steps != steps:
            requested = f"the last {self.part.calls} of {steps} steps (denoising strength {self.part.strength:g})"
            self._comment(
                p, f"{solver.name} does not support {steps} steps: ran {current.calls} instead of {requested}"
            )
        return torch.cat([levels[:1].expand(max(0, steps - self.part.calls)), levels])

    def run(
        self,
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callback | None = None,
        disable: bool | None = None,
    ) -> Tensor:
        """The state at sigmas[-1]; the host calls this instead of a k-diffusion function."""
        if len(sigmas) < 2:
            return x
        table = part_of_table(self.current.table, float(sigmas[0]), float(sigmas[-1]))
        return sample_table(model, x, table, extra_args, callback, disable)

    def launch_sampling(self, steps: int, func: Any) -> Tensor:
        """The result of `func`; progress, refiner and guidance limits count the model calls of this pass."""
        return super().launch_sampling(self.current.table.nfe, func)

    @staticmethod
    def _comment(p: Any, text: str) -> None:
        """Writes a text below the image and into the log, once per job."""
        if text not in p.comments:
            _log.info("%s", text)
        p.comment(text)
