"""Prints what ComfyUI's sources say about its architectures, as JSON; a model cannot be made without its weights.

    <ComfyUI's python> architecture_facts.py COMFYUI_PATH

"encoders" are the members of CLIPType; "types" those on which a text encoder's tokenizer is loaded, by tokenizer.
"""

import inspect
import json
import math
import re
from functools import cache

import comfy_on_cpu  # noqa: F401

# isort: split

import comfy.sd
from comfy import model_base, supported_models

RATIOS = ("spacial_downscale_ratio", "temporal_downscale_ratio")
BRANCH = r"^( *)(?:el)?if (.*):.*(?=\n(?:\1    .*\n|\n)*?\1    clip_target\.tokenizer = (?:\w+\.)*(\w+))"


def method(config, name):
    """The source of a method of an architecture; empty if it is the common base's."""
    function = getattr(config, name)
    return inspect.getsource(function) if function.__module__ == supported_models.__name__ else ""


@cache
def methods(cls):
    """The source of a class's methods; that of the class itself takes inspect a hundred times as long."""
    return "".join(map(inspect.getsource, filter(inspect.isfunction, vars(cls).values())))


def default_guidance(model):
    """The guidance that a model passes to its network if the conditioning has none."""
    for cls in (cls for cls in model.__mro__ if cls.__module__ == model_base.__name__):
        source = methods(cls)
        if found := re.search(r"out\.pop\(['\"]guidance|kwargs\.get\(['\"]guidance['\"], ([\d.]+)\)", source):
            return found[1] and float(found[1])
    return None


def facts(config):
    making = method(config, "get_model")
    model = getattr(model_base, (re.findall(r"model_base\.(\w+)\(", making) or ["BaseModel"])[-1])
    kinds = next(filter(None, (re.findall(r"ModelType\.(\w+)", s) for s in (making, method(config, "model_type")))), [])
    kind = kinds[-1] if kinds else inspect.signature(model.__init__).parameters["model_type"].default.name
    shift = config.sampling_settings.get("shift")
    if kind == "FLUX":  # its ModelSamplingFlux keeps the logarithm
        shift = math.exp(1.15 if shift is None else shift)
    elif kind.startswith("FLOW") and kind != "FLOW_COSMOS":
        shift = shift or 1.0
    else:
        shift = None
    return {
        "lineage": [cls.__name__ for cls in config.__mro__],
        "guidance": default_guidance(model),
        "shift": shift,
        "tokenizers": re.findall(r"ClipTarget\(\s*(?:\w+\.)*(\w+)", method(config, "clip_target")),
        "latents": config.latent_format.__name__,
        "ratios": {name: getattr(config.latent_format, name) for name in RATIOS if hasattr(config.latent_format, name)},
    }


types = {}
for _, test, tokenizer in re.findall(BRANCH, inspect.getsource(comfy.sd.load_text_encoder_state_dicts), re.MULTILINE):
    types.setdefault(tokenizer, []).extend(re.findall(r"CLIPType\.(\w+)", test))
architectures = [facts(config) for config in supported_models.models]
print(json.dumps({"encoders": list(comfy.sd.CLIPType.__members__), "types": types, "architectures": architectures}))
