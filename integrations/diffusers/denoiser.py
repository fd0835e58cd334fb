"""A diffusers pipeline as a denoiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor

from .network import Network

__all__ = ["PipelineDenoiser"]


class PipelineDenoiser:
    """A text-to-image pipeline as a k-diffusion denoiser, for `fit_solver`.

    Every call runs the pipeline for one step, so the result has guidance and all else that the pipeline does.

    Args:
        pipeline: A pipeline that takes `latents` and `num_inference_steps`.
        arguments: Its other arguments in every call, such as `prompt_embeds` and `guidance_scale`. Tensors of one row
            are repeated for the rows of x.

    Attributes:
        noise: The model's noise schedule; of a flow model, without the number of tokens.

    Raises:
        ValueError: The model's ODE is not one that a learned solver can run.
    """

    def __init__(self, pipeline: Any, **arguments: Any) -> None:
        self.pipeline, self.arguments = pipeline, arguments
        self.scheduler = _OneCall(pipeline.scheduler.config)
        self.noise = self.scheduler.network.noise

    @torch.no_grad()
    def __call__(self, x: Tensor, sigma: Tensor, /, **arguments: Any) -> Tensor:
        """Denoised latents.

        Args:
            x: Latents at the noise level, as the pipeline's `latents`, shape [B, ...]: FLUX's are packed.
            sigma: The noise level, the same in each row, shape [B].
            arguments: Further arguments of the pipeline.
        """
        if sigma.numel() > 1 and bool((sigma != sigma.flatten()[0]).any()):
            raise ValueError(
                f"a pipeline samples all rows at one noise level, got {sigma.tolist()}: call it once for each"
            )
        pipeline, usual = self.pipeline, self.pipeline.scheduler
        bar = getattr(pipeline, "_progress_bar_config", {})
        self.scheduler.state, self.scheduler.sigma = x, float(sigma.flatten()[0])
        rows = {
            name: value.expand(len(x), *value.shape[1:]) if isinstance(value, Tensor) and len(value) == 1 else value
            for name, value in {**self.arguments, **arguments}.items()
        }
        try:
            pipeline.scheduler = self.scheduler
            pipeline.set_progress_bar_config(disable=True)
            pipeline(latents=x.to(pipeline.dtype), num_inference_steps=1, output_type="latent", **rows)
        finally:
            pipeline.scheduler = usual
            pipeline.set_progress_bar_config(**bar)
        return self.scheduler.denoised


class _OneCall(SchedulerMixin):
    """A scheduler of one network call at `sigma`, which stores the denoised `state`."""

    order = 1
    init_noise_sigma = 1.0  # the latents are at the noise level already
    state: Tensor
    sigma: float
    denoised: Tensor

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config, self.network = config, Network.of(config)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Sets the one timestep."""
        self.timesteps = self.network.times(torch.tensor([self.sigma], dtype=torch.float64)).to(device)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Nothing: there is one timestep."""

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor) -> Tensor:
        """The network's input."""
        return self.network.input(sample, self.sigma)

    def step(
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor]:
        """The denoised state, rounded for the pipeline."""
        x = self.state.to(torch.promote_types(self.state.dtype, torch.float32))
        self.denoised = self.network.denoised(x, self.sigma, model_output.to(x)).to(self.state)
        rounded = self.denoised.to(sample)
        return SchedulerOutput(prev_sample=rounded) if return_dict else (rounded,)
