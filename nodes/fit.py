"""The `Fit Learned Solver` node: learns a solver for the model that is wired in, with forward passes only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..samplers.comfy_models import model_family, pixel_size
from ..samplers.families import FAMILIES
from ..samplers.guidance import of_samples, spread
from .fitting import Fit, Wanted, claimed
from .inputs import (
    CATEGORY,
    SolverName,
    cfg_input,
    check_number,
    counts_of,
    latent_input,
    model_input,
    negative_input,
    seed_input,
)
from .inside_guider import with_denoiser
from .latents import fixed_latent
from .new_file import model_file, path_of_new, refuse_existing
from .picture_grid import Cell, Column, draw_grid
from .pictures import pictures_of
from .plan import guidance_of

__all__ = ["FitLearnedSolver"]

TEACHERS = ("heun", "dpmpp_2m", "ipndm", "euler")
CFG_RANGE = 0.33  # of cfg, to both sides
_written: dict[tuple[str, ...], Path] = {}  # what the last fit of a node and its file widgets wrote
_missing: dict[tuple[str, ...], int] = {}  # how often that was gone when it was asked for again


class FitLearnedSolver:
    """A solver file fitted to the model that is wired in."""

    TITLE = "Fit Learned Solver"
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Learns a solver for the model that is wired in, as it is: quantised, patched with LoRAs, offloaded. Forward "
        "passes only, at the memory that sampling takes. Writes a file into models/solver_weights, which is in the "
        "drop-downs at once. An interrupt writes nothing."
    )
    RETURN_TYPES = (SolverName("STRING,COMBO"), "IMAGE", "STRING")
    RETURN_NAMES = ("solver", "comparison", "report")
    OUTPUT_TOOLTIPS = (
        "The file's entry in the drop-downs; may be wired into a solver input.",
        "Held-out starts: the teacher, and per step count the best classical solver and the new one.",
        "Errors per step count beside the classical solvers', and where the file is.",
    )
    FUNCTION = "fit"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's
        return {
            "required": {
                "model": model_input("The model to fit to, with all its patches."),
                "positive": (
                    "CONDITIONING",
                    {
                        "tooltip": "Prompts to fit with. A batch of prompts is spread over the samples; several "
                        "entries (ConditioningCombine) are combined, as in sampling."
                    },
                ),
                "negative": negative_input(),
                "latent": latent_input(
                    "Only its size counts. Its batch is how many samples one model call has: 1 takes the least memory."
                ),
                "cfg": cfg_input("The guidance that the solver is to be used at, or near; 1 for FLUX and its like."),
                "family": (
                    list(FAMILIES),
                    {"tooltip": "dyweight learns more numbers and is usually the better; ds has the simpler form."},
                ),
                "steps": (
                    "STRING",
                    {"default": "4 6 8", "tooltip": "Numbers of model calls to fit for, such as 4 6 8."},
                ),
                "samples": (
                    "INT",
                    {
                        "default": 48,
                        "min": 2,
                        "max": 4096,
                        "tooltip": "Noises to fit to; a third as many more judge the result. 32 to 64 are enough; 256 "
                        "and more take longer and mostly come nearer, as steps use a longer history then.",
                    },
                ),
                "teacher": (
                    list(TEACHERS),
                    {"tooltip": "The many-step solver to come close to. heun makes two model calls per step."},
                ),
                "teacher_steps": (
                    "INT",
                    {"default": 30, "min": 2, "max": 1000, "tooltip": "Steps of the teacher, for each sample."},
                ),
                "seed": seed_input("The noises to fit to.", again=False),
                "file_name": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "File to write in models/solver_weights, such as dyweight_my-model or "
                        "mine/my-model. Empty: the family and the model file's name.",
                    },
                ),
                "overwrite": (
                    "BOOLEAN",
                    {"default": False, "tooltip": "Replace a file of that name. Off: it is an error if there is one."},
                ),
            },
            "optional": {
                "vae": ("VAE", {"tooltip": "For the comparison's pictures; without it they are latent previews."}),
                "cfg_range": (
                    "FLOAT",
                    {
                        "default": CFG_RANGE,
                        "min": 0.0,
                        "max": 0.9,
                        "step": 0.01,
                        "tooltip": "How far the solver is to hold around cfg: 0.33 fits to samples at two thirds of "
                        "it, at cfg and at four thirds, in turn. 0: at cfg alone.",
                    },
                ),
            },
            "hidden": {"node_id": "UNIQUE_ID", "prompt": "PROMPT"},
        }

    @classmethod
    def IS_CHANGED(cls, family: str = "", file_name: str = "", node_id: str | None = None, **_: Any) -> int:
        """Makes the host run a fit again whose file is gone; otherwise it would keep to the result that it has."""
        own = (str(node_id), family, file_name)
        if own in _written and not os.path.exists(_written[own]):  # unlike Path's, without an error for a lost drive
            del _written[own]
            _missing[own] = _missing.get(own, 0) + 1
        return _missing.get(own, 0)

    def fit(
        self,
        model: Any,
        positive: Any,
        negative: Any,
        latent: dict[str, Any],
        cfg: float,
        family: str,
        steps: str,
        samples: int,
        teacher: str,
        teacher_steps: int,
        seed: int,
        file_name: str,
        overwrite: bool,
        vae: Any = None,
        cfg_range: float = CFG_RANGE,
        node_id: str | None = None,
        prompt: Any = None,
    ) -> dict[str, Any]:
        """Returns the file's drop-down entry, the comparison and the report, after writing the file."""
        check_number("samples", samples, 2, 4096)
        check_number("teacher_steps", teacher_steps, 2, 1000)
        check_number("cfg", cfg, 0, 100)
        check_number("cfg_range", cfg_range, 0, 0.9)
        cfgs = spread(cfg, cfg_range)
        of_samples(cfgs, samples)  # refuses too few
        wanted = Wanted(family, counts_of(steps), samples, teacher, teacher_steps, seed)
        checkpoint = model_file(prompt, node_id) or "unknown"
        path, entry = path_of_new(file_name.strip() or f"{family}_{checkpoint}", overwrite)
        with claimed(path, entry):
            refuse_existing(path, overwrite)  # by a fit that has just ended
            empty = _empty(model, latent)
            card = {
                "model_family": model_family(model.model),
                "checkpoint": checkpoint,
                "guidance": guidance_of(model.model, [cond[1] for cond in positive], *cfgs),
                "resolution": pixel_size(model.model, empty.shape) or "",
            }
            fit = Fit(model, empty, wanted, card, node_id)
            result, ends = with_denoiser(fit.run, model, positive, negative, cfgs, empty, seed=seed, called=fit.called)
            result.solver.save(path, overwrite=overwrite)
            _written[str(node_id), family, file_name] = path
        report = f"{fit.report(result)}\n\nwritten: {path}"
        fit.say(f"written: {entry}")
        picture = _compared(f"{path.stem}: the same noise, the same model", model, ends, vae)
        return {"ui": {"text": (report,)}, "result": (entry, picture, report)}


def _empty(model: Any, latent: dict[str, Any]) -> Tensor:
    """Returns an empty latent of the size and batch that are wired in.

    Raises:
        ValueError: It holds picture and sound together.
    """
    samples = latent["samples"]
    if getattr(samples, "is_nested", False):
        raise ValueError(
            "this latent holds picture and sound together, one error cannot judge both: take a solver that transfers, "
            "such as ds_flow-sit, in place of a fit"
        )
    return fixed_latent(model, {**latent, "samples": torch.zeros_like(samples)})["samples"]


def _compared(title: str, model: Any, ends: list[tuple[Column, Tensor]], vae: Any) -> Tensor:
    """Returns the grid: a row per start, a column per solver, each with its distance to the teacher."""
    goal = ends[0][1]
    pictures = [pictures_of(model, end, vae) for _, end in ends]
    rows = []
    for i in range(len(goal)):
        errors = [float((end[i] - goal[i]).cpu().double().square().mean().sqrt()) for _, end in ends]
        captions = ["", *(f"error {error:.4f}" for error in errors[1:])]
        rows.append(("", [Cell(p[i], caption) for p, caption in zip(pictures, captions, strict=True)]))
    return draw_grid(title, [column for column, _ in ends], rows)
