"""What makes a ComfyUI model more than a function of state and noise level, where its objects say so.

A fit refuses it; at sampling, what hurts is a remark. What nothing names is found by calling the model, see
training/data/probe.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from .comfy_experts import second_of
from .comfy_models import architecture_name

__all__ = ["Obstacle", "obstacles_of"]

_CACHES = {  # part of a name that a node leaves on the model: its cache
    "lazycache": "LazyCache",
    "easycache": "EasyCache",
    "teacache": "TeaCache",
    "rel_l1_thresh": "TeaCache",
    "cache_device": "TeaCache",
    "magcache": "MagCache",
    "fbcache": "a first-block cache",
}
_PURE_CACHES = {"animate2_cache"}  # of the pose video, which is the same in all calls


class Obstacle(NamedTuple):
    """What keeps a model from being fitted.

    Attributes:
        fact: What is there.
        reason: What it does to a fit.
        remedy: A sentence.
        at_sampling: What it does to a solver with few steps, and the remedy; empty if nothing.
    """

    fact: str
    reason: str
    remedy: str
    at_sampling: str = ""

    @property
    def refusal(self) -> str:
        """The message of a fit."""
        return f"{self.fact}: {self.reason}, so nothing can be fitted. {self.remedy}"


def obstacles_of(patcher: Any, conds: Iterable[Mapping[str, Any]] = ()) -> list[Obstacle]:
    """The obstacles on a ModelPatcher and its second expert, and in entries of a conditioning without their tensors."""
    models, conds = [model for model in (patcher, second_of(patcher)) if model is not None], [*conds]
    obstacles = [*dict.fromkeys(obstacle for model in models for obstacle in _model_obstacles(model))]
    if any(_has_keyframes(hook) for cond in conds for hook in getattr(cond.get("hooks"), "hooks", ())):
        fact, reason = "the conditioning has hook keyframes (a scheduled LoRA)", "they only move forward"
        obstacles.append(Obstacle(fact, reason, "Fit without Set Hook Keyframes"))
    if (pictures := max((len(hint) for cond in conds for hint in _hints(cond.get("control"))), default=1)) > 1:
        fact, reason = f"a ControlNet has {pictures} pictures", "the host takes them by a sample's place in a call"
        obstacles.append(Obstacle(fact, reason, "Fit with one picture"))
    return obstacles


def _model_obstacles(patcher: Any) -> list[Obstacle]:
    obstacles = [
        Obstacle(
            f"{name} is on this model",
            "it reuses earlier calls",
            "Remove it for the fit",
            "it skips model calls, and a solver with few steps needs each of them; remove it",
        )
        for name in _caches(patcher)
    ]
    if patcher.model_options.get("context_handler") is not None:
        fact, reason = "context windows are on this model", "they move from step to step"
        obstacles.append(Obstacle(fact, reason, "Fit without them, on a latent that the model takes whole"))
    if video := _video_of_batch(patcher):
        fact = f"{video} takes a batch as the frames of one video, not as samples"
        reason = "the samples of a fit would mix"
        obstacles.append(Obstacle(fact, reason, "Use a solver that transfers, or a stock sampler"))
    if getattr(patcher.model.diffusion_model, "time_r_in", None) is not None:
        fact, reason = "this is a MeanFlow model", "it needs the next noise level too"
        at_sampling = "its steps are Euler's, which no learned solver takes; compare with euler first"
        obstacles.append(Obstacle(fact, reason, "Use its own sampler", at_sampling))
    return obstacles


def _video_of_batch(patcher: Any) -> str | None:
    """The model for which a batch is the frames of a video; None for other models."""
    if getattr(patcher.model.model_config, "unet_config", {}).get("use_temporal_attention"):
        return architecture_name(patcher.model)  # SVD and SV3D
    return "AnimateDiff" if getattr(patcher, "additional_models", {}).get("ADE") else None


def _caches(patcher: Any) -> list[str]:
    """The names of the caches on a ModelPatcher."""
    options, network = patcher.model_options, patcher.model.diffusion_model
    names = []
    for key, value in options.get("transformer_options", {}).items():
        text = f"{type(value).__name__} {key}".lower()
        cache = _known_cache(text)
        if cache or ("cache" in text and key not in _PURE_CACHES):
            names.append(cache or f"a cache ({key})")
    names.append(_known_cache(getattr(options.get("model_function_wrapper"), "__qualname__", "").lower()))
    if getattr(getattr(network, "model", None), "_is_cached", False):
        names.append("Nunchaku's first-block cache")
    return [*dict.fromkeys(filter(None, names))]


def _known_cache(text: str) -> str:
    return next((name for part, name in _CACHES.items() if part in text), "")


def _has_keyframes(hook: Any) -> bool:
    """Whether a hook's strength changes during a run."""
    frames = getattr(getattr(hook, "hook_keyframe", None), "keyframes", ())
    return len({frame.strength for frame in frames}) > 1


def _hints(control: Any) -> Iterator[Any]:
    """The pictures of a ControlNet and of those before it, each [P, C, H, W]."""
    while control is not None:
        if (hint := getattr(control, "cond_hint_original", None)) is not None:
            yield hint
        control = getattr(control, "previous_controlnet", None)
