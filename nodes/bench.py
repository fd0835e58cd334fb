"""Samplers side by side: learned and stock ones on the same noise, model and conditioning, at counted calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
from torch import Tensor

from .dropdown import SAMPLERS
from .plan import Plan, plan
from .sampling import sample_learned_solver

__all__ = ["Bench", "Run"]


@dataclass(frozen=True, eq=False)
class Run:
    """One sampler's result: end states in the model's scale, or why there are none."""

    name: str
    calls: int
    states: Tensor | None
    ours: bool = False
    refusal: str = ""
    file: str = ""  # which solver file `auto` took

    def errors(self, goal: Tensor) -> list[float]:
        """Returns the root mean square distance of each picture to the goal."""
        if self.states is None:
            return []
        return (self.states - goal).cpu().double().flatten(1).square().mean(1).sqrt().tolist()

    def error(self, goal: Tensor) -> float:
        """Returns the root mean square distance over all pictures."""
        if self.states is None:
            return float("inf")
        return float((self.states - goal).cpu().double().square().mean().sqrt())


class _TooManyCalls(Exception):
    pass


class _CountingGuider(comfy.samplers.CFGGuider):
    """The stock guider; counts model calls, and stops where they are too many."""

    calls = 0
    most: int | None = None

    def predict_noise(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.calls == self.most:
            raise _TooManyCalls
        self.calls += 1
        return super().predict_noise(*args, **kwargs)


class Bench:
    """The same noise, model and conditioning for every sampler."""

    def __init__(self, model: Any, positive: Any, negative: Any, cfg: float, seed: int, latent: dict[str, Any]) -> None:
        self.model, self.positive, self.negative, self.cfg, self.seed = model, positive, negative, cfg, seed
        self.latent = latent["samples"]
        self.noise = comfy.sample.prepare_noise(self.latent, seed, latent.get("batch_index"))

    def plan(self, entry: str, steps: int) -> Plan | str:
        """Returns what a solver file, or the automatic choice, would run, or why it cannot."""
        try:
            return plan(self.model, entry, steps, shape=self.latent.shape)
        except ValueError as error:
            return str(error)

    def learned(self, entry: str, made: Plan | str) -> Run:
        """Returns the result of what was planned for a drop-down entry."""
        if isinstance(made, str):
            return Run(entry, 0, None, ours=True, refusal=made)
        sampler = comfy.samplers.KSAMPLER(sample_learned_solver, made.options)
        states, calls = self._run(sampler, made.table.levels.float(), None)
        return Run(entry, calls, states, ours=True, file="" if entry == made.solver.name else made.solver.name)

    def stock(self, sampler: str, scheduler: str, steps: int, most: int | None) -> Run:
        """Returns the result of a stock sampler: with as many steps as make at most so many model calls.

        One of ours has a refusal where it has not the steps; as the teacher, which has no such limit, it raises it.
        """
        tried = [steps] if most is None else dict.fromkeys([steps, steps - 1, (steps + 1) // 2, (steps + 2) // 3, 1])
        for count in (n for n in tried if n > 0):
            host = comfy.samplers.KSampler(
                self.model, count, self.model.load_device, sampler, scheduler, 1.0, self.model.model_options
            )
            try:
                states, calls = self._run(comfy.samplers.sampler_object(sampler), host.sigmas, most)
            except _TooManyCalls:
                continue
            except ValueError as error:
                if most is None or sampler not in SAMPLERS.values():
                    raise
                return Run(f"{sampler}/{scheduler}", 0, None, refusal=str(error))
            if calls > 0:  # dpm_adaptive makes none where its first level is its last
                return Run(f"{sampler}/{scheduler}", calls, states)
        return Run(f"{sampler}/{scheduler}", 0, None, refusal=f"cannot sample in {most} model calls")

    def _run(self, sampler: Any, sigmas: Tensor, most: int | None) -> tuple[Tensor, int]:
        guider = _CountingGuider(self.model)
        guider.most = most
        guider.set_conds(self.positive, self.negative)
        guider.set_cfg(self.cfg)
        end = guider.sample(self.noise, self.latent, sampler, sigmas, disable_pbar=True, seed=self.seed)
        return self.model.model.process_latent_in(end.float().cpu()), guider.calls
