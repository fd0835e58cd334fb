"""Runs of learned and stock samplers on one model and conditioning, with calls counted; for `Compare Samplers`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import comfy.model_management
import comfy.samplers
import comfy.utils
from torch import Tensor

from .sampling import SolverRefused

if TYPE_CHECKING:
    from ..training.data.samples import Samples

__all__ = ["HostRuns"]

_log = logging.getLogger("learned_solvers")


class _WrongCalls(Exception):
    """A sampler made no model call, or more than allowed."""


class HostRuns:
    """Samples from the noise `x` and `extra_args["latent"]`; end states are in the model's own scale.

    `calls` is the sum of model calls over runs and images; `total` is the number of runs on the progress bar. Where
    memory is short, a run takes the images in parts, unless its conditioning may differ by image.
    """

    def __init__(self, model: Any, positive: Any, negative: Any, cfg: float, seed: int, total: int) -> None:
        from ..training.data.batch_limit import BatchLimit
        from ..training.models.guider import host_memory

        self.model, self.positive, self.negative, self.cfg, self.seed = model, positive, negative, cfg, seed
        self.bar, self.calls = comfy.utils.ProgressBar(total), 0
        self.batch_limit = BatchLimit(_log.info, host_memory())
        self.is_divisible = not (_may_differ_by_image(positive) or _may_differ_by_image(negative))

    def refuse(self, reason: object, *_: Any) -> NoReturn:
        """Raises a Refusal; called instead of a run that is impossible."""
        from ..training.comparison.measure import Refusal

        raise Refusal(str(reason))

    def each(self, samples: Samples, work: Callable[[int, int], Tensor]) -> Iterator[Tensor]:
        """Yields `work(start, stop)` of one run, for as many images at a time as fit into memory."""
        try:
            if self.is_divisible:
                yield from self.batch_limit.each(len(samples), samples.microbatch, work)
            else:
                yield work(0, len(samples))
        finally:
            self.bar.update(1)

    def attempt(self, run: Callable[[Tensor, Mapping[str, Any]], Tensor], *starts: Any) -> Tensor:
        """The end states of a run; one that fails is refused with its error, so that the others are still compared."""
        from ..training.comparison.measure import Refusal

        try:
            return run(*starts)
        except (Refusal, comfy.model_management.InterruptProcessingException):
            raise
        except Exception as error:
            if self.batch_limit.memory.is_out(error):
                raise  # repeated with fewer images
            if not isinstance(error, SolverRefused):  # which is logged already
                _log.warning("left out of the comparison: %s", error, exc_info=True)
            self.refuse(str(error) or type(error).__name__)

    def within(self, sampler: str, scheduler: str, calls: int, x: Tensor, extra_args: Mapping[str, Any]) -> Tensor:
        """End states of a stock sampler with the most steps that take at most `calls` model calls."""
        for steps in dict.fromkeys([calls, calls - 1, (calls + 1) // 2, (calls + 2) // 3, 1]):
            try:
                return self.stock(sampler, scheduler, steps, x, extra_args, most=calls)
            except _WrongCalls:
                continue
        self.refuse(f"cannot sample in {calls} model calls")

    def stock(
        self, sampler: str, scheduler: str, steps: int, x: Tensor, extra_args: Mapping[str, Any], most: int = -1
    ) -> Tensor:
        """End states of a stock sampler; a call beyond `most` raises an exception."""
        options = self.model.load_device, sampler, scheduler, 1.0, self.model.model_options
        sigmas = comfy.samplers.KSampler(self.model, steps, *options).sigmas
        return self.sample(comfy.samplers.sampler_object(sampler), sigmas, x, extra_args, most)

    def sample(self, sampler: Any, sigmas: Tensor, x: Tensor, extra_args: Mapping[str, Any], most: int = -1) -> Tensor:
        """End states of a SAMPLER on SIGMAS."""
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
        if calls == 0:  # dpm_adaptive, where its first level is its last
            raise _WrongCalls
        self.calls += calls * len(x)
        return self.model.model.process_latent_in(ends.float().cpu())


def _may_differ_by_image(conditioning: Any) -> bool:
    """Whether a conditioning has a ControlNet or an entry per image."""
    values = [value for cond, options in conditioning for value in (cond, *options.values())]
    batched = any(isinstance(value, Tensor) and value.ndim > 0 and len(value) > 1 for value in values)
    return batched or any("control" in options for _, options in conditioning)
