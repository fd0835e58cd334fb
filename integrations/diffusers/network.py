"""What the network of a diffusers pipeline takes and answers, from its scheduler's config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from torch import Tensor

from ...samplers import FlowNoise, VPNoise
from ...samplers.schedules import Noise

__all__ = ["FLOW", "VP", "Network"]

FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
VP = tuple(scheduler.name for scheduler in KarrasDiffusionSchedulers if scheduler.name != "EDMEulerScheduler")
_OWN = "LearnedSolverScheduler"


@dataclass(frozen=True)
class Network:
    """What a pipeline's network takes and answers, in k-diffusion's coordinates.

    States are x0 + sigma * noise for eps and v, (1 - sigma) * x0 + sigma * noise for flow.
    """

    noise: Noise
    prediction: str
    timesteps: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Network:
        """Read from a scheduler's config; ValueError for a network that learned solvers cannot run."""
        name, count = config.get("_class_name"), config.get("num_train_timesteps", 1000)
        # Schedulers that were not loaded from a file have no class name.
        is_flow_scheduler = "beta_start" not in config and "shift" in config
        if name not in (*VP, *FLOW, _OWN, None):
            raise _refusal(f"class is {name}")
        if not is_flow_scheduler and "beta_start" not in config:
            raise _refusal(f"options are {', '.join(key for key in config if not key.startswith('_'))}")
        for option, expected in (("invert_sigmas", False), ("timestep_type", "discrete")):
            if config.get(option, expected) != expected:
                raise _refusal(f"{option} is {config[option]}")
        prediction = "flow_prediction" if is_flow_scheduler else config.get("prediction_type", "epsilon")
        if prediction not in ("epsilon", "v_prediction", "flow_prediction"):
            raise _refusal(f"prediction_type is {prediction}")
        if prediction == "flow_prediction":
            return cls(FlowNoise(config.get("tokens")), prediction, count)
        products = torch.cumprod(1 - _betas(config, count), 0)
        if config.get("rescale_betas_zero_snr"):  # arXiv 2305.08891, algorithm 1, with diffusers' value instead of 0
            roots = products.sqrt()
            products = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])).square()
            products[-1] = 2**-24
        return cls(VPNoise.from_sigmas(((1 - products) / products).sqrt()), prediction, count)

    @property
    def is_flow(self) -> bool:
        """Whether states are those of a flow."""
        return self.noise.kind == "flow"

    def times(self, sigmas: Tensor) -> Tensor:
        """The network's timesteps at noise levels, fractional, float32."""
        if self.is_flow:
            return (sigmas * self.timesteps).float()
        return (self.noise.time_at(sigmas) * self.timesteps - 1).clamp_min(0).float()

    def input(self, x: Tensor, sigma: float) -> Tensor:
        """The network's input for a state."""
        return x if self.is_flow else x / (1 + sigma**2) ** 0.5

    def denoised(self, x: Tensor, sigma: float, output: Tensor) -> Tensor:
        """The denoised state from a state and the network's output."""
        if self.prediction == "v_prediction":
            return x / (1 + sigma**2) - output * (sigma / (1 + sigma**2) ** 0.5)
        return x - sigma * output


def _betas(config: Mapping[str, Any], count: int) -> Tensor:
    """An eps or v model's betas, float64, shape [count]."""
    if config.get("trained_betas") is not None:
        return torch.as_tensor(config["trained_betas"], dtype=torch.float64)
    first, last = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
    rule = config.get("beta_schedule", "linear")
    if rule == "linear":
        return torch.linspace(first, last, count, dtype=torch.float64)
    if rule == "scaled_linear":
        return torch.linspace(first**0.5, last**0.5, count, dtype=torch.float64).square()
    if rule == "squaredcos_cap_v2":  # arXiv 2102.09672, eq. 17
        products = (
            ((torch.linspace(0, 1, count + 1, dtype=torch.float64) + 0.008) / 1.008 * torch.pi / 2).cos().square()
        )
        return (1 - products[1:] / products[:-1]).clamp_max(0.999)
    raise _refusal(f"beta_schedule is {rule}")


def _refusal(fact: str) -> ValueError:
    return ValueError(
        f"learned solvers run on flow, eps and v models, but this scheduler's {fact}: use a stock scheduler"
    )
