"""What other packs do: reload k-diffusion's module, as RES4LYF does, bring lists of their own, batch prompts."""

import importlib
import json
import sys

import comfy.samplers
import torch
from comfy.k_diffusion import sampling

importlib.reload(sampling)


def register():
    names = [name for name in sys.modules if name.endswith(".nodes.registration")]
    assert names, "Learned Solvers is not loaded"
    for name in names:
        sys.modules[name].register()


def lists():
    host = comfy.samplers
    return [list(host.KSampler.SAMPLERS), list(host.SAMPLER_NAMES), list(host.KSampler.SCHEDULERS)]


class ReloadPack:
    """Reloads, registers twice, and registers with two separate lists; tells the lists."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "run"
    CATEGORY = "tiny"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"again": ("INT", {"default": 0})}}

    def run(self, again):
        told = {"before": lists()}
        importlib.reload(sampling)
        register()
        register()
        told["after"] = lists()
        one, two = comfy.samplers.KSampler.SAMPLERS, comfy.samplers.SAMPLER_NAMES
        told["same"] = one is two
        comfy.samplers.KSampler.SAMPLERS, comfy.samplers.SAMPLER_NAMES = ["euler", "mine"], ["euler", "heun"]
        register()
        told["split"] = lists()[:2]
        comfy.samplers.KSampler.SAMPLERS, comfy.samplers.SAMPLER_NAMES = one, two
        return (json.dumps(told),)


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


NODE_CLASS_MAPPINGS = {"ReloadPack": ReloadPack, "PromptBatch": PromptBatch}
