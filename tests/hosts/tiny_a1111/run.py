"""Runs jobs in AUTOMATIC1111's own modules: python run.py JOBS.json OUT [WebUI options], in a checkout.

Script loader, processing, samplers, guidance, prompt schedule, infotext and UI are the host's. Replaced: the network
with text encoder and VAE (by a closed form), and the packages that only real networks need (by empty ones).
"""

import json
import os
import sys
import types
from contextlib import nullcontext
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest.mock import MagicMock

import torch

ABSENT = {"ldm", "sgm", "open_clip", "clip", "pytorch_lightning", "kornia", "cleanfid", "resize_right", "jsonmerge"}
ABSENT |= {"dctorch", "facexlib", "wandb"}
MEAN, VARIANCE, GUIDES = 0.3, 0.7**2, 5.0


class Anything(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)


class Absent:
    """An import finder: in absent packages, every capitalised name is a class, every other a mock."""

    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in ABSENT else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        def attribute(name):
            if name.startswith("__"):
                raise AttributeError(name)
            return Anything(name, (torch.nn.Module,), {}) if name[0].isupper() else MagicMock(name=name)

        module.__getattr__ = attribute


class Model(torch.nn.Module):
    """A latent diffusion model of Gaussian data; k-diffusion's wrapper calls it at fractional timesteps."""

    def __init__(self, info, v):
        super().__init__()
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.register_buffer("alphas_cumprod", torch.cumprod(1 - betas, 0).float())
        self.parameterization = "v" if v else "eps"
        self.model = types.SimpleNamespace(conditioning_key="crossattn")
        self.first_stage_model = torch.nn.Module()
        self.first_stage_model.dtype = torch.float32
        self.cond_stage_key, self.sd_model_hash, self.lowvram = "txt", "0", False
        self.is_sd1, self.is_sd2, self.is_sdxl, self.is_sd3, self.is_sdxl_inpaint = not v, v, False, False, False
        self.sd_checkpoint_info, self.sd_model_checkpoint = info, info.filename
        self.calls, self.decoded = [], []

    def get_learned_conditioning(self, prompts):
        return torch.stack([torch.full((77, 8), len(prompt) / 100) for prompt in prompts])

    def apply_model(self, xc, t, cond):
        guide = cond["c_crossattn"][0].flatten(1).mean(1)
        self.calls.append({"t": t.tolist(), "guide": guide.tolist()})
        logs = (((1 - self.alphas_cumprod) / self.alphas_cumprod) ** 0.5).log()
        low = t.floor().long().clamp(max=998)
        sigma = torch.lerp(logs[low], logs[low + 1], t - low).exp().view(-1, 1, 1, 1)
        mean, x = MEAN + GUIDES * guide.view(-1, 1, 1, 1), xc * (sigma**2 + 1).sqrt()
        x0 = (VARIANCE * x + sigma**2 * mean) / (VARIANCE + sigma**2)
        if self.parameterization == "v":
            return (x / (sigma**2 + 1) - x0) * (sigma**2 + 1).sqrt() / sigma
        return (x - x0) / sigma

    def decode_first_stage(self, x):
        self.decoded.append(x.clone())
        return x[:, :3].clamp(-1, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)

    def encode_first_stage(self, x):
        return torch.nn.functional.avg_pool2d(x, 8).repeat(1, 2, 1, 1)[:, :4]

    def get_first_stage_encoding(self, x):
        return x

    def ema_scope(self):
        return nullcontext()


def run(job):
    """The results of one job, its latents under "latents"."""
    model = Model(CHECKPOINT, job.get("v", False))
    sd_models.model_data.set_sd_model(model)
    is_img2img = "shade" in job
    fields = {**job["fields"], "do_not_save_samples": True, "do_not_save_grid": True}
    if is_img2img:
        fields["init_images"] = [Image.new("RGB", (64, 64), (job["shade"],) * 3)]
    if job.get("mask"):
        fields["mask"] = Image.new("L", (64, 64), 0)
        fields["mask"].paste(255, (0, 0, 32, 64))
    kind = processing.StableDiffusionProcessingImg2Img if is_img2img else processing.StableDiffusionProcessingTxt2Img
    p = kind(sd_model=model, **fields)
    runner = scripts.scripts_img2img if is_img2img else scripts.scripts_txt2img
    p.is_api, arguments = True, list(DEFAULTS[is_img2img])
    accordion = next(s for s in runner.alwayson_scripts if s.title() == "Learned Solvers")
    for i, value in enumerate(job.get("accordion", [])):
        arguments[accordion.args_from + i] = value
    p.scripts, p.script_args = runner, arguments  # in this order: the second sets the scripts up
    try:
        done = processing.process_images(p)
    except ValueError as error:
        return {"error": str(error), "calls": model.calls, "latents": []}
    return {
        "error": "",
        "calls": model.calls,
        "infotext": done.infotexts[0],
        "comments": done.comments,
        "sampling_steps": shared.state.sampling_steps,
        "latents": model.decoded,
    }


jobs, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
sys.argv = ["webui.py", *sys.argv[3:]]
sys.path.insert(0, os.getcwd())
sys.meta_path.insert(0, Absent())
sys.dont_write_bytecode = True
torch.set_num_threads(2)

import modules.paths  # noqa: F401 - finds the repositories
from modules import shared, shared_init

shared_init.initialize()
from modules import initialize, processing, script_callbacks, scripts, sd_models, sd_samplers, ui
from PIL import Image
from safetensors.torch import save_file

sd_models.model_data.was_loaded_at_least_once = True
initialize.initialize_rest()
initialize.initialize_rest()  # Reload UI
CHECKPOINT = next(iter(sd_models.checkpoints_list.values()))
sd_models.model_data.set_sd_model(Model(CHECKPOINT, False))
script_callbacks.before_ui_callback()
page = ui.create_ui()
DEFAULTS = {
    is_img2img: [0, *(getattr(component, "value", None) for component in runner.inputs[1:])]
    for is_img2img, runner in ((False, scripts.scripts_txt2img), (True, scripts.scripts_img2img))
}
finished = [run(job) for job in jobs]
tensors = {f"{i}/{j}": x.contiguous() for i, job in enumerate(finished) for j, x in enumerate(job.pop("latents"))}
labels = [getattr(block, "label", None) for block in page.blocks.values()]
dropdowns = {b.elem_id: b.choices for b in page.blocks.values() if b.elem_id and hasattr(b, "choices")}
save_file(tensors, out / "latents.safetensors")
samplers = [sampler.name for sampler in sd_samplers.all_samplers]
results = {"jobs": finished, "samplers": samplers, "labels": labels, "dropdowns": dropdowns}
(out / "results.json").write_text(json.dumps(results, default=str))
