"""Nodes that patch a model or record its calls."""

import copy
import json
import uuid
from pathlib import Path

import comfy.conds
import comfy.model_base
import comfy.model_management
import comfy.patcher_extension
import comfy.supported_models
import torch

from .registry import node

CALLS = {}


@node("TinySampling", "MODEL", model="MODEL", prediction=[p.name for p in comfy.model_base.ModelType])
def with_sampling(model, prediction):
    """The model with the model_sampling of another prediction type."""
    model = model.clone()
    sampling = comfy.model_base.model_sampling(model.model.model_config, comfy.model_base.ModelType[prediction])
    model.add_object_patch("model_sampling", sampling)
    return model


@node("TinyWatch", "MODEL", model="MODEL", name="STRING")
def watch(model, name):
    """The model, recording every call: sigma, its places in the host's `sample_sigmas`, and the network's timestep.

    "absent" counts the calls before which the host loaded another model.
    """
    calls = CALLS[name] = {"sigma": [], "places": [], "timestep": [], "absent": 0}
    kinds = comfy.patcher_extension.WrappersMP

    def apply_model(executor, x, t, concat, context, control, transformer_options, **kwargs):
        calls["sigma"].append(float(t[0]))
        calls["absent"] += comfy.model_management.current_loaded_models[0].model.model is not executor.class_obj
        calls["places"].append((transformer_options["sample_sigmas"] == t[0]).nonzero().flatten().tolist())
        return executor(x, t, concat, context, control, transformer_options, **kwargs)

    def network(executor, x, timesteps, *args, **kwargs):
        calls["timestep"].append(float(timesteps[0]))
        return executor(x, timesteps, *args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(kinds.APPLY_MODEL, "tiny", apply_model)
    model.add_wrapper_with_key(kinds.DIFFUSION_MODEL, "tiny", network)
    return model


@node("TinySeen", "STRING", latent="LATENT", name="STRING")
def seen(latent, name):
    """What a TinyWatch recorded by the time a latent was sampled, as JSON."""
    return json.dumps(CALLS[name])


@node("TinyOffload", "MODEL", model="MODEL")
def offloaded(model):
    """The model as on a GPU too small for it: no weight stays loaded, patches are added in each call.

    ComfyUI offloads on a GPU only; --lowvram and --novram do nothing on the CPU.
    """
    model = model.clone()
    load = model.load

    def load_nothing(device_to=None, lowvram_model_memory=0, force_patch_weights=False, full_load=False):
        load(device_to, lowvram_model_memory=1)

    model.load = load_nothing
    model.patches_uuid = uuid.uuid4()  # differs from the patches of a loaded model, so that this one is loaded again
    return model


@node("TinyConstant", "MODEL", model="MODEL")
def with_constant(model):
    """The model with three numbers that its network must receive unchanged for any batch."""
    conds, numbers = model.model.extra_conds, torch.arange(3)

    def call(executor, *args, tiny_constant, **kwargs):
        assert tiny_constant.equal(numbers), f"the network received {tiny_constant.tolist()}"
        return executor(*args, **kwargs)

    model = model.clone()
    constant = comfy.conds.CONDConstant(numbers)
    model.add_object_patch("extra_conds", lambda **values: {**conds(**values), "tiny_constant": constant})
    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "tiny", call)
    return model


@node("TinyLate", ("MODEL", "VAE"), model="MODEL", file="STRING", fails=["sampling", "decoding"])
def late(model, file, fails):
    """A model and a VAE, one of which fails once a file exists; the model also fails after a picture was decoded."""
    decoded = []

    class Decoder:
        def decode(self, latents):
            decoded.append(Path(file).exists())
            raise torch.cuda.OutOfMemoryError(f"a late failure, with the file in place: {decoded}")

    def call(executor, *args, **kwargs):
        assert not decoded and not (fails == "sampling" and Path(file).exists()), "a late failure"
        return executor(*args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "tiny", call)
    return model, Decoder()


def with_change(model, change):
    """The model with its denoised state changed by `change(output, state)`; `state` is kept between calls."""
    state = {}

    def call(executor, *args, **kwargs):
        return change(executor(*args, **kwargs), state)

    model = model.clone()
    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "tiny", call)
    return model


@node("TinyMemory", "MODEL", model="MODEL")
def with_memory(model):
    """The model with a tenth of the call before in each call, as caches that no one can name."""

    def change(output, state):
        last = state.get("last")
        state["last"] = output
        return output if last is None or last.shape != output.shape else 0.9 * output + 0.1 * last

    return with_change(model, change)


@node("TinyRandom", "MODEL", model="MODEL")
def with_random(model):
    """The model with noise of 1 % in each call, as token merging has."""
    return with_change(model, lambda output, state: output * (1 + 0.01 * torch.randn_like(output)))


@node("TinyHungry", "MODEL", model="MODEL", most="INT", name="STRING")
def hungry(model, most, name):
    """The model out of memory for more than `most` rows, as only the host recognises it; records rows and "freed"."""
    calls, management = CALLS.setdefault(name, []), comfy.model_management
    free = management.soft_empty_cache

    def freed(*args, **kwargs):
        calls.append("freed")
        return free(*args, **kwargs)

    def apply_model(executor, x, *args, **kwargs):
        calls.append(len(x))
        if len(x) <= most:
            return executor(x, *args, **kwargs)
        error = getattr(management, "ACCELERATOR_ERROR", management.OOM_EXCEPTION)("the device reports an error")
        error.error_code = 2
        raise error

    management.soft_empty_cache = freed
    model = model.clone()
    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "tiny", apply_model)
    return model


@node("TinyFrames", "MODEL", model="MODEL", mark=["SVD", "AnimateDiff"])
def with_frames(model, mark):
    """The model with what shows that its batch is a video: SVD's configuration, or the mark of AnimateDiff-Evolved."""
    model = model.clone()
    if mark == "SVD":
        model.model = copy.copy(model.model)
        model.model.model_config = comfy.supported_models.SVD_img2vid(comfy.supported_models.SVD_img2vid.unet_config)
    else:
        model.set_additional_models("ADE", [model.clone()])
    return model


@node("TinyDecoder", "VAE", name="STRING")
def decoder(name):
    """A VAE that records the shapes that it decodes as the calls of that name."""
    shapes = CALLS[name] = []

    class Decoder:
        def decode(self, latents):
            shapes.append([*latents.shape])
            batch, _, frames, height, width = latents.shape
            return torch.rand(batch, 1 + 4 * (frames - 1), 8 * height, 8 * width, 3)

    return Decoder()


@node("TinyFirstFrame", "LATENT", latent="LATENT")
def first_frame(latent):
    """The first frame of a latent video."""
    return {"samples": latent["samples"][:, :, :1]}


class ApplyFBCacheOnModel:
    @staticmethod
    def patch(model):
        def model_unet_function_wrapper(function, arguments):
            return function(arguments["input"], arguments["timestep"], **arguments["c"])

        model.set_model_unet_function_wrapper(model_unet_function_wrapper)


@node("TinyCache", "MODEL", model="MODEL", pack=["ComfyUI-TeaCache", "Comfy-WaveSpeed", "unknown"])
def with_cache(model, pack):
    """The model with what a pack's cache leaves on it, and without the cache."""
    model = model.clone()
    if pack == "Comfy-WaveSpeed":
        ApplyFBCacheOnModel.patch(model)
    else:
        marks = {"unknown": {"step_cache": {}}, "ComfyUI-TeaCache": {"rel_l1_thresh": 0.4, "cache_device": "cpu"}}
        model.model_options["transformer_options"] |= marks[pack]
    return model


@node("TinyMeanFlow", "MODEL", model="MODEL")
def with_mean_flow(model):
    """The model with the mark of networks that also take the next noise level, and without their use of it."""
    model = model.clone()
    base, network = copy.copy(model.model), copy.copy(model.model.diffusion_model)
    network.time_r_in = "tiny"
    vars(base)["diffusion_model"] = network  # not in the modules, which both models share
    model.model = base
    return model
