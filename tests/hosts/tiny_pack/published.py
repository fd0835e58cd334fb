"""Samplers with both papers' formulas written out, without Learned Solvers.

Of the steps they run those from `start` to before `stop`. The weight of history that a row has lost goes to the oldest
entry that remains.
"""

import json
import math
import os
from pathlib import Path

import comfy.samplers
import torch

from .registry import node

FIGURES = Path(os.environ.get("LEARNED_SOLVERS_FIGURES", "."))


def flux_grid(steps, tokens):
    mu = 0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256)
    times = [1 - i / steps for i in range(steps)]
    return [math.exp(mu) / (math.exp(mu) + 1 / t - 1) for t in times] + [0.0]


def vp_sigma(sigmas, index):
    log_alpha = -0.5 * torch.log1p(sigmas**2)
    low = index.floor().long().clamp(max=len(sigmas) - 2)
    return torch.expm1(-2 * (log_alpha[low] + (index - low) * (log_alpha[low + 1] - log_alpha[low]))).sqrt()


def sd_grid(steps, sigmas, name):
    part = torch.arange(steps + 1, dtype=torch.float64) / steps
    if name == "polynomial":
        first, last = sigmas[-1] ** (1 / 7), sigmas[0] ** (1 / 7)
        return ((first + part * (last - first)) ** 7).tolist()
    return vp_sigma(sigmas, (1 + part * (1e-3 - 1)) * 1000 - 1).tolist()


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
        grid = sd_grid(steps, model.inner_model.inner_model.model_sampling.sigmas.double(), figures["schedule"])
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
    is_flow, total, entries = table.startswith("flow"), sum(figures["timedeltas"]), []
    time = 1.0 if is_flow else 0.999
    own_sigmas = None if is_flow else model.inner_model.inner_model.model_sampling.sigmas.double()
    for i, (delta, row) in enumerate(zip(figures["timedeltas"][:stop], figures["coeffs"][:stop], strict=True)):
        dt, row = delta / total, remaining([*row[:i], 1 - sum(row[:i])], start)
        sigma, later = time, time - dt if is_flow else max(time - dt, 1e-3)
        if i >= start:
            if not is_flow:
                times = torch.tensor([time, later], dtype=torch.float64)
                sigma, sigma_next = vp_sigma(own_sigmas, 1000 * times).tolist()
            denoised = model(x, sigma * x.new_ones([x.shape[0]]), **extra_args)
            callback({"x": x, "i": i - start, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
            entries.append((x - denoised) / sigma if is_flow else denoised)
            blend = sum(c * e for c, e in zip(row, entries, strict=True))
            x = x - dt * blend if is_flow else sigma_next / sigma * x + (1 - sigma_next / sigma) * blend
        time = later
    return x


@node("TinyPublished", "SAMPLER", table="STRING", steps="INT", start="INT", stop="INT")
def published_sampler(table, steps, start=0, stop=100):
    part = {"table": table, "start": start, "stop": stop}
    if table.startswith(("flow-", "vp-")):
        return comfy.samplers.KSAMPLER(sample_published_ds, {**part, "steps": steps})
    return comfy.samplers.KSAMPLER(sample_published_dyweight, part)
