"""A small convolutional U-Net on 3x16x16 images, conditioned on the noise level and on a few tokens.

After DDPM++ (arXiv 2011.13456) and EDM (arXiv 2206.00364): residual blocks with group norm and adaptive scale and
shift, attention at the lowest resolution. The images are unshuffled into channels, so that it computes on 8x8 and 4x4
and a call takes a CPU a fraction of a millisecond.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["SHAPE", "GuidedDenoiser", "UNet"]

SHAPE = (3, 16, 16)


class GuidedDenoiser(nn.Module):
    """A denoiser in VE coordinates, x = x0 + sigma * noise, from a U-Net."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.network = UNet(words)

    def forward(self, x: Tensor, sigma: Tensor, tokens: Tensor, guidance: float | Tensor = 3.0) -> Tensor:
        """The guided prediction for x [B, 3, 16, 16], sigma [B] > 0, tokens [B, T] and a guidance, or one per row [B].

        Takes one evaluation at a guidance of 1, otherwise two in a batch.
        """
        if not isinstance(guidance, float | int):
            guidance = guidance.to(x).view(-1, 1, 1, 1)
        elif guidance == 1.0:
            return self.denoised(x, sigma, tokens)
        both = torch.cat([tokens, torch.zeros_like(tokens)])
        conditional, null = self.denoised(x.repeat(2, 1, 1, 1), sigma.repeat(2), both).chunk(2)
        return null + guidance * (conditional - null)

    def denoised(self, x: Tensor, sigma: Tensor, tokens: Tensor) -> Tensor:
        """The prediction without guidance."""
        raise NotImplementedError


class UNet(nn.Module):
    """The raw network F(x, c_noise, tokens); its denoiser defines what it predicts.

    Args:
        words: Size of the vocabulary; token 0 is the empty word, and a caption of zeros is the null condition.
        width: Channels at 8x8; doubled at 4x4.
    """

    def __init__(self, words: int, width: int = 32) -> None:
        super().__init__()
        self.width, embedded = width, 4 * width
        self.level = nn.Sequential(nn.Linear(2 * width, embedded), nn.SiLU(), nn.Linear(embedded, embedded))
        self.words = nn.Embedding(words, embedded)
        self.stem = nn.Conv2d(12, width, 3, padding=1)
        self.down = nn.ModuleList([Block(width, width, embedded), Block(width, width, embedded)])
        self.pool = nn.Conv2d(width, 2 * width, 2, stride=2)
        self.middle = nn.ModuleList([Block(2 * width, 2 * width, embedded) for _ in range(3)])
        self.attention = Attention(2 * width)
        self.unpool = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.up = nn.ModuleList([Block(2 * width, width, embedded) for _ in range(2)])
        self.norm = nn.GroupNorm(8, width)
        self.head = nn.Conv2d(width, 12, 3, padding=1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, c_noise: Tensor, tokens: Tensor) -> Tensor:
        """F at x [B, 3, 16, 16], noise coordinates c_noise [B] (about -2 to 2) and tokens [B, T]."""
        frequencies = torch.exp(torch.arange(self.width, device=x.device) * (-math.log(50.0) / self.width))
        angles = 8.0 * c_noise.float()[:, None] * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1).to(x.dtype)
        c = nn.functional.silu(self.level(waves) + self.words(tokens).sum(1))
        h = self.stem(nn.functional.pixel_unshuffle(x, 2))
        skips = []
        for block in self.down:
            h = block(h, c)
            skips.append(h)
        h = self.pool(h)
        for i, block in enumerate(self.middle):
            h = block(h, c)
            if i == 0:
                h = self.attention(h)
        h = self.unpool(h)
        for block in self.up:
            h = block(torch.cat([h, skips.pop()], dim=1), c)
        return nn.functional.pixel_shuffle(self.head(nn.functional.silu(self.norm(h))), 2)


class Block(nn.Module):
    """A residual block, scaled and shifted by the conditioning vector."""

    def __init__(self, channels: int, out: int, embedded: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.conv = nn.Conv2d(channels, out, 3, padding=1)
        self.affine = nn.Linear(embedded, 2 * out)
        self.norm_out = nn.GroupNorm(8, out, affine=False)
        self.conv_out = nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.conv(nn.functional.silu(self.norm(x)))
        scale, shift = self.affine(c)[:, :, None, None].chunk(2, dim=1)
        return self.skip(x) + self.conv_out(nn.functional.silu(self.norm_out(h) * (1 + scale) + shift))


class Attention(nn.Module):
    """Self-attention over the positions of a feature map."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        b, channels, height, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, 3, self.heads, channels // self.heads, -1).transpose(-1, -2).unbind(1)
        h = nn.functional.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        return x + self.out(h.reshape(b, channels, height, width))
