"""Prints measurements of ComfyModel.

    <ComfyUI's python> comfy_model.py COMFYUI_PATH MODELS_FOLDER

"freed" and the MB that its text encoders free; "<model> <error of one row per call> <error of three rows>" for rows
that differ in guidance or length, against ComfyUI's guider; "recipe <model> <sampler> <error> <calls> <calls made>" of
a teacher against ComfyUI's own sampling, or its refusal; "default <model>" and its default guidances; "experts <error>
<loads> <changes>" of two video models that never fit into memory together, against them one by one.
"""

import gc
import sys
from itertools import pairwise
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "training"))
import _as_package  # noqa: F401 - makes the folder the package learned_solvers
from learned_solvers.training.command.run import guidance_for
from learned_solvers.training.models.comfy import ComfyModel
from learned_solvers.training.models.comfy_samplers import named_recipe
from learned_solvers.training.models.host import Host
from learned_solvers.training.models.loading import ModelFiles

SHAPE = (3, 16, 8, 8)
NOISE = torch.randn(1, *SHAPE[1:], generator=torch.Generator().manual_seed(7))
comfy, models = map(Path, sys.argv[1:])


def stock(model, conds, prompt, guidance, x, sigma):
    """The denoised state of one row by ComfyUI's guider."""
    samplers = sys.modules["comfy.samplers"]
    cfg, embedded = (1.0, {"guidance": guidance}) if model.embeds_guidance else (guidance, {})
    entries = [[[c["context"], {"pooled_output": c["pooled_output"], **embedded}]] for c in (conds[prompt], conds[0])]
    guider, rows = samplers.CFGGuider(model.patcher), []
    guider.set_conds(*entries)
    guider.set_cfg(cfg)

    def sample(run, noise, sigmas, extra_args, callback, disable):
        rows.append(run(x, sigma, **extra_args))
        return noise

    guider.sample(torch.zeros_like(x), torch.zeros_like(x), samplers.KSAMPLER(sample), torch.tensor([1.0, 0.0]), seed=0)
    return rows[0]


def compare(name, model, dim, pooled):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    conds = [{"context": randn(1, length, dim), "pooled_output": randn(1, pooled)} for length in (8, 12, 8, 8)]
    x, sigma, prompts, values = randn(*SHAPE), torch.tensor([0.3, 0.6, 0.9]), [1, 2, 3], [1.0, 5.0, 1.0]
    states = list(zip(x.split(1), sigma.split(1), strict=True))
    with torch.inference_mode():
        rows = zip(prompts, values, states, strict=True)
        expected = torch.cat([stock(model, conds, prompt, value, *state) for prompt, value, state in rows])

    def work(denoiser, device):
        for order in ([0, 1, 2], [2, 0, 1], [1, 1, 0]):
            one = torch.cat([denoiser(*states[i], row=[i], guidance=values[i]) for i in order])
            three = torch.cat(
                [denoiser(x[order], sigma[order], row=order, guidance=values[i])[k, None] for k, i in enumerate(order)]
            )
            print(name, *(float((y - expected[order]).abs().max() / expected.abs().max()) for y in (one, three)))

        ends.update(recipe_ends(name, model, denoiser))

    ends = {}
    model.with_denoiser(work, conds, guidance_for(model, [1.0, 5.0]), list(SHAPE))
    for method, (end, reported, made) in ends.items():
        expected = ksampler(model, conds, method)
        error = float((end.cpu() - expected.cpu()).abs().max() / expected.abs().max())
        print("recipe", name, method, error, reported, made)


def recipe_ends(name, model, denoiser):
    """Ends of teachers named by a KSampler's widgets at guidance 5, the calls that they report, and those made."""
    x, calls, ends = float(model.sampling.sigma_max) * NOISE, [], {}

    def counted(x, sigma, **extra_args):
        calls.append(len(x))
        return denoiser(x, sigma, **extra_args)

    for method in ("dpmpp_2m", "heun", "uni_pc", "euler_ancestral"):
        try:
            recipe = named_recipe(model.patcher, method, "simple", 6, [1, *SHAPE[1:]])
        except ValueError as error:
            print("recipe", name, method, error)
            continue
        calls.clear()
        ends[method] = recipe.run(counted, x, {"row": [0], "guidance": 5.0}), recipe.calls, len(calls)
    return ends


def ksampler(model, conds, method):
    """The end of ComfyUI's own sampler from the same start, in the model's latent space."""
    cfg, embedded = (1.0, {"guidance": 5.0}) if model.embeds_guidance else (5.0, {})
    both = [[[c["context"], {"pooled_output": c["pooled_output"], **embedded}]] for c in (conds[1], conds[0])]
    settings = {"steps": 6, "sampler": method, "scheduler": "simple", "model_options": model.patcher.model_options}
    sampler = sys.modules["comfy.samplers"].KSampler(model.patcher, device=torch.device("cpu"), **settings)
    latent = torch.zeros_like(NOISE)
    return model.patcher.model.process_latent_in(
        sampler.sample(NOISE, *both, cfg=cfg, latent_image=latent, disable_pbar=True, seed=0)
    )


def tensor_memory():
    """MB in all tensors that Python knows."""
    storages = [t.untyped_storage() for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) / 2**20


def compare_experts(files):
    """Calls that alternate between two models, of which each load evicts the other."""
    joined = ComfyModel.load(ModelFiles(diffusion_model=files[0], second=files[1], boundary=0.6, host=Host(comfy)))
    management, levels = sys.modules["comfy.model_management"], [1.0, 0.5, 0.61, 0.8, 0.59, 0.9]
    generator, shape = torch.Generator().manual_seed(0), [2, 16, 2, 4, 4]
    conds = [{"context": torch.randn(1, 8, 4096, generator=generator)} for _ in range(3)]
    x = torch.randn(*shape, generator=generator)

    def run(model, levels):
        def work(denoiser, device):
            return [denoiser(x, torch.full([2], level), row=[0, 1]) for level in levels]

        return dict(zip(levels, model.with_denoiser(work, conds, guidance_for(model, [3.0]), shape), strict=True))

    load, loads = management.load_models_gpu, []

    def load_alone(models, *args, **kwargs):
        management.unload_all_models()
        loads.append(models[0])
        return load(models, *args, **kwargs)

    management.load_models_gpu = load_alone
    ends, expected = run(joined, levels), {}
    management.load_models_gpu = load
    for file, is_high in zip(files, (True, False), strict=True):
        alone = ComfyModel.load(ModelFiles(diffusion_model=file, host=Host(comfy)))
        expected |= run(alone, [level for level in levels if (level > 0.6) == is_high])
    error = max(float((ends[level] - expected[level]).abs().max() / expected[level].abs().max()) for level in levels)
    changes = sum((a > 0.6) != (b > 0.6) for a, b in pairwise(levels))
    print("experts", error, len(loads), changes)


model = ComfyModel.load(ModelFiles(checkpoint=models / "checkpoints" / "tiny_sd15_whole.ckpt", host=Host(comfy)))
model.encode(["a cat"], print)
before = tensor_memory()
model.free_text_encoders()
print("freed", before - tensor_memory())
for name, dim, pooled in (("sd3", 64, 32), ("flux", 64, 768)):
    file = models / "diffusion_models" / f"tiny_{name}.safetensors"
    if file.exists():
        model = ComfyModel.load(ModelFiles(diffusion_model=file, host=Host(comfy)))
        compare(name, model, dim, pooled)
        print("default", name, *guidance_for(model, ()).values)
compare_experts([models / "diffusion_models" / f"tiny_wan{low}.safetensors" for low in ("", "_low")])
