"""Runs ComfyUI's own sampler functions, in float64, on a Gaussian mixture.

    <ComfyUI's python> run_samplers.py COMFYUI_PATH REQUEST.pt RESULT.pt

REQUEST holds "mean" [K, n], "std" [K], "logw" [K], and "runs": a list of (sampler, sigmas [N + 1], flow, x [B, n]).
RESULT is a list of (end state, number of model calls).
"""

from types import SimpleNamespace

from comfy_on_cpu import ARGUMENTS

# isort: split

import comfy.extra_samplers.uni_pc as uni_pc
import comfy.k_diffusion.sampling as sampling
import torch

REQUEST, RESULT = ARGUMENTS
UNIPC = {"uni_pc": uni_pc.sample_unipc, "uni_pc_bh2": uni_pc.sample_unipc_bh2}


class Mixture:
    """The denoiser of tests/oracles.py; `res_multistep` reads `inner_model` of the host's wrapper."""

    inner_model = SimpleNamespace(model_patcher=SimpleNamespace(get_model_object=lambda name: None))

    def __init__(self, mean, std, logw, flow):
        self.mean, self.std, self.logw, self.flow, self.calls = mean, std, logw, flow, 0

    def __call__(self, x, sigma):
        self.calls += 1
        state, sigma = x.flatten(1)[:, None, :], sigma[:, None]
        alpha = 1 - sigma if self.flow else torch.ones_like(sigma)
        variance = alpha**2 * self.std**2 + sigma**2
        distance = ((state - alpha[..., None] * self.mean) ** 2).sum(-1)
        weight = (self.logw - distance / (2 * variance) - x[0].numel() / 2 * variance.log()).softmax(1)
        means = (alpha * self.std**2 / variance)[..., None] * state + (sigma**2 / variance)[..., None] * self.mean
        return (weight[..., None] * means).sum(1).reshape(x.shape)


torch.set_default_dtype(torch.float64)  # the samplers compute coefficients in the default type
request = torch.load(REQUEST, weights_only=True)
results = []
with torch.no_grad():
    for name, sigmas, flow, x in request["runs"]:
        model = Mixture(request["mean"], request["std"], request["logw"], flow)
        run = UNIPC.get(name) or getattr(sampling, f"sample_{name}")
        # A copy: uni_pc overwrites its last level.
        results.append((run(model, x, sigmas.clone(), extra_args={}, disable=True), model.calls))
torch.save(results, RESULT)
