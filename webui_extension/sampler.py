"""The WebUI's sampler: a KDiffusionSampler whose grid and steps are a learned solver's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from modules import sd_samplers_common, shared
from modules.sd_samplers_kdiffusion import KDiffusionSampler
from torch import Tensor

from ..samplers import Solver, part_of_table, sample_table
from ..samplers.loop import Callback
from ..samplers.remarks import mismatches, notes
from .choice import Part, Pass, Request, make_pass, requested_file
from .host_model import architecture, guidance_of, noise_of

__all__ = ["LearnedSampler"]

_log = logging.getLogger("learned_solvers")


class LearnedSampler(KDiffusionSampler):
    """Runs solver files of one family; `get_sigmas` alone decides solver, grid, guidance and number of calls."""

    def __init__(self, sd_model: Any, family: str) -> None:
        super().__init__(self.run, sd_model)
        self.family = family
        self.shape: tuple[int, ...] | None = None
        self.part: Part | None = None
        self.current: Pass | None = None

    def sample(
        self,
        p: Any,
        x: Tensor,
        conditioning: Any,
        unconditional_conditioning: Any,
        steps: int | None = None,
        image_conditioning: Any = None,
    ) -> Tensor:
        """Returns the latent; notes its shape, which the host does not hand to `get_sigmas`."""
        self.shape, self.part = tuple(x.shape), None
        return super().sample(p, x, conditioning, unconditional_conditioning, steps, image_conditioning)

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
        """Returns the latent; notes its shape and the calls, which the host does not hand to `get_sigmas`."""
        _, t_enc = sd_samplers_common.setup_img2img_steps(p, steps)
        self.shape = tuple(x.shape)
        derived = bool(shared.opts.img2img_fix_steps or steps is not None)
        self.part = Part(t_enc + 1, derived, p.denoising_strength)
        return super().sample_img2img(p, x, noise, conditioning, unconditional_conditioning, steps, image_conditioning)

    def get_sigmas(self, p: Any, steps: int) -> Tensor:
        """Returns the noise levels of this pass, padded so that the host's slice for image-to-image starts right.

        The user's schedule type, sigma limits and rho do not act on a learned solver; the infotext does not name them.

        Raises:
            ValueError: No solver for this model or these steps; the message lists what there is.
        """
        if getattr(p, "sampler_noise_scheduler_override", None):
            raise ValueError("a script sets noise levels, a learned solver has its own: choose a stock sampler for it")
        model = architecture(shared.sd_model)
        request = Request(requested_file(p), self.family, noise_of(self.model_wrap, self.shape), model)
        guidance = guidance_of(p, shared.sd_model)
        first = self._first_pass_solver(p, model) if p.is_hr_pass else None
        self.current = current = make_pass(request, steps, guidance, part=self.part, first=first)
        if not p.is_hr_pass:
            p.learned_solvers_first = current.solver, model
        self._write_infotext(p, current)
        size = f"{p.hr_upscale_to_x}x{p.hr_upscale_to_y}" if p.is_hr_pass else f"{p.width}x{p.height}"
        facts = mismatches(
            current.solver, current.steps, request.noise, architecture=model, guidance=guidance, size=size
        )
        for fact in (*facts, *notes(current.solver, current.steps)):
            self._comment(p, f"{current.solver.name}: {fact}")
        levels = current.table.levels.float()
        if self.part is None:
            return levels
        if current.steps != steps:
            asked = f"the last {self.part.calls} of {steps} steps (denoising strength {self.part.strength:g})"
            self._comment(p, f"{current.solver.name} has no {steps} steps: ran {current.calls} instead of {asked}")
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
        """Returns the state at sigmas[-1]: what the host calls in the place of one of k-diffusion's functions."""
        if self.current is None or len(sigmas) < 2:
            return x
        table = part_of_table(self.current.table, float(sigmas[0]), float(sigmas[-1]))
        return sample_table(model, x, table, extra_args, callback, disable)

    def launch_sampling(self, steps: int, func: Any) -> Tensor:
        """Returns what `func` samples; progress, refiner and guidance limits count the calls that will be made."""
        return super().launch_sampling(steps if self.current is None else self.current.table.nfe, func)

    def _first_pass_solver(self, p: Any, model: str | None) -> Solver | None:
        """Returns hires fix's first solver, for the second pass, unless sampler or architecture are others there."""
        solver, first_model = getattr(p, "learned_solvers_first", (None, None))
        return solver if solver is not None and solver.family == self.family and first_model == model else None

    @staticmethod
    def _write_infotext(p: Any, current: Pass) -> None:
        prefix = "Hires learned" if p.is_hr_pass else "Learned"
        p.extra_generation_params[f"{prefix} solver"] = current.solver.name
        p.extra_generation_params[f"{prefix} solver calls"] = current.calls
        if not p.is_hr_pass:
            p.extra_generation_params["Schedule type"] = None

    @staticmethod
    def _comment(p: Any, text: str) -> None:
        """Writes a text under the picture and into the log, once per job."""
        if text not in p.comments:
            _log.info("%s", text)
        p.comment(text)
