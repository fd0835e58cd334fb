"""Nodes for the tests of Learned Solvers in a real ComfyUI: conditioning without a text encoder, typed noise levels,
patched models, other packs' habits, published formulas.
"""

import torch

from . import other_packs, patches, picture, published  # noqa: F401 - register their nodes
from .registry import NODES, node

NODE_CLASS_MAPPINGS = NODES


@node("TinyConditioning", "CONDITIONING", tokens="INT", dim="INT", pooled="INT", seed="INT", t5="INT")
def conditioning(tokens, dim, pooled, seed, t5=0):
    """Random conditioning; `t5` is the number of tokens of HunyuanDiT's second text encoder."""
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(1, tokens, dim, generator=generator)
    extra = {"pooled_output": torch.randn(1, pooled, generator=generator)} if pooled else {}
    if t5:
        extra["conditioning_mt5xl"] = torch.randn(1, t5, 2048, generator=generator)
        extra["attention_mask"], extra["attention_mask_mt5xl"] = torch.ones(1, tokens), torch.ones(1, t5)
    return [[context, extra]]


@node("TinySigmas", "SIGMAS", sigmas="STRING")
def typed_sigmas(sigmas):
    return torch.tensor([float(sigma) for sigma in sigmas.split(",")])


@node("TinyAudioLatent", "LATENT", length="INT", batch_size="INT")
def audio_latent(length, batch_size):
    """An empty LTX audio latent [B, 8, T, 16], to be combined with a video's."""
    return {"samples": torch.zeros(batch_size, 8, length, 16), "type": "audio"}
