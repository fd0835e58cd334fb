"""The function that ComfyUI's sampling calls: runs a learned solver on whatever model arrives at sampling time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..samplers import Solver, sample_solver
from ..samplers.host_models import noise_of
from ..samplers.multistep import Callback

__all__ = ["sample_learned_solver"]


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
) -> Tensor:
    """Returns the sampled latent; the noise schedule is read from the model that is being sampled.

    So a model patch after the solver node, or another picture size than the node saw, changes the grid as it should.
    """
    extra_args = {} if extra_args is None else extra_args
    base = model.inner_model.inner_model
    noise = noise_of(base, base.model_sampling, x.shape)
    x = sample_solver(model, x, sigmas, extra_args, callback, disable, solver=solver, noise=noise, steps=steps)
    return _with_kept_region(model, x, sigmas, extra_args)


def _with_kept_region(model: Any, x: Tensor, sigmas: Tensor, extra_args: Mapping[str, Any]) -> Tensor:
    """Returns x with the region that an inpaint mask keeps put back, as a learned row need not sum to 1.

    The host composites what the model sees and says, never the state itself.
    """
    mask = extra_args.get("denoise_mask")
    if mask is None or len(sigmas) < 2:
        return x
    sigma = sigmas[-1] * x.new_ones([x.shape[0]])
    if change_mask := extra_args.get("model_options", {}).get("denoise_mask_function"):
        mask = change_mask(sigma, mask, extra_options={"model": model.inner_model, "sigmas": sigmas})
    kept = model.latent_image
    if sigmas[-1] > model.inner_model.inner_model.model_sampling.sigma_min:  # a split schedule: another sampler goes on
        kept = model.inner_model.inner_model.scale_latent_inpaint(
            x=x, sigma=sigma, noise=model.noise, latent_image=kept, denoise_mask=mask
        )
    return x * mask + kept * (1 - mask)
