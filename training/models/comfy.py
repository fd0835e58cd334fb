"""Models loaded and run by ComfyUI, in this process: every format, quantisation and offloading that it has.

Knows ComfyUI 0.3.64 to 0.33.0. Only forward passes are made, inside one `guider.sample`, so model loading, conditioning
and memory are the host's own business.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...samplers.comfy_models import model_family, noise_of, pixel_size
from ...samplers.schedules import Noise
from .conditioning import Cond
from .guider import differentiable_model, joined, sampler_that
from .loading import load_parts

__all__ = ["ComfyModel"]

_SIZES = {"SD15": (512, 512), "SD15_instructpix2pix": (512, 512), "SD20": (768, 768)}
_GUIDANCE = {"SD15": 7.5, "SD20": 7.5, "SDXL": 7.0, "SD3": 4.5, "FluxSchnell": 1.0}  # as their pipelines have it


@dataclass(eq=False)
class ComfyModel:
    """A diffusion model with what belongs to it.

    Args:
        patcher: ComfyUI's ModelPatcher.
        clip: Text encoders, or None.
        vae: VAE, or None.
    """

    patcher: Any
    clip: Any
    vae: Any

    @classmethod
    def load(
        cls,
        comfy: Path,
        *,
        checkpoint: Path | None = None,
        diffusion_model: Path | None = None,
        clip: Sequence[Path] = (),
        vae: Path | None = None,
        text_encoders: bool = True,
    ) -> ComfyModel:
        """Returns a model loaded by ComfyUI's own loaders.

        Raises:
            ValueError: Neither or both kinds of model file, or one that ComfyUI cannot load.
        """
        return cls(*load_parts(comfy, checkpoint, diffusion_model, clip, vae, text_encoders=text_encoders))

    @property
    def family(self) -> str:
        """Architecture in ComfyUI's spelling."""
        return model_family(self.patcher.model)

    def noise(self, shape: Sequence[int]) -> Noise:
        """Returns the noise schedule for latents of a shape."""
        return noise_of(self.patcher.model, self._sampling, shape)

    @property
    def _sampling(self) -> Any:
        return self.patcher.get_model_object("model_sampling")

    def encode(self, prompts: Sequence[str], say: Callable[[str], None]) -> list[Cond]:
        """Returns the encoded prompts, on the CPU.

        Raises:
            ValueError: No text encoder was loaded.
        """
        if self.clip is None:
            raise ValueError("no text encoder: name it with --clip, or reuse encoded prompts with --conditioning FILE")
        conds = []
        with torch.inference_mode():
            for i, prompt in enumerate(prompts):
                context, extra = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(prompt))[0]
                tensors = {k: v for k, v in extra.items() if isinstance(v, Tensor)}
                conds.append({k: v.clone().cpu() for k, v in {"context": context, **tensors}.items()})
                if (i + 1) % 50 == 0:
                    say(f"{i + 1} of {len(prompts)} prompts encoded")
        return conds

    def free_text_encoders(self) -> None:
        """Gives the text encoders' memory back."""
        if self.clip is not None:
            self.clip = None
            management = sys.modules["comfy.model_management"]
            management.unload_all_models()
            management.soft_empty_cache()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels that the architecture was trained on, as far as it is known."""
        return _SIZES.get(self.family, (1024, 1024))

    @property
    def embeds_guidance(self) -> bool:
        """Whether guidance is distilled into an input of the model, as in FLUX and its kind; then CFG is 1."""
        return bool(getattr(getattr(self.patcher.model.diffusion_model, "params", None), "guidance_embed", False))

    @property
    def usual_guidance(self) -> float:
        """Guidance that the architecture is usually run at, embedded or CFG."""
        return 3.5 if self.embeds_guidance else _GUIDANCE.get(self.family, 5.0)

    def latent_shape(self, width: int, height: int) -> list[int]:
        """Returns the shape of one latent, with one frame for video models.

        Raises:
            ValueError: The size in pixels is no whole number of latent pixels.
        """
        form = self.patcher.model.latent_format
        ratio = getattr(form, "spacial_downscale_ratio", 8)
        if width % ratio or height % ratio:
            near = [max(1, round(side / ratio)) * ratio for side in (width, height)]
            raise ValueError(
                f"--size must be multiples of {ratio} for {self.family}, got {width}x{height}: {near[0]}x{near[1]}"
            )
        frames = [1] if getattr(form, "latent_dimensions", 2) == 3 else []
        return [1, form.latent_channels, *frames, height // ratio, width // ratio]

    def pixels(self, shape: Sequence[int]) -> str:
        """Returns "WIDTHxHEIGHT" of a latent shape, as cards have it."""
        return pixel_size(self.patcher.model, shape) or ""

    def starts(self, shape: Sequence[int], count: int, seed: int) -> Tensor:
        """Returns starting states at the model's highest noise level, shape [count, ...], float32 on the CPU.

        Sample i has its own generator, so that it is the same whatever the count.
        """
        noise = torch.cat([torch.randn(list(shape), generator=_generator(seed + i)) for i in range(count)])
        sigma = self._sampling.sigma_max.detach().cpu().float()
        return self._sampling.noise_scaling(sigma, noise.clone(), torch.zeros_like(noise), True)

    def decode(self, latents: Tensor) -> Tensor:
        """Returns pictures [B, 3, H, W] in [0, 1] of end states; without a VAE, three latent channels, stretched."""
        latents = self.patcher.model.process_latent_out(latents.float().cpu())
        if self.vae is None:
            flat = latents[:, :3] if latents.ndim == 4 else latents[:, :3, 0]
            low, high = flat.amin(), flat.amax()
            return (flat - low) / (high - low).clamp(min=1e-6)
        with torch.inference_mode():
            pictures = self.vae.decode(latents)
        return pictures.reshape(-1, *pictures.shape[-3:]).movedim(-1, 1).clone()

    def with_denoiser(
        self,
        work: Callable[[Callable[..., Tensor], torch.device], Any],
        conds: Sequence[Cond],
        negative: Cond,
        shape: Sequence[int],
        differentiable: bool = False,
    ) -> Any:
        """Returns `work(denoiser, device)`, called while the model is loaded.

        The denoiser takes `prompt` and `guidance`, lists of one index into `conds` and one guidance per sample: CFG,
        where 1 makes one conditional pass, or what the model embeds. Each guidance is a call of its own to ComfyUI.

        Args:
            work: What to do with it.
            conds: Encoded prompts.
            negative: Encoded negative prompt.
            shape: Shape of a microbatch of latents, by which ComfyUI reckons the memory it needs.
            differentiable: Let gradients through the model; otherwise it runs in inference mode, as ComfyUI samples.
        """
        samplers = sys.modules["comfy.samplers"]
        run = sampler_that(samplers, work, conds, negative, embeds_guidance=self.embeds_guidance)
        guider = samplers.CFGGuider(self.patcher)
        guider.set_conds(joined([conds[0]], None), joined([negative], None))
        latent, sigmas = torch.zeros(list(shape)), torch.tensor([float(self._sampling.sigma_max), 0.0])
        with differentiable_model(self.patcher) if differentiable else torch.inference_mode():
            guider.sample(torch.zeros_like(latent), latent, run, sigmas, disable_pbar=True, seed=0)
        return run.result


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
