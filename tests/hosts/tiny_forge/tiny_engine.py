"""Models for the tests in a real Forge with answers in closed form: data ~ N(mean, VARIANCE) per pixel.

Forge's own engine, patcher, predictor and sampling run them; network, text encoder and VAE are replaced. The mean moves
with the prompt: by GUIDES times the mean of the text encoder's answer, which is the length of the prompt / 100.
"""

from __future__ import annotations

import types
from pathlib import Path

import torch
from backend.diffusion_engine.base import ForgeDiffusionEngine, ForgeObjects
from backend.modules import k_prediction
from backend.modules.k_prediction import Prediction, PredictionFlux
from backend.patcher.unet import UnetPatcher
from backend.args import dynamic_args
from huggingface_guess import model_list
from modules import sd_models
from scene import landscape

MEAN, REFINED_MEAN, VARIANCE, GUIDES = 0.3, -0.5, 0.7**2, 5.0
CALLS, DECODED = [], []  # of the networks, and decoded latents, since the last reset
NEO = hasattr(model_list, "ZImage")  # Forge Neo


def discrete(prediction_type):
    if not NEO:
        return lambda config: Prediction(prediction_type=prediction_type)
    return lambda config: Prediction(1.0, prediction_type, "linear", 0.00085, 0.012, 1000)


EPS = (model_list.SD15, 4, discrete("epsilon"))
KINDS = dict.fromkeys(("eps", "refiner", "picture"), EPS)
if NEO:
    flow = k_prediction.PredictionDiscreteFlow
    KINDS |= {
        "sdxl": (model_list.SDXL, 4, discrete("epsilon")),
        "v": (model_list.SDXL, 4, discrete("v_prediction")),
        "flux": (model_list.Flux, 16, PredictionFlux),
        "klein": (model_list.Flux2K4B, 128, PredictionFlux),
        "zimage": (model_list.ZImage, 16, flow),
        "qwen": (model_list.QwenImage, 16, flow),
        **dict.fromkeys(("wan", "wan-low"), (model_list.WAN21_T2V, 16, flow)),
    }
else:
    KINDS |= {
        "v": (model_list.SD20, 4, discrete("v_prediction")),
        "flux": (model_list.Flux, 16, lambda config: PredictionFlux()),
        "edm": (model_list.SDXL, 4, lambda config: k_prediction.PredictionContinuousEDM(prediction_type="edm")),
    }


class Network(torch.nn.Module):
    """The exact answer for Gaussian data, in the network's own terms (eps, v or velocity)."""

    storage_dtype = computation_dtype = torch.float32
    load_device = offload_device = initial_device = torch.device("cpu")

    def __init__(self, name, predictor, mean):
        super().__init__()
        self.name, self.predictor, self.mean = name, predictor, mean
        self.weight = torch.nn.Parameter(torch.tensor([mean]))  # what identifies the checkpoint

    def forward(self, xc, t, context=None, control=None, transformer_options=None, **others):
        guide, shape = context.flatten(1).mean(1), (-1, *(1,) * (xc.ndim - 1))
        CALLS.append({"model": self.name, "t": t.tolist(), "guide": guide.tolist()})
        is_flow = self.predictor.prediction_type == "const"
        sigma = t / getattr(self.predictor, "multiplier", 1) if is_flow else self.predictor.sigma(t)
        sigma = sigma.view(shape).to(xc)
        mean, variance = self.mean + GUIDES * guide.view(shape), VARIANCE
        if self.name == "picture":
            rgb = landscape(*xc.shape[-2:])
            mean, variance = torch.cat([2 * rgb - 1, torch.zeros_like(rgb[:1])]), 0.05**2
        if is_flow:  # x = (1 - sigma) x0 + sigma noise; the answer is noise - x0
            kept = 1 - sigma
            x0 = mean + kept * variance / (kept**2 * variance + sigma**2) * (xc - kept * mean)
            return (xc - x0) / sigma
        x = xc * (sigma**2 + 1).sqrt()
        x0 = (variance * x + sigma**2 * mean) / (variance + sigma**2)
        if self.predictor.prediction_type == "epsilon":
            return (x - x0) / sigma
        v = (x / (sigma**2 + 1) - x0) * (sigma**2 + 1).sqrt() / sigma
        return v if self.predictor.prediction_type == "v_prediction" else -v


class Engine(ForgeDiffusionEngine):
    """One of the models, by the name of its checkpoint file."""

    def __init__(self, name):
        config, self.channels, predictor = KINDS[name]
        config, vae = config({"in_channels": 4}), types.SimpleNamespace(latent_channels=self.channels)
        vae.upscale_ratio = 16 if name == "klein" else 8  # pixels per latent pixel
        config.model_type = types.SimpleNamespace(name="test")
        if NEO:  # set by its loader of checkpoints
            dynamic_args.ops, dynamic_args.klein, dynamic_args.wan = "Torch", name == "klein", name.startswith("wan")
        super().__init__(config, {"vae": types.SimpleNamespace()})
        predictor = predictor(config)
        self.network = Network(name, predictor, REFINED_MEAN if name in ("refiner", "wan-low") else MEAN)
        unet = UnetPatcher.from_model(
            model=self.network, diffusers_scheduler=None, config=config, k_predictor=predictor
        )
        self.forge_objects = ForgeObjects(unet=unet, clip=None, vae=vae, clipvision=None)
        self.forge_objects_original = self.forge_objects.shallow_copy()
        self.forge_objects_after_applying_lora = self.forge_objects.shallow_copy()
        guessed = type(config).__name__
        self.is_sd1, self.is_sd2, self.is_sdxl = guessed == "SD15", guessed == "SD20", guessed == "SDXL"
        self.use_distilled_cfg_scale = name == "flux"
        self.is_wan = name.startswith("wan")
        self.use_shift = self.is_wan or name in ("zimage", "qwen")

    def get_learned_conditioning(self, prompts):
        return torch.stack([torch.full((77, 8), len(prompt) / 100) for prompt in prompts])

    def decode_first_stage(self, x):
        DECODED.append(x.clone())
        x = x.squeeze(2) if self.is_wan else x  # one frame
        return torch.nn.functional.interpolate(
            x[:, :3].clamp(-1, 1), scale_factor=self.forge_objects.vae.upscale_ratio, mode="bilinear"
        )

    def encode_first_stage(self, x):
        latent = torch.nn.functional.avg_pool2d(x, self.forge_objects.vae.upscale_ratio)
        latent = latent.repeat(1, -(-self.channels // 3), 1, 1)[:, : self.channels]
        return latent.unsqueeze(2) if self.is_wan else latent


def install():
    """Makes Forge load these models by the file names in models/Stable-diffusion."""
    sd_models.forge_loader = lambda file, additional_state_dicts=None: Engine(Path(file).stem)
