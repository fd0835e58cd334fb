"""The denoiser that ComfyUI's guider is, for microbatches of prompts and guidances; made inside its `sample`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...samplers.guidance import apart
from .conditioning import Cond

__all__ = ["differentiable_model", "joined", "sampler_that"]


class _Replayed(torch.autograd.Function):
    """A denoiser's forward pass without a graph; the backward pass runs it again with one.

    That graph lives inside one context in which ComfyUI's models may change saved tensors in place (FLUX adds to them);
    with checkpointing alone the gradient of such models is wrong.
    """

    @staticmethod
    def forward(ctx: Any, run: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor) -> Tensor:
        ctx.run = run
        ctx.save_for_backward(x, sigma)
        return run(x, sigma)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        inputs = [tensor.detach().requires_grad_(True) for tensor in ctx.saved_tensors]
        with torch.enable_grad(), torch.autograd.graph.allow_mutation_on_saved_tensors():
            found = torch.autograd.grad(ctx.run(*inputs), inputs, grads, allow_unused=True)
        return None, found[0], found[1]


@contextmanager
def differentiable_model(patcher: Any) -> Iterator[None]:
    """Lets gradients through ComfyUI's models: fused operations without a derivative are off meanwhile.

    The weights were loaded outside of inference mode, so they can be part of a graph; none of them needs a gradient.
    """
    management: Any = sys.modules["comfy.model_management"]
    before = getattr(management, "in_training", None)  # newer cores: rotary embeddings without the fused kernel
    patcher.model.requires_grad_(False)
    try:
        if before is not None:
            management.in_training = True
        yield
    finally:
        if before is not None:
            management.in_training = before


def sampler_that(
    samplers: Any, work: Callable[..., Any], conds: Sequence[Cond], negative: Cond, *, embeds_guidance: bool
) -> Any:
    """Returns a Sampler whose `sample` does the work."""

    class Inside(samplers.Sampler):
        def sample(
            self, guider: Any, sigmas: Tensor, extra_args: dict, callback: Any, noise: Tensor, *_: Any, **__: Any
        ) -> Tensor:
            def processed(prompts: Sequence[int], value: float, x: Tensor) -> Any:
                embedded = value if embeds_guidance else None
                own = {
                    "positive": joined([conds[i] for i in prompts], embedded),
                    "negative": joined([negative], embedded),
                }
                return _processed(samplers, guider.inner_model, own, x)

            def guided(own: Any, value: float, x: Tensor, sigma: Tensor) -> Tensor:
                guider.conds = own
                guider.set_cfg(1.0 if embeds_guidance else value)
                return guider(x, sigma, **extra_args)

            self.result = work(_denoiser(processed, guided, conds), noise.device)
            return noise

    return Inside()


def _denoiser(
    processed: Callable[..., Any], guided: Callable[..., Tensor], conds: Sequence[Cond]
) -> Callable[..., Tensor]:
    """Returns the denoiser of a microbatch's prompts and guidances.

    Args:
        processed: Makes the conditioning of prompts, of one guidance, for states.
        guided: Runs the model with that, at that guidance, on states and levels.
        conds: The encoded prompts. Those of unlike lengths are not run together.
    """
    shapes = [tuple(cond["context"].shape) for cond in conds]
    ready: dict[tuple[float, ...], dict[Hashable, Any]] = {}

    def denoiser(x: Tensor, sigma: Tensor, prompt: Sequence[int], guidance: Sequence[float]) -> Tensor:
        key = (*prompt, *guidance)
        if key not in ready:
            ready.clear()  # a microbatch is finished with before the next begins
        own = ready.setdefault(key, {})

        def at(kind: tuple[float, Hashable], rows: list[int], x: Tensor, sigma: Tensor) -> Tensor:
            if kind not in own:
                own[kind] = processed([prompt[row] for row in rows], kind[0], x)
            run = partial(guided, own[kind], kind[0])
            return _Replayed.apply(run, x, sigma) if torch.is_grad_enabled() else run(x, sigma)  # pyright: ignore

        kinds = [(value, shapes[number]) for number, value in zip(prompt, guidance, strict=True)]
        return apart(kinds, x, sigma, at)

    return denoiser


def _processed(samplers: Any, model: Any, conds: dict[str, Any], x: Tensor) -> Any:
    convert = sys.modules["comfy.sampler_helpers"].convert_cond
    converted = {key: convert(value) for key, value in conds.items()}
    shapes = (
        {"latent_shapes": [x.shape]} if "latent_shapes" in inspect.signature(samplers.process_conds).parameters else {}
    )
    return samplers.process_conds(model, x, converted, x.device, None, None, 0, **shapes)


def joined(conds: Sequence[Cond], embedded: float | None) -> list[Any]:
    """Returns ComfyUI's conditioning of a batch of prompts of one length."""
    batch = {key: torch.cat([c[key] for c in conds]) for key in conds[0]}
    extra: dict[str, Any] = {k: v for k, v in batch.items() if k != "context"}
    if embedded is not None:
        extra["guidance"] = embedded
    return [[batch["context"], extra]]
