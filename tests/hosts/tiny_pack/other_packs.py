"""What other packs do: reload k-diffusion's module (RES4LYF), bring their own lists, batch prompts, schedule CFG
(KJNodes), wrap a sampler's model in a plain function (Detail Daemon).
"""

import contextlib
import copy
import importlib
import io
import json
import pickle
import sys

import comfy.sample
import comfy.samplers
import torch
from comfy.k_diffusion import sampling

from .registry import node

importlib.reload(sampling)


def register():
    modules = [module for name, module in sys.modules.items() if name.endswith(".nodes.stock")]
    assert modules, "Learned Solvers is not loaded"
    for module in modules:
        module.register()


@node("TinyFingerprint", "STRING", model="MODEL", after="LATENT")
def fingerprint(model, after=None):
    """The pack's fingerprint of a model's weights, perhaps after a latent was sampled."""
    modules = [module for name, module in sys.modules.items() if name.endswith(".samplers.comfy_models")]
    return modules[0].fingerprint(model.model)


def lists():
    host = comfy.samplers
    return [list(host.KSampler.SAMPLERS), list(host.SAMPLER_NAMES), list(host.KSampler.SCHEDULERS)]


@node("ReloadPack", "STRING", again="INT")
def reload(again):
    """Reloads, registers twice, and registers with two separate lists; returns the lists as JSON."""
    seen = {"before": lists()}
    importlib.reload(sampling)
    register()
    register()
    seen["after"] = lists()
    host, one, two = comfy.samplers, comfy.samplers.KSampler.SAMPLERS, comfy.samplers.SAMPLER_NAMES
    seen["same"] = one is two
    host.KSampler.SAMPLERS, host.SAMPLER_NAMES = ["euler", "mine"], ["euler", "heun"]
    register()
    seen["split"] = lists()[:2]
    host.KSampler.SAMPLERS, host.SAMPLER_NAMES = one, two
    return json.dumps(seen)


@node("PromptBatch", "CONDITIONING", one="CONDITIONING", two="CONDITIONING")
def prompt_batch(one, two):
    """Two prompts as one batched conditioning."""
    extra = {key: torch.cat([value, two[0][1][key]]) for key, value in one[0][1].items()}
    return [[torch.cat([one[0][0], two[0][0]]), extra]]


class ScheduledGuider(comfy.samplers.CFGGuider):
    def set_cfg(self, cfg, start_percent, end_percent):
        self.cfg, self.range = cfg, (start_percent, end_percent)

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 - the host's
        sigmas = model_options["transformer_options"]["sample_sigmas"]
        cfg, self.cfg = self.cfg, self.cfg[0 if timestep[0] >= sigmas[0] else -1]
        try:
            return super().predict_noise(x, timestep, model_options, seed)
        finally:
            self.cfg = cfg


CONDITIONING = {"positive": "CONDITIONING", "negative": "CONDITIONING"}


@node("TinyScheduledGuider", "GUIDER", model="MODEL", **CONDITIONING, first="FLOAT", later="FLOAT")
def scheduled_guider(model, positive, negative, first, later):
    """A CFG for the first step, another one for the later steps."""
    guider = ScheduledGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg([first, later], 0.0, 1.0)
    return guider


@node("TinyWrapped", "SAMPLER", sampler="SAMPLER", hidden="INT")
def wrapped(sampler, hidden=0):
    """A sampler whose model is a plain function with the host's `inner_model` as its only attribute.

    `hidden` 1: without that, too; 2: the host's model is one object further inside.
    """

    def sample(model, x, sigmas, **options):
        def wrapper(x, sigma, **extra_args):
            return model(x, sigma, **extra_args)

        if hidden != 1:
            wrapper.inner_model = model if hidden else model.inner_model
        return sampler.sampler_function(wrapper, x, sigmas, **options, **sampler.extra_options)

    return comfy.samplers.KSAMPLER(sample)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda sampler: pickle.loads(pickle.dumps(sampler))}


@node("TinyCopied", "SAMPLER", sampler="SAMPLER", how=[*COPIES, "torch"])
def copied(sampler, how):
    """A copy of a sampler."""
    if how != "torch":
        return COPIES[how](sampler)
    torch.save(sampler, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=False)


@node("TinyStepByStep", "LATENT", model="MODEL", **CONDITIONING, latent="LATENT", sampler="SAMPLER", steps="INT")
def step_by_step(model, positive, negative, latent, sampler, steps):
    """A latent sampled in one run of the host per step; a step that raises a ValueError is skipped (Impact)."""
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
    x = latent["samples"]
    noise = comfy.sample.prepare_noise(x, 1)
    for i in range(steps):
        step = sampler, sigmas[i : i + 2], positive, negative, x
        with contextlib.suppress(ValueError):
            x = comfy.sample.sample_custom(model, noise if i == 0 else torch.zeros_like(x), 2.0, *step)
    return {"samples": x}


def sample_broken(model, x, sigmas, **_):
    raise RuntimeError("this sampler does not run on this machine")


sampling.sample_broken = sample_broken
comfy.samplers.SAMPLER_NAMES.append("broken")
