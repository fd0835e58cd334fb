"""An extension that shows the tests the models' calls, the decoded latents and the owners of packages."""

import sys
from copy import copy

import tiny_engine
from fastapi import Response
from modules import processing, script_callbacks, scripts, sd_samplers, shared
from safetensors.torch import save

JOB = {}
# Forge Neo still has the code for latent upscalers, but none.
shared.latent_upscale_modes.setdefault("Latent", {"mode": "bilinear", "antialias": False})


class Probe(scripts.Script):
    def title(self):
        return "Probe"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def postprocess(self, p, processed):
        JOB.update(comments=processed.comments, steps=p.steps, sampling_steps=shared.state.sampling_steps)


class Detailer(scripts.Script):
    """Samples each picture of a prompt with "detail" again, in a separate job without scripts, with 7 steps."""

    def title(self):
        return "Detailer"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def postprocess_image(self, p, pp, *args):
        if "detail" not in p.prompt:
            return
        fields = {name: getattr(p, name) for name in ("sampler_name", "cfg_scale", "width", "height")}
        fields |= {"do_not_save_samples": True, "do_not_save_grid": True}
        inner = processing.StableDiffusionProcessingImg2Img(
            init_images=[pp.image], resize_mode=0, denoising_strength=0.5, prompt="a cat", seed=1, steps=7, **fields
        )
        inner.scripts = copy(p.scripts)
        inner.scripts.alwayson_scripts = []
        inner.script_args = p.script_args
        try:
            processing.process_images(inner)
            JOB["inner"] = {name: str(value) for name, value in inner.extra_generation_params.items()}
        except ValueError as error:
            JOB["inner"] = {"refused": str(error)}


def reset():
    JOB.clear()
    tiny_engine.CALLS.clear()
    tiny_engine.DECODED.clear()


def seen():
    packages = ("samplers", "training", "nodes", "webui_extension")
    owners = {name: getattr(sys.modules.get(name), "OWNER", None) for name in packages}
    registered = [[sampler.name, id(sampler)] for sampler in sd_samplers.all_samplers]
    return {**JOB, "calls": tiny_engine.CALLS, "registered": registered, "owners": owners}


def decoded():
    return Response(save({str(i): x.contiguous() for i, x in enumerate(tiny_engine.DECODED)}))


def register_as_in_forge_classic():
    """Registers the extension again in a host that has no get_sampler_and_scheduler."""
    find = sd_samplers.get_sampler_and_scheduler
    del sd_samplers.get_sampler_and_scheduler
    try:
        sys.modules["learned_solvers.webui_extension"].register()
    finally:
        sd_samplers.get_sampler_and_scheduler = find


def add_routes(demo, app):
    app.add_api_route("/probe", seen)
    app.add_api_route("/probe/decoded", decoded)
    app.add_api_route("/probe/reset", reset, methods=["POST"])
    app.add_api_route("/probe/classic", register_as_in_forge_classic, methods=["POST"])
    app.add_api_route("/probe/reload", shared.state.request_restart, methods=["POST"])


script_callbacks.on_app_started(add_routes)
