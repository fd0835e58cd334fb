"""What the benchmarks measure on: three small networks, each in its own convention, with its pictures and starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from learned_solvers.samplers import EDMNoise, FlowNoise
from learned_solvers.samplers.schedules import Noise
from learned_solvers.training.data.samples import CountedDenoiser, Samples
from learned_solvers.training.models.digits import load_digits
from learned_solvers.training.train_digits import load_pictures as digit_pictures
from safetensors.torch import load_file
from torch import Tensor, nn

from .networks import patches, shapes
from .networks.unet import SHAPE

__all__ = ["SUBJECTS", "Subject"]

_WEIGHTS = Path(__file__).parent / "networks"


@dataclass(frozen=True)
class Subject:
    """A network with all that a measurement needs.

    Args:
        name: For people and files.
        about: A line about network, data and convention.
        noise: Its noise schedule.
        shape: Of a picture, [C, H, W].
        argument: The name of the model's conditioning argument.
        load: Returns the denoiser, frozen, in a dtype.
        conditioning: Returns random conditions [S, ...].
        pictures: Returns real pictures [S, C, H, W] and their classes [S, T], for the classifier.
        published: Bundled solvers that claim to transfer to this convention.
    """

    name: str
    about: str
    noise: Noise
    shape: tuple[int, ...]
    argument: str
    load: Callable[[torch.dtype], nn.Module]
    conditioning: Callable[[int, torch.Generator], Tensor]
    pictures: Callable[[], tuple[Tensor, Tensor]]
    published: tuple[str, ...]

    @property
    def families(self) -> tuple[str, ...]:
        """The families that are defined on this noise."""
        return ("dyweight",) if isinstance(self.noise, EDMNoise) else ("dyweight", "ds")

    def model(self, dtype: torch.dtype = torch.float32) -> CountedDenoiser:
        """Returns the denoiser, counted; its states stay float32 whatever its dtype."""
        return CountedDenoiser(self.load(dtype), dtype)

    def starts(self, count: int, seed: int, guidance: float | Tensor, microbatch: int = 256) -> Samples:
        """Returns random starts at the highest noise level, with random conditions."""
        generator = torch.Generator().manual_seed(seed)
        x = self.sigma_max * torch.randn(count, *self.shape, generator=generator)
        extra_args: dict[str, Any] = {self.argument: self.conditioning(count, generator), "guidance": guidance}
        return Samples(x, extra_args, microbatch)

    @property
    def noise_with_tokens(self) -> Noise:
        """The noise for published grids that shift with resolution: FLUX's, here of pictures of 16 tokens."""
        return FlowNoise(tokens=16) if isinstance(self.noise, FlowNoise) else self.noise

    @property
    def sigma_max(self) -> float:
        """The standard deviation of a start."""
        return 1.0 if isinstance(self.noise, FlowNoise) else float(self.noise.sigma_max)


def _loaded(make: Callable[[], nn.Module], name: str) -> Callable[[torch.dtype], nn.Module]:
    def load(dtype: torch.dtype) -> nn.Module:
        model = make()
        model.load_state_dict(
            {key: value.float() for key, value in load_file(_WEIGHTS / f"{name}.safetensors").items()}
        )
        # In this format a tenth faster on a CPU.
        return model.to(dtype).to(memory_format=torch.channels_last).requires_grad_(False).eval()  # pyright: ignore

    return load


def _digit_classes() -> tuple[Tensor, Tensor]:
    pictures, labels = digit_pictures()
    return pictures, labels[:, None]


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject(
            "digits", "8x8 digits, class-conditional transformer, flow", FlowNoise(), (1, 8, 8), "label",
            lambda dtype: load_digits(dtype=dtype), lambda n, g: torch.randint(0, 10, (n,), generator=g),
            cache(_digit_classes), ("dyweight_flux1-dev", "ds_flow-sit", "ds_flow-flowdcn"),
        ),
        Subject(
            "patches", "3x16x16 photo patches, class-conditional U-Net, VP/eps on Stable Diffusion's levels",
            patches.NOISE, SHAPE, "tokens", _loaded(patches.PatchesDenoiser, "patches"),
            patches.conditioning, cache(lambda: patches.load_pictures(12_000)), ("dyweight_sd15", "ds_vp-dit"),
        ),
        Subject(
            "shapes", "3x16x16 drawn shapes, caption-conditional U-Net, EDM", shapes.NOISE, SHAPE, "tokens",
            _loaded(shapes.ShapesDenoiser, "shapes"), shapes.conditioning, cache(lambda: shapes.load_pictures(12_000)),
            ("dyweight_cifar10", "dyweight_ffhq64", "dyweight_afhqv2-64", "dyweight_imagenet64"),
        ),
    )
}  # fmt: skip
