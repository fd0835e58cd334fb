"""The `Fit Learned Solver` node: learns a solver for the model that is wired in, with forward passes only."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.utils
import torch
from torch import Tensor

from ..samplers import sample_table
from ..samplers.guidance import of_samples, spread
from ..samplers.host_models import model_family, noise_of, pixel_size
from .grid import Cell, Column, draw_grid
from .host_text import show_text
from .inputs import (
    CATEGORY,
    SolverName,
    cfg_input,
    check_number,
    latent_input,
    model_input,
    negative_input,
    seed_input,
)
from .inside_guider import Denoiser, with_denoiser
from .ksampler import fixed_latent
from .new_file import guidance_of, model_file, path_of_new, refuse_existing
from .pictures import pictures_of

__all__ = ["FitLearnedSolver", "counts_of"]

FAMILIES = ("dyweight", "ds")
TEACHERS = ("heun", "dpmpp_2m", "ipndm", "euler")
CFG_RANGE = 0.33  # of cfg, to both sides
_ROOM = 2**20  # bytes that must be free: a file has 100 kB
_SHOWN = 3  # held-out starts in the picture
_LINES = 4  # of what the fit says, on the node


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
                        "tooltip": "Noises to fit to; a third as many more judge the result. 32 to 64 are enough.",
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
                        "it, at cfg and at four thirds, in turn. 0: at cfg alone, best there and worse at all others.",
                    },
                ),
            },
            "hidden": {"node_id": "UNIQUE_ID", "prompt": "PROMPT"},
        }

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
        from .. import training  # not needed by a server that only samples: loaded with the first fit

        check_number("samples", samples, 2, 4096)
        check_number("teacher_steps", teacher_steps, 2, 1000)
        check_number("cfg", cfg, 0, 100)
        check_number("cfg_range", cfg_range, 0, 0.9)
        cfgs = spread(cfg, cfg_range)
        of_samples(cfgs, samples)  # refuses too few
        wanted = _Wanted(family, counts_of(steps), samples, teacher, teacher_steps, seed)
        checkpoint = model_file(prompt, node_id) or "unknown"
        path, entry = path_of_new(file_name.strip() or f"{family}_{checkpoint}", overwrite)
        with training.claimed(path.with_suffix(".fit"), _ROOM, name=entry, remedy="choose another file_name"):
            refuse_existing(path, overwrite)  # by a fit that has just ended
            empty = _empty(model, latent)
            card = {
                "model_family": model_family(model.model),
                "checkpoint": checkpoint,
                "guidance": guidance_of(model.model, [cond[1] for cond in positive], *cfgs),
                "resolution": pixel_size(model.model, empty.shape) or "",
            }
            fit = _Fit(model, empty, wanted, card, node_id)
            result, ends = with_denoiser(
                fit.run, model, positive, negative, cfgs, empty, seed=seed, called=fit.called
            )  # fmt: skip
            result.solver.save(path, overwrite=overwrite)
        report = f"{fit.report(result)}\n\nwritten: {path}"
        fit.say(f"written: {entry}")
        picture = _compared(f"{path.stem}: the same noise, the same model", model, ends, vae)
        return {"ui": {"text": (report,)}, "result": (entry, picture, report)}


@dataclass(frozen=True)
class _Wanted:
    """What the widgets say."""

    family: str
    steps: tuple[int, ...]
    samples: int
    teacher: str
    teacher_steps: int
    seed: int


class _Fit:
    """One fit: what runs inside the guider, and what is told meanwhile."""

    def __init__(self, model: Any, empty: Tensor, wanted: _Wanted, card: dict[str, str], node_id: str | None) -> None:
        from .. import training

        self.training = training
        self.model, self.empty, self.wanted, self.card, self.node_id = model, empty, wanted, card, node_id
        self.noise = noise_of(model.model, model.get_model_object("model_sampling"), empty.shape)
        self.teacher = training.Teacher(wanted.teacher, wanted.teacher_steps)
        if self.teacher.calls <= max(wanted.steps):
            raise ValueError(
                f"the teacher must be better than what it teaches: {wanted.teacher} with {wanted.teacher_steps} steps "
                f"makes {self.teacher.calls} model calls, the solver is to make {max(wanted.steps)}; 28 to 100 "
                "teacher_steps are usual"
            )
        self.held = math.ceil(wanted.samples / 3)
        self.most = training.most_calls(
            wanted.steps, wanted.samples, self.held, self.noise, family=wanted.family, teacher=self.teacher
        )
        self.bar, self.calls, self.lines = comfy.utils.ProgressBar(self.most), 0, []

    def called(self, samples: int) -> None:
        self.calls += samples
        self.bar.update_absolute(min(self.calls, self.most), self.most)

    def say(self, line: str) -> None:
        self.lines = [*self.lines, line][-_LINES:]
        show_text("\n".join(self.lines), self.node_id)

    def report(self, result: Any) -> str:
        """Returns the table of errors, and where it would be better to take something else."""
        better = "\n".join(self.training.better_peers(result))
        return self.training.table_of(result) + (f"\n\n{better}" if better else "")

    def run(self, denoiser: Denoiser, device: torch.device) -> tuple[Any, list[tuple[Column, Tensor]]]:
        """Returns the fit's result, and end states of a few held-out starts per solver."""
        x = self._starts().to(device)
        rows = list(range(len(x)))
        self.say(f"at most {self.most:,} model calls")
        result = self.training.fit_solver(
            denoiser,
            x,
            noise=self.noise,
            family=self.wanted.family,
            steps=self.wanted.steps,
            teacher=self.wanted.teacher,
            teacher_steps=self.wanted.teacher_steps,
            extra_args={"row": rows},
            held_out=self.held,
            microbatch=len(self.empty),
            seed=self.wanted.seed,
            progress=self.say,
            card=self.card,
        )
        shown = min(_SHOWN, self.held)
        ends = self._ends(denoiser, x[-shown:], rows[-shown:], result)
        self.bar.update_absolute(self.most, self.most)
        return result, ends

    def _starts(self) -> Tensor:
        """Returns states at the model's highest noise level, as sampling starts from them."""
        sampling = self.model.get_model_object("model_sampling")
        zeros = self.empty[:1].expand(self.wanted.samples + self.held, *self.empty.shape[1:]).contiguous()
        noise = comfy.sample.prepare_noise(zeros, self.wanted.seed)
        return sampling.noise_scaling(sampling.sigma_max.detach().cpu().float(), noise.float(), zeros.float(), True)

    def _ends(self, denoiser: Denoiser, x: Tensor, rows: Sequence[int], result: Any) -> list[tuple[Column, Tensor]]:
        def each(run: Callable[[Tensor, dict[str, Any]], Tensor]) -> Tensor:
            return torch.cat([run(x[i : i + 1], {"row": [rows[i]]}) for i in range(len(x))])

        name = f"{self.wanted.teacher}, the teacher"
        ends = [
            (
                Column(name, f"{self.teacher.calls} calls"),
                each(lambda a, extra: self.teacher.end_of(denoiser, a, extra, self.noise)),
            )
        ]
        for steps, report in result.report.items():
            best = report.peers[0].name
            peer = next(c.table for c in self.training.candidates(steps, self.noise) if c.name == best)
            ours = result.solver.table(steps, self.noise)
            for column, table in (
                (Column(best, f"{peer.nfe} calls"), peer),
                (Column(f"fitted {self.wanted.family}", f"{steps} calls", ours=True), ours),
            ):
                end = each(lambda a, extra, table=table: sample_table(denoiser, a, table, extra, disable=True))
                ends.append((column, end))
        return ends


def counts_of(text: str) -> tuple[int, ...]:
    """Returns the step counts of a widget's text, ascending.

    Raises:
        ValueError: There is something else in it than counts from 1 to 100.
    """
    words = re.split(r"[\s,;]+", text.strip())
    if not all(re.fullmatch(r"[1-9]\d?|100", word) for word in words):
        raise ValueError(f"steps must be numbers of model calls from 1 to 100, such as 4 6 8, got {text!r}")
    return tuple(sorted({int(word) for word in words}))


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
        errors = [float((end[i] - goal[i]).double().square().mean().sqrt()) for _, end in ends]
        captions = ["", *(f"error {error:.4f}" for error in errors[1:])]
        rows.append(("", [Cell(p[i], caption) for p, caption in zip(pictures, captions, strict=True)]))
    return draw_grid(title, [column for column, _ in ends], rows)
