"""Remarks for the user about a solver on a model, the same in every host."""

from __future__ import annotations

from collections.abc import Iterable

from .choose import Checkpoint
from .files.solver import Solver
from .guidance import Guidance
from .schedules import Noise, VPNoise
from .text import format_list

__all__ = ["alternatives", "guidance_mismatch", "is_far_transfer", "mismatches", "notes"]

_FAR_SHIFT = 5.0  # Wan and HunyuanVideo; the transferable solvers were shown at 1 to 4
_SD_SIGMA_MAX = VPNoise.stable_diffusion().sigma_max


def mismatches(
    solver: Solver,
    steps: int,
    noise: Noise,
    *,
    architecture: str | None,
    checkpoint: Checkpoint | None = None,
    guidance: Guidance | None = None,
    size: str | None = None,
    shift: float | None = None,
) -> list[str]:
    """Differences between a solver's fit and a run, as clauses that follow the solver's name.

    Args:
        solver: The solver.
        steps: Steps of its whole grid.
        noise: The model's noise schedule.
        architecture: The model's architecture in ComfyUI's spelling; None if unknown.
        checkpoint: The model's weights; None if unknown.
        guidance: Guidance of the run; None if unknown.
        size: Size of the image, "512x512", or video, "832x480x81"; None if unknown.
        shift: Of a flow model's usual schedule; None if unknown.
    """
    card, facts = solver.card, []
    if card.architecture != architecture:
        used, advice = architecture or "another model", "compare with a stock sampler first"
        if is_far_transfer(solver, architecture, shift):
            used += f" with shift {shift:.3g}"
            advice = "nobody has shown that this works at such a shift; fit a solver for this model"
        facts.append(f"fitted for {card.checkpoint}, you use {used} (transfer): {advice}")
    elif checkpoint is not None:
        if mismatch := _boundary_mismatch(card.boundary, checkpoint.boundary):
            facts.append(mismatch)
        if checkpoint.likeness(solver) < 0:
            facts.append(f"fitted for {card.checkpoint}, you use another {architecture} checkpoint")
    if noise.kind == "vp" and abs(noise.sigma_max / _SD_SIGMA_MAX - 1) > 0.01:
        facts.append(
            f"this model's noise starts at sigma {noise.sigma_max:.4g}, but Stable Diffusion's at {_SD_SIGMA_MAX:.4g}: "
            "compare with a stock sampler first"
        )
    if mismatch := guidance_mismatch(solver, steps, guidance):
        facts.append(mismatch)
    if size and card.resolution and size != card.resolution:
        facts.append(f"fitted at {card.resolution}, you use {size}")
    return facts


def _boundary_mismatch(fitted: float | None, used: float | None) -> str | None:
    """A clause on one or two models, and the noise level at which they change; None if both are the same."""
    if fitted == used:
        return None
    if used is None:
        return (
            f"fitted for two models that change at sigma {fitted:g}, you use one: in ComfyUI, connect both with Join "
            "Experts. In two sampler nodes the second model starts without the calls of the first"
        )
    before = "one model" if fitted is None else f"a change at sigma {fitted:g}"
    return f"fitted for {before}, you use two models that change at sigma {used:g}"


def is_far_transfer(solver: Solver, architecture: str | None, shift: float | None) -> bool:
    """Whether a solver of another architecture runs on a flow model with a larger shift than any it was shown at."""
    return solver.card.architecture != architecture and shift is not None and shift >= _FAR_SHIFT


def alternatives(solvers: Iterable[Solver], chosen: Solver, steps: int, architecture: str | None) -> list[str]:
    """A clause with the other solvers of these steps for an architecture; none without them."""
    names = [
        s.name
        for s in solvers
        if s.name != chosen.name and steps in s.steps
        and (s.card.architecture, s.prediction) == (architecture, chosen.prediction)
    ]  # fmt: skip
    return [f"also fitted for {architecture}: {format_list(names)}"] if names else []


def guidance_mismatch(solver: Solver, steps: int, guidance: Guidance | None) -> str | None:
    """A clause on how a run's guidance differs from the fit's; None if it does not differ or the fit's is unknown.

    For a solver with several knots the clause says which parameters are used.
    """
    fitted, step = solver.card.guidance_of(steps), solver.card.steps[steps]
    if fitted is None or fitted.kind == "none" or (guidance is not None and fitted.covers(guidance)):
        return None
    if guidance is None:
        if len(step.knots) > 1:
            usual = f"{fitted.default:g}"
            return f"fitted at {fitted}; the sampler uses your guidance if it is a single number, otherwise {usual}"
        return f"fitted at {fitted}, but the guidance of this run is unknown"
    value, used = solver.guidance_of(guidance), ""
    if len(step.knots) > 1:
        lowest, highest = step.knots[0], step.knots[-1]
        if value is None:
            used = ": the usual parameters are used"
        elif not lowest <= value <= highest:
            used = f": the parameters for {min(max(value, lowest), highest):g} are used"
    run = f"{guidance.values[0]:g}" if guidance.kind == fitted.kind == "cfg" and guidance.values else guidance
    return f"fitted at {fitted}, you use {run}{used}"


def notes(solver: Solver, steps: int) -> list[str]:
    """The card's notes on the solver and on a step count."""
    return [note for note in (solver.card.note, solver.card.steps[steps].note) if note]
