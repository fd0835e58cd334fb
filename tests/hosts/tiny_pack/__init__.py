"""Nodes for the tests of Learned Solvers in a real ComfyUI: conditioning without a text
encoder, typed noise levels, published formulas.

`TinyPublished` samples with the two papers' formulas written out, with nothing of Learned Solvers; of the steps it runs
those from `start` to before `stop`, with what a row lost of its history given to the oldest entry that it still has.
"""

import json
import math
import os
from pathlib import Path

import comfy.samplers
import torch

from . import others, patches, picture

FIGURES = Path(os.environ.get("LEARNED_SOLVERS_FIGURES", "."))


class TinyConditioning:
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"
    CATEGORY = "tiny"

    @classmethod
    def INPUT_TYPES(cls):
        number = ("INT", {"default": 8, "min": 0, "max": 100000})
        return {
            "required": {"tokens": number, "dim": number, "pooled": number, "seed": number},
            "optional": {"t5": ("INT", {"default": 0, "tooltip": "Tokens of HunyuanDiT's second text encoder."})},
        }

    def make(self, tokens, dim, pooled, seed, t5=0):
        generator = torch.Generator().manual_seed(seed)
        context = torch.randn(1, tokens, dim, generator=generator)
        extra = {"pooled_output": torch.randn(1, pooled, generator=generator)} if pooled else {}
        if t5:
            extra["conditioning_mt5xl"] = torch.randn(1, t5, 2048, generator=generator)
            extra["attention_mask"], extra["attention_mask_mt5xl"] = torch.ones(1, tokens), torch.ones(1, t5)
        return ([[context, extra]],)


def flux_grid(steps, tokens):
    mu = 0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256)
    times = [1 - i / steps for i in range(steps)]
    return [math.exp(mu) / (math.exp(mu) + 1 / t - 1) for t in times] + [0.0]


def sd_grid(steps, sigmas, name):
    if name == "polynomial":
        first, last = sigmas[-1] ** (1 / 7), sigmas[0] ** (1 / 7)
        return [(first + i / steps * (last - first)) ** 7 for i in range(steps + 1)]
    log_alphas = [-0.5 * math.log1p(s * s) for s in sigmas]
    grid = []
    for i in range(steps + 1):
        n = (1 + i / steps * (1e-3 - 1)) * 1000 - 1
        low = min(int(n), 998)
        log_alpha = log_alphas[low] + (n - low) * (log_alphas[low + 1] - log_alphas[low])
        grid.append(math.sqrt(math.expm1(-2 * log_alpha)))
    return grid


def remaining(row, start):
    return [sum(row[: start + 1]), *row[start + 1 :]]


def sample_published_dyweight(
    model, x, sigmas, extra_args=None, callback=None, disable=None, table="", start=0, stop=None
):
    figures = json.loads((FIGURES / "dyweight.json").read_text())["tables"][table]
    steps = len(figures["weights"])
    if figures["dataset"] == "flux1-dev":
        grid = flux_grid(steps, math.ceil(x.shape[-1] / 2) * math.ceil(x.shape[-2] / 2))
    else:
        own = model.inner_model.inner_model.model_sampling.sigmas.double().tolist()
        grid = sd_grid(steps, own, figures["schedule"])
    time, gradients = grid[0], []
    for i, row in enumerate(figures["weights"][:stop]):
        if i < start:
            time += sum(row) * (grid[i + 1] - time)
            continue
        called = figures["t_scale"][i] * time
        denoised = model(x, called * x.new_ones([x.shape[0]]), **extra_args)
        callback({"x": x, "i": i - start, "sigma": called, "sigma_hat": called, "denoised": denoised})
        gradients.append((x - denoised) / (called if figures["dataset"] == "flux1-dev" else time))
        dt = grid[i + 1] - time
        x = x + dt * sum(w * g for w, g in zip(remaining(row, start), gradients, strict=False))
        time = time + sum(row) * dt
    return x


def sample_published_ds(
    model, x, sigmas, extra_args=None, callback=None, disable=None, table="", steps=5, start=0, stop=None
):
    figures = json.loads((FIGURES / "ds_solver.json").read_text())["tables"][table][f"step{steps}"]
    total, entries = sum(figures["timedeltas"]), []
    deltas = [dt / total for dt in figures["timedeltas"]]
    time = 1.0 if table.startswith("flow") else 0.999
    sampling = model.inner_model.inner_model.model_sampling
    for i, (dt, row) in list(enumerate(zip(deltas, figures["coeffs"], strict=True)))[:stop]:
        row = remaining([*row[:i], 1 - sum(row[:i])], start)
        later = time - dt if table.startswith("flow") else max(time - dt, 1e-3)
        if i < start:
            time = later
            continue
        if table.startswith("flow"):
            sigma, ratio = time, None
        else:
            grid = torch.tensor([time, later], dtype=torch.float64)
            sigma, sigma_next = vp_sigma(sampling.sigmas.double().cpu(), 1000 * grid).tolist()
            ratio = sigma_next / sigma
        denoised = model(x, sigma * x.new_ones([x.shape[0]]), **extra_args)
        callback({"x": x, "i": i - start, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        entries.append((x - denoised) / sigma if ratio is None else denoised)
        blend = sum(c * e for c, e in zip(row, entries, strict=True))
        x = x - dt * blend if ratio is None else ratio * x + (1 - ratio) * blend
        time = later
    return x


def vp_sigma(sigmas, index):
    log_alpha = -0.5 * torch.log1p(sigmas**2)
    low = index.floor().long().clamp(max=len(sigmas) - 2)
    return torch.expm1(-2 * (log_alpha[low] + (index - low) * (log_alpha[low + 1] - log_alpha[low]))).sqrt()


class TinyPublished:
    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "make"
    CATEGORY = "tiny"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"table": ("STRING", {"default": ""}), "steps": ("INT", {"default": 5, "min": 1})},
            "optional": {"start": ("INT", {"default": 0}), "stop": ("INT", {"default": 100})},
        }

    def make(self, table, steps, start=0, stop=100):
        part = {"table": table, "start": start, "stop": stop}
        if table.startswith(("flow-", "vp-")):
            return (comfy.samplers.KSAMPLER(sample_published_ds, {**part, "steps": steps}),)
        return (comfy.samplers.KSAMPLER(sample_published_dyweight, part),)


class TinySigmas:
    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "make"
    CATEGORY = "tiny"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"sigmas": ("STRING", {"default": "1, 0"})}}

    def make(self, sigmas):
        return (torch.tensor([float(sigma) for sigma in sigmas.split(",")]),)


NODE_CLASS_MAPPINGS = {
    "TinyConditioning": TinyConditioning,
    "TinyPublished": TinyPublished,
    "TinySigmas": TinySigmas,
    **others.NODE_CLASS_MAPPINGS,
    **patches.NODE_CLASS_MAPPINGS,
    **picture.NODE_CLASS_MAPPINGS,
}
