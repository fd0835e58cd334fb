"""What does not match between a solver and the job it is given to: run all the same, and said."""

from __future__ import annotations

from typing import Any

from ..samplers import Solver, VPNoise
from ..samplers.guidance import values_of
from ..samplers.schedules import Noise

__all__ = ["remarks_on"]

_SD_SIGMA_MAX = VPNoise.stable_diffusion().sigma_max


def remarks_on(solver: Solver, steps: int, p: Any, noise: Noise, architecture: str | None) -> list[str]:
    """Returns what does not match, and what the card wants to be known, in sentences that begin with the file's name.

    Args:
        solver: What will run.
        steps: Steps of its whole grid.
        p: The WebUI's job.
        noise: The model's noise schedule.
        architecture: The model's, in ComfyUI's spelling.
    """
    card, remarks = solver.card, []
    if card.model_family != architecture:
        remarks.append(
            f"was fitted for {card.checkpoint}, this model is {architecture or 'another'}: a transfer, compare it"
        )
    if isinstance(noise, VPNoise) and abs(noise.sigma_max / _SD_SIGMA_MAX - 1) > 0.01:
        remarks.append(
            f"meets a model whose noise starts at sigma {noise.sigma_max:.4g}, Stable Diffusion's at "
            f"{_SD_SIGMA_MAX:.4g} (zero terminal SNR?): a transfer, compare it"
        )
    if difference := _other_guidance(card.guidance, p):
        remarks.append(f"was fitted at guidance {card.guidance}, {difference}")
    width, height = (p.hr_upscale_to_x, p.hr_upscale_to_y) if p.is_hr_pass else (p.width, p.height)
    if card.resolution and card.resolution != f"{width}x{height}":
        remarks.append(f"was fitted at {card.resolution}, this picture is {width}x{height}")
    return [f"{solver.name} {text}" for text in (*remarks, *_notes(solver, steps))]


def _notes(solver: Solver, steps: int) -> list[str]:
    return [f"({note})" for note in (solver.card.note, solver.card.steps[steps].note) if note]


def _other_guidance(fitted: str, p: Any) -> str | None:
    """Returns what this job's guidance is, where the card names numbers and it is not within them."""
    values = values_of(fitted)
    if not values:
        return None
    distilled = "distilled" in fitted
    own = _guidance(p, distilled)
    if own is None or min(values) - 1e-6 < own < max(values) + 1e-6:
        return None
    return f"{'distilled CFG scale' if distilled else 'CFG scale'} here is {own:g}"


def _guidance(p: Any, distilled: bool) -> float | None:
    if p.is_hr_pass:  # Forge has a guidance of its own for the second pass
        return getattr(p, "hr_distilled_cfg" if distilled else "hr_cfg", None if distilled else p.cfg_scale)
    return getattr(p, "distilled_cfg_scale", None) if distilled else p.cfg_scale
