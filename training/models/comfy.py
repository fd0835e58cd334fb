"""Models that ComfyUI loads and runs in this process, with all its formats, quantisations and offloading.

Supports ComfyUI 0.3.64 to 0.33.0. Everything runs inside one `guider.sample`, so the host manages model loading,
conditioning and memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...samplers.architectures import DEFAULT_CFG, DEFAULT_GUIDANCE, DEFAULT_SIZE, Architecture
from ...samplers.comfy_models import (
    channel_pictures,
    embeds_guidance,
    first_frame,
    latent_ratios,
    model_architecture,
    noise_of,
    pixel_size,
)
from ...samplers.guidance import Guidance
from ...samplers.schedules import Noise
from . import Model
from .conditioning import Cond
from .guider import Denoiser, EncodedPrompts, draw_starts, with_denoiser
from .loading import ModelFiles, load_parts

__all__ = ["ComfyModel"]


@dataclass(eq=False)
class ComfyModel(Model):
    """ComfyUI's ModelPatcher of a diffusion model, with its text encoders and VAE (each may be None)."""

    patcher: Any
    clip: Any
    vae: Any

    @classmethod
    def load(cls, files: ModelFiles, *, text_encoders: bool = True, dynamic: bool = True) -> ComfyModel:
        """Loads a model, see `load_parts`; ValueError if ComfyUI cannot."""
        return cls(*load_parts(files, text_encoders=text_encoders, dynamic=dynamic))

    @property
    def _facts(self) -> Architecture:
        return model_architecture(self.patcher.model)

    @property
    def device(self) -> str:
        """The device that it runs on, with a GPU's name, and DynamicVRAM if its weights are loaded so."""
        device = self.patcher.load_device
        name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
        return f"{device}{name}{', DynamicVRAM' if getattr(self.patcher, 'is_dynamic', bool)() else ''}"

    @property
    def sampling(self) -> Any:
        """ComfyUI's noise schedule of the model."""
        return self.patcher.get_model_object("model_sampling")

    @property
    def architecture(self) -> str:  # noqa: D102 - see Model
        return self._facts.name

    def noise(self, shape: Sequence[int]) -> Noise:  # noqa: D102 - see Model
        return noise_of(self.patcher.model, self.sampling, shape)

    def encode(self, prompts: Sequence[str], log: Callable[[str], None]) -> list[Cond]:  # noqa: D102 - see Model
        if self.clip is None:
            raise ValueError(
                "no text encoder is loaded: specify one with --clip, or encoded prompts with --conditioning"
            )
        conds = []
        with torch.inference_mode():
            for i, prompt in enumerate(prompts):
                context, extra = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(prompt))[0]
                tensors = {k: v for k, v in extra.items() if isinstance(v, Tensor)}
                conds.append({k: v.clone().cpu() for k, v in {"context": context, **tensors}.items()})
                if (i + 1) % 50 == 0:
                    log(f"{i + 1} of {len(prompts)} prompts encoded")
        return conds

    def free_text_encoders(self) -> None:  # noqa: D102 - see Model
        if self.clip is not None:
            self.clip = None
            management = sys.modules["comfy.model_management"]
            management.unload_all_models()
            management.soft_empty_cache()

    @property
    def size(self) -> tuple[int, int]:  # noqa: D102 - see Model
        return self._facts.size or DEFAULT_SIZE

    @property
    def frames(self) -> int:  # noqa: D102 - see Model
        return self._facts.frames or 1

    @property
    def embeds_guidance(self) -> bool:
        """As in `Model`; False for Chroma, which CFG guides: its embedded guidance is always 0."""
        return embeds_guidance(self.patcher.model)

    @property
    def usual_guidance(self) -> float:  # noqa: D102 - see Model
        facts = self._facts
        if self.embeds_guidance:
            return facts.guidance or facts.host_guidance or DEFAULT_GUIDANCE
        return facts.cfg or DEFAULT_CFG

    def latent_shape(self, width: int, height: int, frames: int = 1) -> list[int]:  # noqa: D102 - see Model
        form = self.patcher.model.latent_format
        if type(form).__name__.endswith("AV"):
            raise ValueError(
                f"{self.architecture} makes video and sound together, and only a graph has the sizes of both: use the "
                "node Fit Learned Solver"
            )
        ratio, per_frame = latent_ratios(form)
        if width % ratio or height % ratio:
            nearest_size = "x".join(str(max(1, round(side / ratio)) * ratio) for side in (width, height))
            raise ValueError(
                f"--size must be multiples of {ratio} for {self.architecture}, got {width}x{height}: use {nearest_size}"
            )
        is_video = getattr(form, "latent_dimensions", 2) == 3
        if frames > 1 and not is_video:
            raise ValueError(f"--frames is for video models, but {self.architecture} makes images: remove it")
        if (frames - 1) % per_frame:
            raise ValueError(
                f"--frames must be 1 more than a multiple of {per_frame} for {self.architecture}, got {frames}: use "
                f"{1 + round((frames - 1) / per_frame) * per_frame}"
            )
        latent_frames = [1 + (frames - 1) // per_frame] if is_video else []
        return [1, form.latent_channels, *latent_frames, height // ratio, width // ratio]

    def pixels(self, shape: Sequence[int]) -> str:  # noqa: D102 - see Model
        return pixel_size(self.patcher.model, shape) or ""

    def starts(self, shape: Sequence[int], count: int, seed: int) -> Tensor:  # noqa: D102 - see Model
        return draw_starts(self.sampling, [shape], count, seed)

    def decode(self, latents: Tensor) -> Tensor:
        """As in `Model`; without a VAE, three latent channels, stretched to [0, 1]."""
        latents = self.patcher.model.process_latent_out(latents.float().cpu())
        if self.vae is None:
            return channel_pictures(latents)
        with torch.inference_mode():
            pictures = self.vae.decode(first_frame(latents))
        return pictures.reshape(-1, *pictures.shape[-3:]).movedim(-1, 1).clone()

    def with_denoiser(  # noqa: D102 - see Model
        self,
        work: Callable[[Denoiser, torch.device], Any],
        conds: Sequence[Cond],
        guidance: Guidance,
        shape: Sequence[int],
        *,
        differentiable: bool = False,
    ) -> Any:
        latent = torch.zeros(list(shape))
        return with_denoiser(work, self.patcher, EncodedPrompts(conds), guidance, latent, differentiable=differentiable)
