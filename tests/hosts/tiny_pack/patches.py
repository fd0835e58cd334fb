"""Nodes that patch a model, or say what it was called with."""

import json
import uuid

import comfy.conds
import comfy.model_base
import comfy.patcher_extension
import torch

SEEN = {}


class _Patch:
    """A node from a MODEL to a MODEL."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "tiny"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}


class TinySampling(_Patch):
    """The model with the model_sampling of another prediction type, by its name in comfy.model_base.ModelType."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "prediction": ([p.name for p in comfy.model_base.ModelType],)}}

    def patch(self, model, prediction):
        model = model.clone()
        sampling = comfy.model_base.model_sampling(model.model.model_config, comfy.model_base.ModelType[prediction])
        model.add_object_patch("model_sampling", sampling)
        return (model,)


class TinyContinuousTime(_Patch):
    """An eps model that hands its network the interpolated index of a noise level, not the nearest one."""

    def patch(self, model):
        model = model.clone()
        sampling = comfy.model_base.model_sampling(model.model.model_config, comfy.model_base.ModelType.EPS)
        log_sigmas = sampling.log_sigmas.double()

        def timestep(self, sigma):
            wanted = sigma.double().log().clamp(log_sigmas[0], log_sigmas[-1])
            high = torch.searchsorted(log_sigmas, wanted.contiguous()).clamp(1, len(log_sigmas) - 1)
            low, span = log_sigmas[high - 1], log_sigmas[high] - log_sigmas[high - 1]
            return (high - 1 + (wanted - low) / span).to(sigma.dtype)

        # The class was made by this call alone; its method keeps the name by which the kind of model is told.
        timestep.__qualname__ = type(sampling).timestep.__qualname__
        type(sampling).timestep = timestep
        model.add_object_patch("model_sampling", sampling)
        return (model,)


class TinyWatch(_Patch):
    """The model, noting the sigma of every call and the timestep that its network sees."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "name": ("STRING", {"default": ""})}}

    def patch(self, model, name):
        seen = SEEN[name] = {"sigma": [], "timestep": [], "batch": []}
        kinds = comfy.patcher_extension.WrappersMP

        def call(executor, x, t, *args, **kwargs):
            seen["sigma"].append(float(t[0]))
            seen["batch"].append(int(x.shape[0]))
            return executor(x, t, *args, **kwargs)

        def network(executor, x, timesteps, *args, **kwargs):
            seen["timestep"].append(float(timesteps[0]))
            return executor(x, timesteps, *args, **kwargs)

        model = model.clone()
        model.add_wrapper_with_key(kinds.APPLY_MODEL, "tiny", call)
        model.add_wrapper_with_key(kinds.DIFFUSION_MODEL, "tiny", network)
        return (model,)


class TinyOffload(_Patch):
    """The model as a card that is too small for it holds it: no weight stays loaded, patches are added in each call.

    The host itself offloads on a GPU only; --lowvram and --novram do nothing on the CPU.
    """

    def patch(self, model):
        model = model.clone()
        load = model.load

        def load_nothing(device_to=None, lowvram_model_memory=0, force_patch_weights=False, full_load=False):
            load(device_to, lowvram_model_memory=1)

        model.load = load_nothing
        model.patches_uuid = uuid.uuid4()  # other patches than those of a model that is loaded: it is loaded anew
        return (model,)


class TinyConstant(_Patch):
    """The model with three numbers that its network is told as they are, whatever the batch."""

    def patch(self, model):
        conds, numbers = model.model.extra_conds, torch.arange(3)

        def call(executor, *args, tiny_constant, **kwargs):
            assert tiny_constant.equal(numbers), f"the network was told {tiny_constant.tolist()}"
            return executor(*args, **kwargs)

        model = model.clone()
        constant = comfy.conds.CONDConstant(numbers)
        model.add_object_patch("extra_conds", lambda **given: {**conds(**given), "tiny_constant": constant})
        model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "tiny", call)
        return (model,)


class TinySeen(_Patch):
    """What a TinyWatch noted until a latent was sampled, as JSON."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "tell"
    CATEGORY = "tiny"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"latent": ("LATENT",), "name": ("STRING", {"default": ""})}}

    def tell(self, latent, name):
        return (json.dumps(SEEN[name]),)


class TinyAudioLatent(_Patch):
    """An empty LTX audio latent [B, 8, T, 16], to go beside a video's."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "make"
    CATEGORY = "tiny"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"length": ("INT", {"default": 6}), "batch_size": ("INT", {"default": 1})}}

    def make(self, length, batch_size):
        return ({"samples": torch.zeros(batch_size, 8, length, 16), "type": "audio"},)


NODE_CLASS_MAPPINGS = {
    "TinySampling": TinySampling,
    "TinyContinuousTime": TinyContinuousTime,
    "TinyWatch": TinyWatch,
    "TinyConstant": TinyConstant,
    "TinyOffload": TinyOffload,
    "TinySeen": TinySeen,
    "TinyAudioLatent": TinyAudioLatent,
}
