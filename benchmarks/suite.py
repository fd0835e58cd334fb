"""The benchmark networks: four of different prediction types and sizes, with starts and what is measured on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from learned_solvers.samplers import FlowNoise
from learned_solvers.samplers.schedules import Noise
from learned_solvers.training.data.samples import CountedDenoiser, Samples
from learned_solvers.training.models import emoji
from learned_solvers.training.models.digits import load_digits
from learned_solvers.training.train_digits import load_pictures as load_digit_pictures
from safetensors.torch import load_file
from torch import Tensor, nn

from .networks import patches, shapes
from .networks.unet import SHAPE

__all__ = ["BENCHMARKS", "Benchmark", "draw", "prompts"]

_WEIGHTS = Path(__file__).parent / "networks"
_DEFAULT_FITS = tuple(("dyweight", "default", seed) for seed in (0, 1, 2))
_PROMPTS = (
    "red heart", "yellow heart", "smiling face", "crying face", "angry face", "cat face", "dog face", "bear face",
    "flower plant", "tree plant", "red apple fruit", "green apple", "cake sweet food", "pizza food", "bread food",
    "blue book", "moon sky", "house building", "fish animal", "bird animal", "car transport",
    "guitar musical instrument", "hat clothing", "umbrella",
)  # fmt: skip


@dataclass(frozen=True)
class Benchmark:
    """A network with everything that a measurement needs."""

    name: str  # in records
    title: str  # in documents and figures
    about: str  # description: network, data and prediction type
    noise: Noise
    shape: tuple[int, ...]  # of an image, [C, H, W]
    argument: str  # the name of the model's conditioning argument
    load: Callable[[torch.dtype], nn.Module]  # the denoiser, frozen
    conditioning: Callable[[int, torch.Generator], Tensor]  # random conditions [S, ...]
    pictures: Callable[[], tuple[Tensor, Tensor]] | None  # real images [S, C, H, W] and classes [S] or [S, T]
    published: tuple[str, ...]  # bundled solvers of this prediction type
    published_noise: Noise  # schedule for these; their grids depend on the resolution
    guidances: tuple[float, ...] = (1.0, 3.0, 7.0)
    unseen: int = 512  # starts that results are evaluated on
    ranked: int = 24  # of these, the first ones choose the peers that are evaluated on all
    screened: int = 4  # of these, the first ones choose the peers that are ranked
    microbatch: int = 64  # samples per call, as fast as any
    fits: tuple[tuple[str, str, int], ...] = (*_DEFAULT_FITS, ("dyweight", "thorough", 0), ("ds", "default", 0))
    """Families, efforts and seeds of the fits whose quality is measured."""

    def model(self, dtype: torch.dtype = torch.float32) -> CountedDenoiser:
        """The denoiser, counted; its states are float32 for every dtype."""
        return CountedDenoiser(self.load(dtype), dtype)

    def starts(self, count: int, seed: int, guidance: float) -> Samples:
        """Random starts at the highest noise level, with random conditions."""
        generator = torch.Generator().manual_seed(seed)
        x = self.noise.sigma_max * torch.randn(count, *self.shape, generator=generator)
        extra_args: dict[str, Any] = {self.argument: self.conditioning(count, generator), "guidance": guidance}
        return Samples(x, extra_args, self.microbatch)


def _load_as(make: Callable[[], nn.Module], name: str) -> Callable[[torch.dtype], nn.Module]:
    def load(dtype: torch.dtype) -> nn.Module:
        model = make()
        weights = load_file(_WEIGHTS / f"{name}.safetensors")
        model.load_state_dict({key: value.float() for key, value in weights.items()})
        # This format is a tenth faster on a CPU.
        return model.to(dtype).to(memory_format=torch.channels_last).requires_grad_(False).eval()  # pyright: ignore

    return load


@cache
def prompts() -> Tensor:
    """Word numbers of the emoji network's prompts, shape [P, 12]."""
    return emoji.load_emoji().words(_PROMPTS)


def draw(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Random rows [count, ...]."""
    return rows[torch.randint(len(rows), (count,), generator=generator)]


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "digits", "digits", "8x8 digits, class-conditional transformer, flow", FlowNoise(), (1, 8, 8), "label",
            lambda dtype: load_digits(dtype=dtype), lambda n, g: torch.randint(0, 10, (n,), generator=g),
            cache(load_digit_pictures), ("dyweight_flux1-dev", "ds_flow-sit", "ds_flow-flowdcn"), FlowNoise(tokens=16),
        ),
        Benchmark(
            "patches", "photo patches",
            "3x16x16 photo patches, class-conditional U-Net, VP/eps on Stable Diffusion's levels",
            patches.NOISE, SHAPE, "tokens", _load_as(patches.PatchesDenoiser, "patches"), patches.conditioning,
            cache(lambda: patches.load_pictures(12_000)), ("dyweight_sd15", "ds_vp-dit"), patches.NOISE,
        ),
        Benchmark(
            "shapes", "drawn shapes", "3x16x16 drawn shapes, caption-conditional U-Net, EDM", shapes.NOISE, SHAPE,
            "tokens", _load_as(shapes.ShapesDenoiser, "shapes"), shapes.conditioning,
            cache(lambda: shapes.load_pictures(12_000)),
            ("dyweight_cifar10", "dyweight_ffhq64", "dyweight_afhqv2-64", "dyweight_imagenet64"), shapes.NOISE,
            fits=(*_DEFAULT_FITS, ("dyweight", "thorough", 0)),  # DS is not defined on EDM
        ),
        Benchmark(
            "emoji", "emoji", "3x32x32 emoji drawn from words, U-Net with attention, flow", FlowNoise(), emoji.SHAPE,
            "words", lambda dtype: emoji.load_emoji(dtype=dtype).to(memory_format=torch.channels_last),  # pyright: ignore
            lambda n, g: draw(prompts(), n, g), None, ("dyweight_flux1-dev", "ds_flow-sit", "ds_flow-flowdcn"),
            FlowNoise(tokens=256), guidances=(1.0, 3.0, 6.0), unseen=64, ranked=12, screened=2,
            microbatch=16, fits=_DEFAULT_FITS,
        ),
    )
}  # fmt: skip
