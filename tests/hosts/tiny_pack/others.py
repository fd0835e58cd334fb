"""What other packs do: reload k-diffusion's module (RES4LYF), bring their own lists, batch prompts, schedule CFG
(KJNodes), wrap a sampler's model in a plain function (Detail Daemon).
"""

import importlib
import json
import sys

import comfy.samplers
import torch
from comfy.k_diffusion import sampling

importlib.reload(sampling)


def register():
    names = [name for name in sys.modules if name.endswith(".nodes.stock")]
    assert names, "Learned Solvers is not loaded"
    for name in names:
        sys.modules[name].register()


def lists():
    host = comfy.samplers
    return [list(host.KSampler.SAMPLERS), list(host.SAMPLER_NAMES), list(host.KSampler.SCHEDULERS)]


class ReloadPack:
    """Reloads, registers twice, and registers with two separate lists; returns the lists."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "run"
    CATEGORY = "tiny"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"again": ("INT", {"default": 0})}}

    def run(self, again):
        seen = {"before": lists()}
        importlib.reload(sampling)
        register()
        register()
        seen["after"] = lists()
        one, two = comfy.samplers.KSampler.SAMPLERS, comfy.samplers.SAMPLER_NAMES
        seen["same"] = one is two
        comfy.samplers.KSampler.SAMPLERS, comfy.samplers.SAMPLER_NAMES = ["euler", "mine"], ["euler", "heun"]
        register()
        seen["split"] = lists()[:2]
        comfy.samplers.KSampler.SAMPLERS, comfy.samplers.SAMPLER_NAMES = one, two
        return (json.dumps(seen),)


class PromptBatch:
    """Two prompts as one batched conditioning."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "run"
    CATEGORY = "tiny"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"one": ("CONDITIONING",), "two": ("CONDITIONING",)}}

    def run(self, one, two):
        extra = {key: torch.cat([value, two[0][1][key]]) for key, value in one[0][1].items()}
        return ([[torch.cat([one[0][0], two[0][0]]), extra]],)


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


class TinyScheduledGuider:
    """A CFG for the first step, another one for the later steps."""

    RETURN_TYPES = ("GUIDER",)
    FUNCTION = "run"
    CATEGORY = "tiny"

    @classmethod
    def INPUT_TYPES(cls):
        wires = {"model": ("MODEL",), "positive": ("CONDITIONING",), "negative": ("CONDITIONING",)}
        return {"required": {**wires, "first": ("FLOAT", {}), "later": ("FLOAT", {})}}

    def run(self, model, positive, negative, first, later):
        guider = ScheduledGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg([first, later], 0.0, 1.0)
        return (guider,)


class TinyWrapped:
    """A sampler whose model is a plain function; of the host's it has `inner_model` alone."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "run"
    CATEGORY = "tiny"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"sampler": ("SAMPLER",)}}

    def run(self, sampler):
        def sample(model, x, sigmas, **options):
            def wrapper(x, sigma, **extra_args):
                return model(x, sigma, **extra_args)

            wrapper.inner_model = model.inner_model
            return sampler.sampler_function(wrapper, x, sigmas, **options, **sampler.extra_options)

        return (comfy.samplers.KSAMPLER(sample),)


NODE_CLASS_MAPPINGS = {
    "ReloadPack": ReloadPack,
    "PromptBatch": PromptBatch,
    "TinyScheduledGuider": TinyScheduledGuider,
    "TinyWrapped": TinyWrapped,
}
