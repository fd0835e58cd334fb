"""The benchmark networks: three small ones of different prediction types, with images and starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from learned_solvers.samplers import FlowNoise
from learned_solvers.samplers.families import FAMILIES
from learned_solvers.samplers.schedules import Noise
from learned_solvers.training.data.samples import CountedDenoiser, Samples
from learned_solvers.training.models.digits import load_digits
from learned_solvers.training.train_digits import load_pictures as load_digit_pictures
from safetensors.torch import load_file
from torch import Tensor, nn

from .networks import patches, shapes
from .networks.unet import SHAPE

__all__ = ["BENCHMARKS", "Benchmark"]

_WEIGHTS = Path(__file__).parent / "networks"


@dataclass(frozen=True)
class Benchmark:
    """A network with everything that a measurement needs."""

    name: str  # in records and file names
    about: str  # description: network, data and prediction type
    noise: Noise
    shape: tuple[int, ...]  # of an image, [C, H, W]
    argument: str  # the name of the model's conditioning argument
    load: Callable[[torch.dtype], nn.Module]  # the denoiser, frozen
    conditioning: Callable[[int, torch.Generator], Tensor]  # random conditions [S, ...]
    pictures: Callable[[], tuple[Tensor, Tensor]]  # real images [S, C, H, W] and classes [S] or [S, T]
    published: tuple[str, ...]  # bundled solvers of this prediction type
    published_noise: Noise  # schedule for these; their grids depend on the resolution

    @property
    def families(self) -> tuple[str, ...]:
        """The solver families that are defined on this noise."""
        return tuple(name for name, family in FAMILIES.items() if self.noise.kind in family.kinds)

    def model(self, dtype: torch.dtype = torch.float32) -> CountedDenoiser:
        """The denoiser, counted; its states are float32 for every dtype."""
        return CountedDenoiser(self.load(dtype), dtype)

    def starts(self, count: int, seed: int, guidance: float | Tensor, microbatch: int = 256) -> Samples:
        """Random starts at the highest noise level, with random conditions."""
        generator = torch.Generator().manual_seed(seed)
        x = self.noise.sigma_max * torch.randn(count, *self.shape, generator=generator)
        extra_args: dict[str, Any] = {self.argument: self.conditioning(count, generator), "guidance": guidance}
        return Samples(x, extra_args, microbatch)


def _load_as(make: Callable[[], nn.Module], name: str) -> Callable[[torch.dtype], nn.Module]:
    def load(dtype: torch.dtype) -> nn.Module:
        model = make()
        weights = load_file(_WEIGHTS / f"{name}.safetensors")
        model.load_state_dict({key: value.float() for key, value in weights.items()})
        # This format is a tenth faster on a CPU.
        return model.to(dtype).to(memory_format=torch.channels_last).requires_grad_(False).eval()  # pyright: ignore

    return load


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "digits", "8x8 digits, class-conditional transformer, flow", FlowNoise(), (1, 8, 8), "label",
            lambda dtype: load_digits(dtype=dtype), lambda n, g: torch.randint(0, 10, (n,), generator=g),
            cache(load_digit_pictures), ("dyweight_flux1-dev", "ds_flow-sit", "ds_flow-flowdcn"), FlowNoise(tokens=16),
        ),
        Benchmark(
            "patches", "3x16x16 photo patches, class-conditional U-Net, VP/eps on Stable Diffusion's levels",
            patches.NOISE, SHAPE, "tokens", _load_as(patches.PatchesDenoiser, "patches"), patches.conditioning,
            cache(lambda: patches.load_pictures(12_000)), ("dyweight_sd15", "ds_vp-dit"), patches.NOISE,
        ),
        Benchmark(
            "shapes", "3x16x16 drawn shapes, caption-conditional U-Net, EDM", shapes.NOISE, SHAPE, "tokens",
            _load_as(shapes.ShapesDenoiser, "shapes"), shapes.conditioning, cache(lambda: shapes.load_pictures(12_000)),
            ("dyweight_cifar10", "dyweight_ffhq64", "dyweight_afhqv2-64", "dyweight_imagenet64"), shapes.NOISE,
        ),
    )
}  # fmt: skip
