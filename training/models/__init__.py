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
    """A host's model, as the commands use it.

    `ComfyModel` implements it. Another loader is a module like comfy.py, used in command/run.py and compare.py.
    """

    @property
    @abstractmethod
    def architecture(self) -> str:
        """Name of the architecture, in ComfyUI's spelling if it has one."""

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Usual width and height in pixels."""

    @property
    @abstractmethod
    def frames(self) -> int:
        """Usual number of frames of a video; 1 for images."""

    @property
    @abstractmethod
    def embeds_guidance(self) -> bool:
        """Whether the model is guided by an embedded guidance, with CFG 1."""

    @property
    @abstractmethod
    def usual_guidance(self) -> float:
        """Usual guidance, embedded or CFG."""

    @abstractmethod
    def latent_shape(self, width: int, height: int, frames: int = 1) -> list[int]:
        """Shape of one latent, [1, C, H, W], of a video model [1, C, T, H, W]; ValueError for an impossible size."""

    @abstractmethod
    def pixels(self, shape: Sequence[int]) -> str:
        """The pixel size of a latent shape as "WIDTHxHEIGHT", of a video "WIDTHxHEIGHTxFRAMES", for cards."""

    @abstractmethod
    def noise(self, shape: Sequence[int]) -> Noise:
        """Noise schedule for latents of a shape."""

    @abstractmethod
    def starts(self, shape: Sequence[int], count: int, seed: int) -> Tensor:
        """Starting states at the highest noise level, shape [count, ...], float32 on the CPU."""

    @abstractmethod
    def encode(self, prompts: Sequence[str], log: Callable[[str], None]) -> list[Cond]:
        """Encoded prompts, on the CPU; ValueError if no text encoder is loaded."""

    @abstractmethod
    def free_text_encoders(self) -> None:
        """Frees the memory of the text encoders."""

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
        """Returns `work(denoiser, device)`, called while the model is loaded, with a `Denoiser`, see guider.py.

        The samples have the prompts (`conds` after the negative one) in turn; `guidance` is what the denoiser uses
        unless a call gives another value. `shape` is the shape of a microbatch, for the host's memory estimate.
        `differentiable` lets gradients through the model.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """End states decoded to pictures [B, 3, H, W] in [0, 1]; of a video only the first frame."""
