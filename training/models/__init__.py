"""The models that solvers are fitted for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ...samplers.guidance import Guidance
from ...samplers.schedules import Noise
from .conditioning import Cond

__all__ = ["Model"]


class Model(Protocol):
    """What the commands need of a host's model.

    `ComfyModel` is one. Another loader is a file like comfy.py, named in command/run.py and compare.py.
    """

    @property
    @abstractmethod
    def architecture(self) -> str:
        """Name of the architecture, in ComfyUI's spelling where it has one."""

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Usual width and height in pixels."""

    @property
    @abstractmethod
    def embeds_guidance(self) -> bool:
        """Whether the network is guided by an embedded guidance, with CFG 1."""

    @property
    @abstractmethod
    def usual_guidance(self) -> float:
        """Guidance that it is usually run at, embedded or CFG."""

    @abstractmethod
    def latent_shape(self, width: int, height: int) -> list[int]:
        """Shape of one latent, [1, C, ..., H, W], a video's of one frame; ValueError where the pixels have none."""

    @abstractmethod
    def pixels(self, shape: Sequence[int]) -> str:
        """ "WIDTHxHEIGHT" of a latent shape, as cards have it."""

    @abstractmethod
    def noise(self, shape: Sequence[int]) -> Noise:
        """Noise schedule for latents of a shape."""

    @abstractmethod
    def starts(self, shape: Sequence[int], count: int, seed: int) -> Tensor:
        """Starting states at the highest noise level, shape [count, ...], float32 on the CPU."""

    @abstractmethod
    def encode(self, prompts: Sequence[str], log: Callable[[str], None]) -> list[Cond]:
        """Encoded prompts, on the CPU; ValueError where no text encoder was loaded."""

    @abstractmethod
    def free_text_encoders(self) -> None:
        """Gives the text encoders' memory back."""

    @abstractmethod
    def with_denoiser(
        self,
        work: Callable[[Callable[..., Tensor], torch.device], Any],
        conds: Sequence[Cond],
        guidance: Guidance,
        shape: Sequence[int],
        *,
        differentiable: bool = False,
    ) -> Any:
        """Returns `work(denoiser, device)`, called while the model is loaded, with `denoiser(x, sigma, row)`.

        `row` has the numbers of the samples, which have the prompts (`conds` after the negative one) and the values of
        the guidance in turn. `shape` is that of a microbatch, by which a host estimates the memory. `differentiable`
        lets gradients through the model.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1] of end states."""
