"""A denoiser from ComfyUI's guider. All work runs inside one `guider.sample`, which loads and offloads the model.

So it works with everything that ComfyUI can sample: quantised, patched and offloaded models, any conditioning. The
caller must have imported ComfyUI's modules; none is imported here.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...samplers.guidance import Guidance, call_by_group
from ..data.batch_limit import Memory, is_out_of_memory
from .conditioning import Cond

__all__ = ["Denoiser", "EncodedPrompts", "WiredConditioning", "draw_starts", "host_memory", "with_denoiser"]

Denoiser = Callable[..., Tensor]
"""`denoiser(x, sigma, row, guidance=None) -> denoised`, guided, in the model's own latent space.

`row`: sample numbers. `guidance`: CFG, or embedded guidance where the model is guided so; None: the usual value.
"""

_Conds = dict[str, list[dict[str, Any]]]
_Result = TypeVar("_Result")


@dataclass(frozen=True, eq=False)
class WiredConditioning:
    """A graph's conditioning. From a batch of P prompts, sample i gets prompt i % P; several entries are combined."""

    positive: Any
    negative: Any

    def group_of(self, row: int) -> Hashable:
        """A key that the samples of one call share; here all samples can share a call."""
        return None

    def process(
        self, model: Any, conds: _Conds, rows: Sequence[int], x: Tensor, embedded: float | None = None
    ) -> _Conds:
        """The processed conditioning `conds`, reduced to the rows' entries (row modulo P) of every batch of P.

        `embedded` replaces the embedded guidance of the positive entries.
        """
        constant = sys.modules["comfy.conds"].CONDConstant

        def pick(cond: Any) -> Any:
            tensor: Any = getattr(cond, "cond", None)
            if isinstance(cond, constant) or not isinstance(tensor, Tensor) or tensor.ndim == 0 or len(tensor) < 2:
                return cond  # it has no entry per sample
            return cond._copy_with(tensor[[row % len(tensor) for row in rows]])

        def pick_all(entry: dict[str, Any], side: str) -> dict[str, Any]:
            picked = {name: pick(cond) for name, cond in entry.get("model_conds", {}).items()}
            if embedded is not None and side == "positive" and "guidance" in picked:
                cond = picked["guidance"]
                picked["guidance"] = cond._copy_with(torch.full_like(cond.cond, embedded))
            mask: Any = entry.get("mask")
            masks = {} if mask is None else {"mask": mask[[row % len(mask) for row in rows]]}
            return {**entry, **masks, "model_conds": picked}

        return {side: [pick_all(entry, side) for entry in entries] for side, entries in conds.items()}


@dataclass(frozen=True, eq=False)
class EncodedPrompts:
    """Encoded prompts, the negative one first; with P others, sample i has prompt 1 + i % P.

    Prompts of different lengths cannot share a call and run one after the other.
    """

    conds: Sequence[Cond]

    @property
    def positive(self) -> Any:
        """A prompt, as nodes have it."""
        return _join([self.conds[1]], None)

    @property
    def negative(self) -> Any:
        """The negative prompt, as nodes have it."""
        return _join([self.conds[0]], None)

    def _prompt_of(self, row: int) -> Cond:
        return self.conds[1 + row % (len(self.conds) - 1)]

    def group_of(self, row: int) -> torch.Size:
        """A key that the samples of one call share: the prompt's length."""
        return self._prompt_of(row)["context"].shape

    def process(
        self, model: Any, conds: _Conds, rows: Sequence[int], x: Tensor, embedded: float | None = None
    ) -> _Conds:
        """The processed conditioning of rows of one group, for states x."""
        pairs = {"positive": [self._prompt_of(row) for row in rows], "negative": [self.conds[0]]}
        convert = sys.modules["comfy.sampler_helpers"].convert_cond
        process = sys.modules["comfy.samplers"].process_conds
        shapes = {"latent_shapes": [x.shape]} if "latent_shapes" in inspect.signature(process).parameters else {}
        converted = {side: convert(_join(prompts, embedded)) for side, prompts in pairs.items()}
        return process(model, x, converted, x.device, None, None, 0, **shapes)


def host_memory() -> Memory:
    """ComfyUI's ways to recognise out of memory and to free memory."""
    management = sys.modules["comfy.model_management"]

    def is_out(error: BaseException) -> bool:
        if hasattr(management, "is_oom"):  # not in 0.3.64; clears an error that the device reports again later
            return management.is_oom(error) or is_out_of_memory(error)
        return is_out_of_memory(error)

    return Memory(is_out, management.soft_empty_cache)


def with_denoiser(
    work: Callable[[Denoiser, torch.device], _Result],
    patcher: Any,
    conditioning: WiredConditioning | EncodedPrompts,
    guidance: Guidance,
    latent: Any,
    *,
    seed: int = 0,
    differentiable: bool = False,
) -> _Result:
    """Returns `work(denoiser, device)`, called while the model is loaded.

    Args:
        work: Receives the denoiser and the model's device.
        patcher: ComfyUI's ModelPatcher.
        conditioning: Of the samples, by number.
        guidance: Its kind, its usual value and the CFG in addition to an embedded one; CFG 1 makes a
            single conditional pass.
        latent: An empty latent with the largest batch of a call, for ComfyUI's memory estimate; nested, the denoiser's
            states are flat, as ComfyUI packs them.
        seed: Of conditioning that draws noise.
        differentiable: Let gradients through the model; otherwise it runs in inference mode, as in ComfyUI's sampling.
    """
    samplers = sys.modules["comfy.samplers"]
    guider, results = samplers.CFGGuider(patcher), []
    guider.set_conds(conditioning.positive, conditioning.negative)

    def sampler(model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], **_: Any) -> Tensor:
        results.append(work(_make_denoiser(guider, model, extra_args, conditioning, guidance), x.device))
        return x

    sigmas = torch.tensor([float(patcher.get_model_object("model_sampling").sigma_max), 0.0])
    with _differentiable(patcher) if differentiable else torch.inference_mode():
        guider.sample(latent * 0, latent, samplers.KSAMPLER(sampler), sigmas, disable_pbar=True, seed=seed)
    return results[0]


def _make_denoiser(
    guider: Any,
    model: Denoiser,
    extra_args: dict[str, Any],
    conditioning: WiredConditioning | EncodedPrompts,
    usual: Guidance,
) -> Denoiser:
    """The denoiser of numbered samples, from the one that ComfyUI passes to a sampler function."""
    conds = guider.conds  # as the guider processed them
    check_interrupt = sys.modules["comfy.model_management"].throw_exception_if_processing_interrupted
    processed: dict[Any, dict[Hashable, _Conds]] = {}
    is_embedded, fixed_cfg = usual.kind == "embedded", 1.0 if usual.cfg is None else usual.cfg

    def denoiser(x: Tensor, sigma: Tensor, row: Sequence[int], guidance: float | None = None) -> Tensor:
        value = usual.default if guidance is None else guidance
        embedded = value if is_embedded else None
        if (key := (tuple(row), embedded)) not in processed:
            processed.clear()  # a microbatch is finished before the next begins
        of_batch = processed.setdefault(key, {})

        def run_group(group: Hashable, positions: list[int], x: Tensor, sigma: Tensor) -> Tensor:
            if group not in of_batch:
                rows = [row[i] for i in positions]
                of_batch[group] = conditioning.process(guider.inner_model, conds, rows, x, embedded)

            def run(x: Tensor, sigma: Tensor) -> Tensor:
                check_interrupt()
                guider.conds = of_batch[group]
                guider.set_cfg(fixed_cfg if is_embedded else value)
                return model(x, sigma, **extra_args)

            return _Replayed.apply(run, x, sigma) if torch.is_grad_enabled() else run(x, sigma)  # pyright: ignore

        return call_by_group([conditioning.group_of(i) for i in row], x, sigma, run_group)

    return denoiser


def _join(conds: Sequence[Cond], embedded: float | None) -> list[Any]:
    """ComfyUI's conditioning of a batch of prompts of one length."""
    batch: dict[str, Any] = {key: torch.cat([cond[key] for cond in conds]) for key in conds[0]}
    guidance = {} if embedded is None else {"guidance": embedded}
    return [[batch.pop("context"), {**batch, **guidance}]]


def draw_starts(sampling: Any, shapes: Sequence[Sequence[int]], count: int, seed: int) -> Tensor:
    """Starting states at the highest noise level of a `model_sampling`, shape [count, ...], float32 on the CPU.

    Sample i has its own generator, so it does not depend on the count. `shapes` are those of one latent's streams,
    [1, ...]; several are packed as ComfyUI does it, [count, 1, N].
    """
    samples = []
    for i in range(count):
        generator = torch.Generator().manual_seed((seed + i) % 2**64)
        streams = [torch.randn(list(shape), generator=generator) for shape in shapes]
        samples.append(streams[0] if len(streams) == 1 else torch.cat([s.reshape(1, 1, -1) for s in streams], dim=-1))
    gaussian = torch.cat(samples)
    sigma = sampling.sigma_max.detach().cpu().float()
    return sampling.noise_scaling(sigma, gaussian.clone(), torch.zeros_like(gaussian), True)


@contextmanager
def _differentiable(patcher: Any) -> Iterator[None]:
    """Lets gradients through ComfyUI's models: fused operations without a derivative are switched off.

    The weights are loaded outside inference mode, so they can be part of a graph, but they need no gradient.
    """
    management: Any = sys.modules["comfy.model_management"]
    before = getattr(management, "in_training", False)
    patcher.model.requires_grad_(False)
    management.in_training = True  # disables the fused rotary kernel; older cores ignore it
    try:
        yield
    finally:
        management.in_training = before


class _Replayed(torch.autograd.Function):
    """A denoiser's forward pass without a graph; the backward pass runs it again with one.

    The graph is built and used inside one context that lets ComfyUI's models change saved tensors in place, as FLUX
    does; with plain checkpointing the gradients of such models are wrong.
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
            gradients = torch.autograd.grad(ctx.run(*inputs), inputs, grads, allow_unused=True)
        return None, gradients[0], gradients[1]
