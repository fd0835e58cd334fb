"""Two ComfyUI models as one: an expert for high noise levels and one for low ones, as in Wan 2.2 14B.

Nothing is imported from ComfyUI; the caller must have imported its samplers.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .comfy_models import architecture_name

__all__ = ["boundary_of", "join_experts", "second_of"]

_KEY = "learned_solver_experts"


def join_experts(high: Any, low: Any, boundary: float) -> Any:
    """A clone of the ModelPatcher `high` that calls `low` below the noise level `boundary`.

    It is one function of state and level, for any sampler. Each model keeps its own patches; `high` has the noise
    schedule. The host loads a model before its first call after the other's, and makes room for it by moving the other
    out only where both do not fit.

    Raises:
        ValueError: The architectures differ, or the boundary is not between the model's noise levels.
    """
    names = architecture_name(high.model), architecture_name(low.model)
    if names[0] != names[1]:
        raise ValueError(f"{names[0]} and {names[1]} differ in architecture: connect the two experts of one model")
    sampling = high.get_model_object("model_sampling")
    lowest, highest = float(sampling.sigma_min), float(sampling.sigma_max)
    if not lowest < boundary < highest:
        raise ValueError(
            f"the boundary must be a noise level between {lowest:.4g} and {highest:.4g}, got {boundary:g}: use 0.875 "
            "for Wan 2.2 text to video, 0.9 for image to video"
        )
    joined, experts = high.clone(), _Experts(low, boundary)
    for kind, wrapper in (("outer_sample", experts.sample), ("predict_noise", experts.predict)):
        joined.remove_wrappers_with_key(kind, _KEY)
        joined.add_wrapper_with_key(kind, _KEY, wrapper)
    return joined


def boundary_of(patcher: Any) -> float | None:
    """The noise level below which a joined ModelPatcher calls its second model; None for a single model."""
    experts = _experts_of(patcher)
    return None if experts is None else experts.boundary


def second_of(patcher: Any) -> Any:
    """The ModelPatcher of a joined one for low noise levels; None for a single model."""
    experts = _experts_of(patcher)
    return None if experts is None else experts.low


def _experts_of(patcher: Any) -> _Experts | None:
    wrappers = patcher.get_wrappers("predict_noise", _KEY) if hasattr(patcher, "get_wrappers") else []
    return wrappers[0].__self__ if wrappers else None


class _Experts:
    """The wrappers of a joined model; between them they hold what one run needs of the second model."""

    def __init__(self, low: Any, boundary: float) -> None:
        self.low, self.boundary = low, boundary
        self.options: dict[str, Any] | None = None  # the second model's, while a run uses it
        self.is_low = False

    def sample(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        """A run of the sampler."""
        self.is_low = False  # the host has loaded the first model
        try:
            return executor(*args, **kwargs)
        finally:
            if self.options is not None:  # as the host's guider ends a run
                self.low.cleanup()
                sys.modules["comfy.samplers"].cast_to_load_options(self.options, device=self.low.offload_device)
                self.low.restore_hook_patches()
                self.options = None

    def predict(
        self, executor: Any, x: Tensor, timestep: Tensor, model_options: Mapping[str, Any], seed: int | None = None
    ) -> Tensor:
        """A call of the guider, whatever it is, on the model for this noise level."""
        guider = executor.class_obj
        is_low = float(timestep[0]) < self.boundary
        if is_low != self.is_low:
            self._load(guider, x, is_low)
            self.is_low = is_low
        if not is_low:
            return executor(x, timestep, model_options, seed)
        assert self.options is not None
        high, options = guider.inner_model, sys.modules["comfy.model_patcher"].create_model_options_clone(self.options)
        _add_changes(options, guider.model_options, model_options)
        guider.inner_model = self.low.model
        try:
            return executor(x, timestep, options, seed)
        finally:
            guider.inner_model = high

    def _load(self, guider: Any, x: Tensor, is_low: bool) -> None:
        """Loads a model as the host's guider begins a run, which may move the other one out of memory."""
        low, conds = self.low, guider.conds
        helpers, samplers = (sys.modules[f"comfy.{name}"] for name in ("sampler_helpers", "samplers"))
        if not is_low:
            helpers.prepare_sampling(guider.model_patcher, x.shape, conds, guider.model_options)
            return
        options = self.options
        if options is None:
            options = sys.modules["comfy.model_patcher"].create_model_options_clone(low.model_options)
            helpers.prepare_model_patcher(low, conds, options)
        helpers.prepare_sampling(low, x.shape, conds, options)
        if self.options is None:
            samplers.cast_to_load_options(options, device=low.load_device, dtype=low.model_dtype())
            low.model.latent_shapes = getattr(guider.inner_model, "latent_shapes", None)
            low.pre_run()
            self.options = options


def _add_changes(options: dict[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Adds to `options` what a sampler has changed in the first model's from `before` to `after`."""
    for name, value in after.items():
        old = before.get(name)
        if isinstance(value, dict):
            _add_changes(options.setdefault(name, {}), old if isinstance(old, dict) else {}, value)
        elif isinstance(value, list):
            existing = old if isinstance(old, list) else []
            options[name] = [*options.get(name, []), *(v for v in value if not any(v is w for w in existing))]
        elif value is not old:
            options[name] = value
