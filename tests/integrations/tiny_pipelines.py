"""Tiny random pipelines of diffusers, and their denoisers written out by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from learned_solvers.samplers import FlowNoise, VPNoise
from learned_solvers.samplers.schedules import Noise
from oracles import append_dims
from torch import Tensor

SD_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SIZE, PROMPT, GUIDANCE = 64, 7, 3.0  # pixels, tokens of a prompt


@dataclass
class Tiny:
    """A pipeline, its pipeline for image-to-image, what both are called with, and the same model by hand."""

    text: diffusers.DiffusionPipeline
    image: diffusers.DiffusionPipeline
    arguments: dict[str, Any]
    noise: Noise
    denoiser: Callable[[Tensor, Tensor], Tensor]
    shape: tuple[int, ...]  # of one image's latents
    pack: Callable[[Tensor], Tensor] = lambda x: x

    def use(self, scheduler: Any) -> None:
        self.text.scheduler = self.image.scheduler = scheduler

    def sample(self, pipeline: diffusers.DiffusionPipeline, **arguments: Any) -> Tensor:
        return pipeline(**{**self.arguments, "output_type": "latent", "return_dict": False, **arguments})[0]


def noise_of(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def prompts(batch: int, width: int, pooled: int = 0) -> dict[str, Tensor]:
    """Encoded prompts, a different one for each image, and the negative ones."""
    embeds = {
        "prompt_embeds": noise_of(1, batch, PROMPT, width),
        "negative_prompt_embeds": noise_of(2, batch, PROMPT, width),
    }
    if pooled:
        embeds["pooled_prompt_embeds"] = noise_of(3, batch, pooled)
        embeds["negative_pooled_prompt_embeds"] = noise_of(4, batch, pooled)
    return embeds


def vae(channels: int) -> diffusers.AutoencoderKL:
    """Eightfold, as the real ones."""
    return diffusers.AutoencoderKL(
        block_out_channels=[4] * 4, down_block_types=["DownEncoderBlock2D"] * 4, latent_channels=channels,
        up_block_types=["UpDecoderBlock2D"] * 4, norm_num_groups=2, layers_per_block=1,
    )  # fmt: skip


def unet(**options: Any) -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(**{
        "block_out_channels": (8, 16), "layers_per_block": 1, "sample_size": SIZE // 8, "norm_num_groups": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "cross_attention_dim": 8,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 4, **options,
    })  # fmt: skip


def of_unet(network: Any, noise: VPNoise, prediction: str, conditions: Callable[[str], dict[str, Any]]) -> Callable:
    """A UNet's guided denoiser, for x0 + sigma * noise."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        t, s = noise.index_at(sigma).float(), append_dims(sigma, x.ndim)
        negative, positive = (network(x / (s**2 + 1).sqrt(), t, **conditions(p)).sample for p in ("negative_", ""))
        output = negative + GUIDANCE * (positive - negative)
        return x - s * output if prediction == "epsilon" else x / (s**2 + 1) - output * s / (s**2 + 1).sqrt()

    return denoise


def sd(batch: int = 2, prediction: str = "epsilon") -> Tiny:
    torch.manual_seed(0)
    network, embeds, noise = unet(), prompts(batch, 8), VPNoise.stable_diffusion()
    scheduler = diffusers.PNDMScheduler(prediction_type=prediction, skip_prk_steps=True, steps_offset=1, **SD_BETAS)
    parts = {"vae": vae(4), "unet": network, "scheduler": scheduler, "requires_safety_checker": False}
    parts |= dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    denoiser = of_unet(network, noise, prediction, lambda p: {"encoder_hidden_states": embeds[f"{p}prompt_embeds"]})
    text, image = diffusers.StableDiffusionPipeline(**parts), diffusers.StableDiffusionImg2ImgPipeline(**parts)
    return Tiny(text, image, {**embeds, "guidance_scale": GUIDANCE}, noise, denoiser, (4, 8, 8))


def sdxl(batch: int = 2) -> Tiny:
    torch.manual_seed(0)
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    network = unet(**added, projection_class_embeddings_input_dim=6 * 4 + 8, use_linear_projection=True)
    embeds, noise = prompts(batch, 8, 8), VPNoise.stable_diffusion()
    parts = {"vae": vae(4), "unet": network, "scheduler": diffusers.EulerDiscreteScheduler(**SD_BETAS)}
    parts |= dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    sizes = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]]).repeat(batch, 1)

    def conditions(p: str) -> dict[str, Any]:
        pooled = {"text_embeds": embeds[f"{p}pooled_prompt_embeds"], "time_ids": sizes}
        return {"encoder_hidden_states": embeds[f"{p}prompt_embeds"], "added_cond_kwargs": pooled}

    denoiser = of_unet(network, noise, "epsilon", conditions)
    pipelines = diffusers.StableDiffusionXLPipeline, diffusers.StableDiffusionXLImg2ImgPipeline
    text, image = (p(**parts, force_zeros_for_empty_prompt=False, add_watermarker=False) for p in pipelines)
    return Tiny(text, image, {**embeds, "guidance_scale": GUIDANCE}, noise, denoiser, (4, 8, 8))


def sd3(batch: int = 2) -> Tiny:
    torch.manual_seed(0)
    network = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, caption_projection_dim=16, pooled_projection_dim=8, out_channels=16,
    )  # fmt: skip
    embeds = prompts(batch, 8, 8)
    parts = {"vae": vae(16), "transformer": network, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)}
    names = ("text_encoder", "tokenizer")
    parts |= dict.fromkeys(f"{name}{i}" for name in names for i in ("", "_2", "_3"))

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        negative, positive = (
            network(x, embeds[f"{p}prompt_embeds"], embeds[f"{p}pooled_prompt_embeds"], 1000 * sigma).sample
            for p in ("negative_", "")
        )
        return x - append_dims(sigma, x.ndim) * (negative + GUIDANCE * (positive - negative))

    text, image = diffusers.StableDiffusion3Pipeline(**parts), diffusers.StableDiffusion3Img2ImgPipeline(**parts)
    arguments = {**embeds, "guidance_scale": GUIDANCE, "height": SIZE, "width": SIZE}
    return Tiny(text, image, arguments, FlowNoise(), denoise, (16, 8, 8))


def flux(batch: int = 2) -> Tiny:
    torch.manual_seed(0)
    network = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=[4, 4, 8], guidance_embeds=True,
    )  # fmt: skip
    embeds = {name: t for name, t in prompts(batch, 8, 8).items() if "negative" not in name}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    parts = {"vae": vae(16), "transformer": network, "scheduler": scheduler}
    parts |= dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    side = SIZE // 16
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float()

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        guidance = torch.full_like(sigma, GUIDANCE)
        pooled, ids = embeds["pooled_prompt_embeds"], torch.zeros(PROMPT, 3)
        output = network(x, embeds["prompt_embeds"], pooled, sigma, places, ids, guidance).sample
        return x - append_dims(sigma, x.ndim) * output

    def pack(x: Tensor) -> Tensor:
        return x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(len(x), side * side, 64)

    text, image = diffusers.FluxPipeline(**parts), diffusers.FluxImg2ImgPipeline(**parts)
    arguments = {**embeds, "guidance_scale": GUIDANCE, "height": SIZE, "width": SIZE}
    return Tiny(text, image, arguments, FlowNoise(side * side), denoise, (16, 8, 8), pack)


def save_with_text_encoder(pipeline: diffusers.DiffusionPipeline, folder: Path) -> None:
    """Saves a Stable Diffusion pipeline with a tiny random text encoder, whose tokens are letters."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    tokens = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(folder / "vocab.json", folder / "merges.txt", model_max_length=16)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    encoder = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokens), max_position_embeddings=16, **sizes))
    pipeline.register_modules(tokenizer=tokenizer, text_encoder=encoder)
    pipeline.save_pretrained(folder)
