"""What `Compare Samplers` runs: learned and stock samplers on the same model and conditioning, calls counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import comfy.samplers
import comfy.utils
from torch import Tensor

from ..samplers.families import FAMILIES

__all__ = ["HostRuns"]


class _WrongCalls(Exception):
    """A sampler makes no model call, or more than allowed."""


class HostRuns:
    """Runs of samplers from `x`, the noise, with `extra_args["latent"]`; end states are in the model's own scale.

    `calls` counts model calls, one per picture and call. The progress bar has `total` runs.
    """

    def __init__(self, model: Any, positive: Any, negative: Any, cfg: float, seed: int, total: int) -> None:
        self.model, self.positive, self.negative, self.cfg, self.seed = model, positive, negative, cfg, seed
        self.bar, self.calls = comfy.utils.ProgressBar(total), 0

    def refuse(self, reason: object, *_: Any) -> NoReturn:
        """In place of a run that cannot be made."""
        from ..training.comparison.measure import Refusal

        self.bar.update(1)
        raise Refusal(str(reason))

    def within(self, sampler: str, scheduler: str, calls: int, x: Tensor, extra_args: Mapping[str, Any]) -> Tensor:
        """The end states of a stock sampler with as many steps as make at most so many calls."""
        for steps in dict.fromkeys([calls, calls - 1, (calls + 1) // 2, (calls + 2) // 3, 1]):
            try:
                return self.stock(sampler, scheduler, steps, x, extra_args, most=calls)
            except _WrongCalls:
                continue
            except ValueError as error:  # a learned sampler without this step count
                if sampler in {family.sampler for family in FAMILIES.values()}:
                    self.refuse(error)
                raise
        self.refuse(f"cannot sample in {calls} model calls")

    def stock(
        self, sampler: str, scheduler: str, steps: int, x: Tensor, extra_args: Mapping[str, Any], most: int = -1
    ) -> Tensor:
        """The end states of a stock sampler; more calls than `most` raise an exception."""
        options = self.model.load_device, sampler, scheduler, 1.0, self.model.model_options
        sigmas = comfy.samplers.KSampler(self.model, steps, *options).sigmas
        return self.sample(comfy.samplers.sampler_object(sampler), sigmas, x, extra_args, most)

    def sample(self, sampler: Any, sigmas: Tensor, x: Tensor, extra_args: Mapping[str, Any], most: int = -1) -> Tensor:
        """The end states of a SAMPLER on SIGMAS."""
        guider = comfy.samplers.CFGGuider(self.model)
        predict, calls = guider.predict_noise, 0

        def count(*args: Any, **kwargs: Any) -> Tensor:
            nonlocal calls
            if calls == most:
                raise _WrongCalls
            calls += 1
            return predict(*args, **kwargs)

        guider.predict_noise = count
        guider.set_conds(self.positive, self.negative)
        guider.set_cfg(self.cfg)
        ends = guider.sample(x, extra_args["latent"], sampler, sigmas, disable_pbar=True, seed=self.seed)
        if calls == 0:  # dpm_adaptive makes none where its first level is its last
            raise _WrongCalls
        self.calls += calls * len(x)
        self.bar.update(1)
        return self.model.model.process_latent_in(ends.float().cpu())
