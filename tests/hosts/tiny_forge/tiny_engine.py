"""Models for the tests in a real Forge with answers in closed form: data ~ N(mean, VARIANCE) per pixel.

Forge's own engine, patcher, predictor and sampling run them; network, text encoder and VAE are replaced. The mean moves
with the prompt: by GUIDES times the mean of the text encoder's answer, which is the length of the prompt / 100.
"""

from __future__ import annotations

import types
from functools import partial
from pathlib import Path

import torch
from backend.diffusion_engine.base import ForgeDiffusionEngine, ForgeObjects
from backend.modules.k_prediction import Prediction, PredictionContinuousEDM, PredictionFlux
from backend.patcher.unet import UnetPatcher
from huggingface_guess import model_list
from modules import sd_models
from scene import landscape

MEAN, REFINED_MEAN, VARIANCE, GUIDES = 0.3, -0.5, 0.7**2, 5.0
CALLS, DECODED = [], []  # of the networks, and decoded latents, since the last reset
EPS = (model_list.SD15, 4, partial(Prediction, prediction_type="epsilon"))
KINDS = {
    **dict.fromkeys(("eps", "refiner", "picture"), EPS),
    "v": (model_list.SD20, 4, partial(Prediction, prediction_type="v_prediction")),
    "flux": (model_list.Flux, 16, PredictionFlux),
    "edm": (model_list.SDXL, 4, partial(PredictionContinuousEDM, prediction_type="edm")),
}


class Network(torch.nn.Module):
    """The exact answer for Gaussian data, in the network's own terms (eps, v or velocity)."""

    storage_dtype = computation_dtype = torch.float32
    load_device = offload_device = initial_device = torch.device("cpu")

    def __init__(self, name, predictor, mean):
        super().__init__()
        self.name, self.predictor, self.mean = name, predictor, mean
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, xc, t, context=None, control=None, transformer_options=None, **others):
        guide = context.flatten(1).mean(1)
        CALLS.append({"model": self.name, "t": t.tolist(), "guide": guide.tolist()})
        sigma = self.predictor.sigma(t).view(-1, 1, 1, 1).to(xc)
        mean, variance = self.mean + GUIDES * guide.view(-1, 1, 1, 1), VARIANCE
        if self.name == "picture":
            rgb = landscape(*xc.shape[-2:])
            mean, variance = torch.cat([2 * rgb - 1, torch.zeros_like(rgb[:1])]), 0.05**2
        if self.predictor.prediction_type == "const":  # x = (1 - sigma) x0 + sigma noise; the answer is noise - x0
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
        super().__init__(config({"in_channels": 4}), {})
        self.network = Network(name, predictor(), REFINED_MEAN if name == "refiner" else MEAN)
        unet = UnetPatcher.from_model(
            model=self.network, diffusers_scheduler=None, config=self.model_config, k_predictor=self.network.predictor
        )
        vae = types.SimpleNamespace(latent_channels=self.channels)
        self.forge_objects = ForgeObjects(unet=unet, clip=None, vae=vae, clipvision=None)
        self.forge_objects_original = self.forge_objects.shallow_copy()
        self.forge_objects_after_applying_lora = self.forge_objects.shallow_copy()
        self.is_sd1, self.is_sd2, self.is_sdxl = name in ("eps", "refiner", "picture"), name == "v", name == "edm"
        self.use_distilled_cfg_scale = name == "flux"

    def get_learned_conditioning(self, prompts):
        return torch.stack([torch.full((77, 8), len(prompt) / 100) for prompt in prompts])

    def decode_first_stage(self, x):
        DECODED.append(x.clone())
        return torch.nn.functional.interpolate(x[:, :3].clamp(-1, 1), scale_factor=8, mode="bilinear")

    def encode_first_stage(self, x):
        return torch.nn.functional.avg_pool2d(x, 8).repeat(1, 6, 1, 1)[:, : self.channels]


def install():
    """Makes Forge load these models by the file names in models/Stable-diffusion."""
    sd_models.forge_loader = lambda file, additional_state_dicts=None: Engine(Path(file).stem)
