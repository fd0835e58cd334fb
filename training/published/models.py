"""What the sources of the published tables say about the models that they were made for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["MODELS"]

_DYWEIGHT = {
    "source": "https://github.com/Westlake-AGI-Lab/DyWeight",
    "citation": "DyWeight: Dynamic Gradient Weighting for Few-Step Diffusion Sampling, arXiv 2603.11607",
    "licence": "none named by its authors; figures published with the paper (CC BY 4.0)",
}
_DS = {
    "source": "https://github.com/MCG-NJU/NeuralSolver",
    "citation": "Differentiable Solver Search for Fast Diffusion Sampling, arXiv 2505.21114 (ICML 2025)",
    "licence": "MIT",
}


def _pixel(checkpoint: str, size: int) -> dict[str, Any]:
    facts = {"prediction": "edm", "model_family": "EDM", "checkpoint": checkpoint, "resolution": f"{size}x{size}"}
    return {**_DYWEIGHT, **facts, "guidance": "none"}


# What the tables' sources say about the models, by the sources' own names for them.
MODELS: Mapping[str, dict[str, Any]] = {
    "cifar10": {"name": "dyweight_cifar10", **_pixel("edm-cifar10-32x32-uncond-vp", 32)},
    "ffhq": {"name": "dyweight_ffhq64", **_pixel("edm-ffhq-64x64-uncond-vp", 64)},
    "afhqv2": {"name": "dyweight_afhqv2-64", **_pixel("edm-afhqv2-64x64-uncond-vp", 64)},
    "imagenet64": {"name": "dyweight_imagenet64", **_pixel("edm-imagenet-64x64-cond-adm", 64)},
    "lsun_bedroom_ldm": {
        "name": "dyweight_lsun-bedroom-ldm",
        "prediction": "vp",
        "model_family": "LDM",
        "checkpoint": "latent diffusion LSUN Bedroom 256 (betas 0.0015 to 0.0195)",
        "resolution": "256x256",
        "guidance": "none",
        **_DYWEIGHT,
    },
    "ms_coco": {
        "name": "dyweight_sd15",
        "prediction": "vp",
        "model_family": "SD15",
        "checkpoint": "v1-5-pruned-emaonly",
        "resolution": "512x512",
        "guidance": "7.5",
        **_DYWEIGHT,
    },
    "flux1-dev": {
        "name": "dyweight_flux1-dev",
        "prediction": "flow",
        "model_family": "Flux",
        "checkpoint": "FLUX.1-dev",
        "resolution": "512x512",
        "guidance": "3.5 (distilled, CFG 1)",
        "note": "The last row sums to 0.76-0.78: the fit's squared error shrinks the end of the path.",
        **_DYWEIGHT,
    },
    "flow-sit": {
        "name": "ds_flow-sit",
        "prediction": "flow",
        "model_family": "SiT",
        "checkpoint": "SiT-XL/2 256x256",
        "resolution": "256x256",
        "guidance": "1 (shown at 1.375)",
        "transferable": True,
        **_DS,
    },
    "flow-flowdcn": {
        "name": "ds_flow-flowdcn",
        "prediction": "flow",
        "model_family": "FlowDCN",
        "checkpoint": "FlowDCN-B/2 256x256",
        "resolution": "256x256",
        "guidance": "1 (shown at 1.375)",
        "note": "Coefficients down to -8.2: unsafe in low precision and for image-to-image; prefer ds_flow-sit.",
        **_DS,
    },
    "vp-dit": {
        "name": "ds_vp-dit",
        "prediction": "vp",
        "model_family": "DiT",
        "checkpoint": "DiT-XL/2 256x256",
        "resolution": "256x256",
        "guidance": "1 (shown at 1.5)",
        "transferable": True,
        **_DS,
    },
}
