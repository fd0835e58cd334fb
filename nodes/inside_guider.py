"""Work done inside one `guider.sample`: the host loads, offloads and guides the model; ours is what calls it.

Forward passes only, under the host's inference mode, so everything that can be sampled can be worked with: quantised,
patched and offloaded models, any conditioning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.conds
import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ..samplers.guidance import apart

__all__ = ["with_denoiser"]

Denoiser = Callable[..., Tensor]


class _Inside(comfy.samplers.Sampler):
    """A Sampler whose `sample` does some other work with the model."""

    def __init__(
        self, work: Callable[[Denoiser, torch.device], Any], cfgs: Sequence[float], called: Callable[[int], None]
    ) -> None:
        self.work = work
        self.cfgs = cfgs
        self.called = called
        self.result: Any = None

    def sample(
        self, guider: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, noise: Tensor, *_: Any, **__: Any
    ) -> Tensor:
        """Returns the noise as it is; what the work returned is in `result`."""
        conds = guider.conds

        def denoiser(x: Tensor, sigma: Tensor, row: Sequence[int]) -> Tensor:
            def at(cfg: float, places: list[int], x: Tensor, sigma: Tensor) -> Tensor:
                comfy.model_management.throw_exception_if_processing_interrupted()
                guider.conds = _of_rows(conds, [row[place] for place in places])
                guider.set_cfg(cfg)
                return guider(x, sigma, **extra_args)

            denoised = apart([self.cfgs[i % len(self.cfgs)] for i in row], x, sigma, at)
            self.called(len(x))
            return denoised

        self.result = self.work(denoiser, noise.device)
        return noise


def with_denoiser(
    work: Callable[[Denoiser, torch.device], Any],
    model: Any,
    positive: Any,
    negative: Any,
    cfgs: Sequence[float],
    latent: Tensor,
    *,
    seed: int,
    called: Callable[[int], None],
) -> Any:
    """Returns `work(denoiser, device)`, called while the model is loaded.

    The denoiser is `denoiser(x, sigma, row) -> denoised`, guidance applied, in the model's own latent space. `row` has
    the number of each sample: conditioning that is a batch of P prompts gives sample i prompt i % P, as the host does
    within one batch, and so do several guidances, each of which is a call of its own to the host. Several entries of a
    conditioning are combined, as in sampling.

    Args:
        work: What to do with it.
        model: ComfyUI's ModelPatcher.
        positive: Conditioning.
        negative: Conditioning.
        cfgs: Classifier-free guidances; 1 makes one conditional pass.
        latent: An empty latent of as many samples as one call will have at most, [B, C, ..., H, W].
        seed: For conditioning that draws noise of its own.
        called: Told the number of samples after each call.
    """
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    inside = _Inside(work, cfgs, called)
    sigmas = torch.tensor([float(model.get_model_object("model_sampling").sigma_max), 0.0])
    guider.sample(torch.zeros_like(latent), latent, inside, sigmas, disable_pbar=True, seed=seed)
    return inside.result


def _of_rows(conds: dict[str, list[dict[str, Any]]], rows: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """Returns processed conditioning with, of every batch of P entries, those of the rows modulo P."""

    def picked(cond: Any) -> Any:
        tensor = getattr(cond, "cond", None)
        if isinstance(cond, comfy.conds.CONDConstant) or not isinstance(tensor, Tensor):
            return cond  # it has no entry per sample
        if tensor.ndim == 0 or len(tensor) < 2:
            return cond
        return cond._copy_with(tensor[[row % len(tensor) for row in rows]])

    return {
        key: [
            {**entry, "model_conds": {k: picked(v) for k, v in entry.get("model_conds", {}).items()}}
            for entry in entries
        ]
        for key, entries in conds.items()
    }
