"""What `Compare Samplers` runs: learned and stock samplers on the same model and conditioning, calls counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import comfy.samplers
import comfy.utils
from torch import Tensor

from ..samplers.families import FAMILIES
from .sampling import guidance_of
from .selection import Selection, select_solver

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

    def select(self, name: str, steps: int, shape: Sequence[int]) -> Selection | str:
        """What a solver file, or the automatic choice, runs on latents of a shape; a text says why it cannot."""
        guidance = guidance_of(self.model.model, [entry[1] for entry in self.positive], self.cfg)
        try:
            return select_solver(self.model, name, steps, shape=shape, guidance=guidance)
        except ValueError as error:
            return str(error)

    def learned(self, selection: Selection | str, x: Tensor, extra_args: Mapping[str, Any]) -> Tensor:
        """The end states of what `select` returns."""
        if isinstance(selection, str):
            raise self._refusal(selection)
        return self._sample(x, extra_args, selection.sampler, selection.sigmas)

    def within(self, sampler: str, scheduler: str, calls: int, x: Tensor, extra_args: Mapping[str, Any]) -> Tensor:
        """The end states of a stock sampler with as many steps as make at most so many calls."""
        for steps in dict.fromkeys([calls, calls - 1, (calls + 1) // 2, (calls + 2) // 3, 1]):
            try:
                return self.stock(sampler, scheduler, steps, x, extra_args, most=calls)
            except _WrongCalls:
                continue
            except ValueError as error:  # a learned sampler without this step count
                if sampler in {family.sampler for family in FAMILIES.values()}:
                    raise self._refusal(str(error)) from error
                raise
        raise self._refusal(f"cannot sample in {calls} model calls")

    def stock(
        self, sampler: str, scheduler: str, steps: int, x: Tensor, extra_args: Mapping[str, Any], most: int = -1
    ) -> Tensor:
        """The end states of a stock sampler; more calls than `most` raise an exception."""
        options = self.model.load_device, sampler, scheduler, 1.0, self.model.model_options
        sigmas = comfy.samplers.KSampler(self.model, steps, *options).sigmas
        return self._sample(x, extra_args, comfy.samplers.sampler_object(sampler), sigmas, most)

    def _refusal(self, reason: str) -> Exception:
        from ..training.comparison.measure import Refusal

        self.bar.update(1)
        return Refusal(reason)

    def _sample(self, x: Tensor, extra_args: Mapping[str, Any], sampler: Any, sigmas: Tensor, most: int = -1) -> Tensor:
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
