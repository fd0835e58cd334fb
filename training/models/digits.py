"""A bundled small model, for tests and examples: a class-conditional flow transformer on 8x8 digits.

It has about 250,000 parameters and was trained by training/train_digits.py on scikit-learn's digits (UCI Optical
Recognition of Handwritten Digits, CC BY 4.0). It is small enough to fit a solver on any CPU and built like large
models: transformer, adaLN-zero conditioning (DiT, arXiv 2212.09748), classifier-free guidance. `DigitsDenoiser` has
k-diffusion's interface, in flow coordinates.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = ["NULL_LABEL", "SHAPE", "WEIGHTS", "DigitsDenoiser", "DigitsTransformer", "digit_starts", "load_digits"]

WEIGHTS = Path(__file__).with_name("digits.safetensors")
SHAPE = (1, 8, 8)
NULL_LABEL = 10


class Block(nn.Module):
    """Transformer block with adaLN-zero modulation by the conditioning vector."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c).unsqueeze(1).chunk(6, dim=-1)
        x = x + gate_a * self.attention(self.norm(x) * (1 + scale_a) + shift_a)
        return x + gate_m * self.mlp(self.norm(x) * (1 + scale_m) + shift_m)

    def attention(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        x = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(x.transpose(1, 2).reshape(b, n, width))


class DigitsTransformer(nn.Module):
    """The velocity field `noise - x0` at flow time sigma, patch size 2."""

    def __init__(self, width: int = 64, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.width = width
        self.patches = nn.Linear(4, width)
        self.positions = nn.Parameter(0.1 * torch.randn(16, width))
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = nn.Embedding(NULL_LABEL + 1, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.head = nn.Linear(width, 4)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        """Returns the velocity at states x [B, 1, 8, 8], flow times sigma [B] and labels [B] (10: unconditional)."""
        frequencies = torch.exp(
            torch.arange(self.width // 2, device=x.device) * (-math.log(1000.0) / (self.width // 2))
        )
        angles = 100.0 * sigma.float()[:, None] * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1).to(x.dtype)
        c = nn.functional.silu(self.time(waves) + self.labels(label))
        h = self.patches(nn.functional.unfold(x, 2, stride=2).transpose(1, 2)) + self.positions
        for block in self.blocks:
            h = block(h, c)
        return nn.functional.fold(self.head(self.norm(h)).transpose(1, 2), (8, 8), 2, stride=2)


class DigitsDenoiser(nn.Module):
    """Denoiser in flow coordinates, x = (1 - sigma) * x0 + sigma * noise, with classifier-free guidance."""

    def __init__(self, network: DigitsTransformer) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor, guidance: float | Tensor = 3.0) -> Tensor:
        """Returns the guided denoised picture for x [B, 1, 8, 8], sigma [B] in (0, 1], label [B].

        Guidance 1 makes one network pass. Another value, or a value per row [B], evaluates the label and the null label
        in one batch.
        """
        if not isinstance(guidance, float | int):
            guidance = guidance.to(x).view(-1, 1, 1, 1)
        elif guidance == 1:
            return x - sigma.view(-1, 1, 1, 1) * self.network(x, sigma, label)
        twice = torch.cat([label, torch.full_like(label, NULL_LABEL)])
        conditional, null = self.network(x.repeat(2, 1, 1, 1), sigma.repeat(2), twice).chunk(2)
        return x - sigma.view(-1, 1, 1, 1) * (null + guidance * (conditional - null))


def digit_starts(count: int, seed: int = 0) -> tuple[Tensor, dict[str, object]]:
    """Returns starts [count, 1, 8, 8] and the model's arguments: random labels and guidance 3."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *SHAPE, generator=generator)
    return x, {"label": torch.randint(0, 10, (count,), generator=generator), "guidance": 3.0}


def load_digits(path: Path = WEIGHTS, dtype: torch.dtype = torch.float32) -> DigitsDenoiser:
    """Returns the bundled model, frozen and in evaluation mode, with weights in `dtype`."""
    network = DigitsTransformer()
    network.load_state_dict(load_file(path))
    return DigitsDenoiser(network).to(dtype).requires_grad_(False).eval()
