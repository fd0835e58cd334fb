"""The bundled text-to-picture model: a small U-Net that draws 32x32 emoji from words.

It has 2.2 million parameters and was trained by training/train_emoji.py on Google's Noto Emoji (Apache-2.0). It is
built like large models: words and time modulate residual blocks, self-attention at the lowest resolution,
classifier-free guidance. `EmojiDenoiser` has k-diffusion's interface, in flow coordinates.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, scaled_dot_product_attention, silu

__all__ = ["LONGEST", "SHAPE", "WEIGHTS", "EmojiDenoiser", "EmojiUNet", "load_emoji"]

WEIGHTS = Path(__file__).with_name("emoji.safetensors")
SHAPE = (3, 32, 32)
LONGEST = 12  # words of a prompt


def _fill_with_zeros(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; the condition scales and shifts the middle."""

    def __init__(self, inputs: int, outputs: int, condition: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(8, inputs)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.film = nn.Linear(condition, 2 * outputs)
        self.norm_out = nn.GroupNorm(8, outputs)
        self.conv_out = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        _fill_with_zeros(self.conv_out)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        y = self.conv_in(silu(self.norm_in(x)))
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        return self.shortcut(x) + self.conv_out(silu(self.norm_out(y) * (1 + scale) + shift))


class Attention(nn.Module):
    """Self-attention among the places of a picture, added to its input."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        _fill_with_zeros(self.out)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).view(n, h * w, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, h * w, c))
        return x + y.transpose(1, 2).view(n, c, h, w)


class EmojiUNet(nn.Module):
    """The velocity field `noise - picture` at flow time sigma.

    Args:
        words: Size of the vocabulary: word numbers are 1 to `words`, 0 is padding.
        width: Channels at 16x16; 8x8 has twice as many.
    """

    def __init__(self, words: int, width: int = 64, embedding: int = 160, condition: int = 256, heads: int = 4) -> None:
        super().__init__()
        wide = 2 * width
        self.embedding = nn.Embedding(words + 1, embedding, padding_idx=0)
        self.word_mlp = nn.Sequential(nn.Linear(embedding, condition), nn.SiLU(), nn.Linear(condition, condition))
        self.time_mlp = nn.Sequential(nn.Linear(64, condition), nn.SiLU(), nn.Linear(condition, condition))
        self.enter = nn.Conv2d(12, width, 3, padding=1)
        self.down1 = Block(width, width, condition)
        self.down2 = Block(width, width, condition)
        self.shrink = nn.Conv2d(width, wide, 3, stride=2, padding=1)
        self.middle1 = Block(wide, wide, condition)
        self.attend1 = Attention(wide, heads)
        self.middle2 = Block(wide, wide, condition)
        self.attend2 = Attention(wide, heads)
        self.middle3 = Block(wide, wide, condition)
        self.grow = nn.Conv2d(wide, 4 * width, 1)
        self.up1 = Block(wide, width, condition)
        self.up2 = Block(wide, width, condition)
        self.norm = nn.GroupNorm(8, width)
        self.leave = nn.Conv2d(width, 12, 3, padding=1)
        _fill_with_zeros(self.leave)

    def _condition(self, sigma: Tensor, words: Tensor) -> Tensor:
        steps = torch.arange(32, device=sigma.device, dtype=torch.float32)
        angles = 1000 * sigma.float()[:, None] * torch.exp(-math.log(10000) / 32 * steps)
        count = (words != 0).sum(1, keepdim=True).clamp(min=1)
        meaning = self.embedding(words).sum(1)
        meaning = meaning / count.sqrt().to(meaning.dtype)  # of the same size for one word and for twelve
        waves = torch.cat([angles.cos(), angles.sin()], dim=1).to(meaning.dtype)
        return silu(self.time_mlp(waves) + self.word_mlp(meaning))

    def forward(self, x: Tensor, sigma: Tensor, words: Tensor) -> Tensor:
        """Returns the velocity at x [B, 3, 32, 32], flow times sigma [B] and words [B, 12] (all 0: unconditional)."""
        c = self._condition(sigma, words)
        first = self.down1(self.enter(pixel_unshuffle(x, 2)), c)
        second = self.down2(first, c)
        y = self.attend1(self.middle1(self.shrink(second), c))
        y = self.middle3(self.attend2(self.middle2(y, c)), c)
        y = self.up1(torch.cat([pixel_shuffle(self.grow(y), 2), second], dim=1), c)
        y = self.up2(torch.cat([y, first], dim=1), c)
        return pixel_shuffle(self.leave(silu(self.norm(y))), 2)


class EmojiDenoiser(nn.Module):
    """Denoiser in flow coordinates, x = (1 - sigma) * picture + sigma * noise, with classifier-free guidance."""

    def __init__(self, network: EmojiUNet, vocabulary: Sequence[str]) -> None:
        super().__init__()
        self.network, self.vocabulary = network, {word: i + 1 for i, word in enumerate(vocabulary)}

    def words(self, prompts: Sequence[str]) -> Tensor:
        """The word numbers of prompts, shape [B, 12]; ValueError for a prompt without a known word."""
        rows = torch.zeros(len(prompts), LONGEST, dtype=torch.long)
        for row, prompt in zip(rows, prompts, strict=True):
            known = [self.vocabulary[word] for word in prompt.lower().split() if word in self.vocabulary][:LONGEST]
            if not known:
                raise ValueError(
                    f"the bundled model knows no word of {prompt!r}: try others, such as {', '.join(_EXAMPLES)}"
                )
            row[: len(known)] = torch.tensor(known)
        return rows

    def forward(self, x: Tensor, sigma: Tensor, words: Tensor, guidance: float | Tensor = 4.0) -> Tensor:
        """Returns the guided denoised picture for x [B, 3, 32, 32], sigma [B] in (0, 1], words [B, 12].

        Guidance 1 makes one network pass. Another value, or a value per row [B], evaluates the words and no words in
        one batch.
        """
        level = sigma.view(-1, 1, 1, 1)
        if not isinstance(guidance, float | int):
            guidance = guidance.to(x).view(-1, 1, 1, 1)
        elif guidance == 1:
            return x - level * self.network(x, sigma, words)
        twice = torch.cat([words, torch.zeros_like(words)])
        conditional, null = self.network(x.repeat(2, 1, 1, 1), sigma.repeat(2), twice).chunk(2)
        return x - level * (null + guidance * (conditional - null))


_EXAMPLES = ("red heart", "smiling face", "blue book")


def load_emoji(path: Path = WEIGHTS, dtype: torch.dtype = torch.float32) -> EmojiDenoiser:
    """Returns the bundled model, frozen and in evaluation mode, with weights in `dtype`."""
    with safe_open(path, "pt") as file:
        vocabulary = json.loads(file.metadata()["words"])
        weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - not a dict
    network = EmojiUNet(len(vocabulary))
    network.load_state_dict(weights)
    return EmojiDenoiser(network, vocabulary).to(dtype).requires_grad_(False).eval()
