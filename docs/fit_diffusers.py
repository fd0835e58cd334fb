"""Fits a solver for a pipeline of diffusers (Stable Diffusion 1.5, 2 or SDXL), and samples an image with it.

python docs/fit_diffusers.py stable-diffusion-v1-5/stable-diffusion-v1-5 --steps 6 --output my.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoPipelineForText2Image
from learned_solvers.integrations.diffusers import LearnedSolverScheduler, PipelineDenoiser
from learned_solvers.samplers import Guidance
from learned_solvers.training import fit_solver

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("pipeline", help="name on the Hub, or folder")
parser.add_argument("--output", type=Path, required=True, help="solver file to write")
parser.add_argument("--prompts", type=Path, help="text file, one prompt per line; default: the bundled ones")
parser.add_argument("--steps", type=int, nargs="+", default=[6])
parser.add_argument("--guidance", type=float, default=7.5)
parser.add_argument("--samples", type=int, default=28)
parser.add_argument("--effort", default="default", help="quick, default or thorough")
parser.add_argument("--microbatch", type=int, default=4, help="images per network call")
options = parser.parse_args()
if options.output.suffix != ".safetensors":
    parser.error(f"{options.output}: a solver file must end in .safetensors")
for path in (options.output, options.output.with_suffix(".png")):
    if path.exists():
        parser.error(f"{path} exists: choose another name")

device = "cuda" if torch.cuda.is_available() else "cpu"
pipe = AutoPipelineForText2Image.from_pretrained(options.pipeline).to(device)

# One prompt and one start per sample.
bundled = Path(__file__).parents[1] / "training/command/prompts.txt"
lines = (options.prompts or bundled).read_text(encoding="utf-8").split("\n")
prompts = [line for line in lines if line.strip()]
prompts = [prompts[i % len(prompts)] for i in range(options.samples)]
with torch.no_grad():
    encoded = pipe.encode_prompt(
        prompt=prompts, device=device, num_images_per_prompt=1, do_classifier_free_guidance=True
    )
names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
embeds = dict(zip(names, encoded, strict=False))
model = PipelineDenoiser(pipe, guidance_scale=options.guidance)
network = pipe.unet.config
shape = (options.samples, network.in_channels, network.sample_size, network.sample_size)
starts = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device) * model.noise.sigma_max

card = {"checkpoint": Path(options.pipeline).name, "guidance": Guidance("cfg", (options.guidance,))}
result = fit_solver(
    model, starts, noise=model.noise, steps=options.steps, effort=options.effort, extra_args=embeds, card=card,
    microbatch=options.microbatch, progress=print,
)  # fmt: skip
result.solver.save(options.output)
for steps, report in result.report.items():
    print(f"{steps} steps: error {report.error_after:.4g}, of the best classical solver {report.peers[0].error:.4g}")

pipe.scheduler = LearnedSolverScheduler.from_config(
    pipe.scheduler.config, solver=options.output, guidance=options.guidance
)
generator = torch.Generator().manual_seed(1)
image = pipe(
    prompts[0], num_inference_steps=options.steps[0], guidance_scale=options.guidance, generator=generator
).images[0]
image.save(options.output.with_suffix(".png"))
