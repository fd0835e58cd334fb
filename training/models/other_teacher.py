"""Another model as the teacher, or the same one at another guidance: its end states are computed before the fit.

So only one model is loaded at a time. The student may be quantised, carry a LoRA or run without CFG; both share the
latent space, the noise schedule and the conditioning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...samplers.comfy_models import architecture_name, embeds_guidance, noise_of
from ...samplers.comfy_obstacles import obstacles_of
from ...samplers.guidance import Guidance
from ...samplers.schedules import Noise
from ..data.processes import Processes
from ..data.samples import CountedDenoiser, Samples
from ..data.teacher import Recipe, Teacher
from ..job import FitJob, FitSettings, check_calls
from ..meter import Meter
from .guider import EncodedPrompts, WiredConditioning, host_memory, with_denoiser

__all__ = ["OtherTeacher", "make_job"]


def make_job(
    settings: FitSettings,
    samples: Samples,
    noise: Noise,
    card: Mapping[str, Any],
    patcher: Any,
    *,
    conds: Sequence[Mapping[str, Any]] = (),
    teacher_patcher: Any = None,
    teacher_guidance: float | None = None,
) -> tuple[FitJob, OtherTeacher | None]:
    """The job of a ModelPatcher's fit, and its teacher if that is another model, or the same at another guidance.

    `conds`: entries of the conditioning, without their tensors.

    Raises:
        ValueError: A model cannot be fitted, see `obstacles_of`, or the teacher does not suit it.
    """
    for model in (patcher, teacher_patcher or patcher):
        for obstacle in obstacles_of(model, conds):
            raise ValueError(obstacle.refusal)
    if teacher_patcher is None and teacher_guidance is None:
        return FitJob(settings, samples, noise, card), None
    assert isinstance(settings.teacher, Teacher | Recipe)  # see FitSettings
    shape = [1, *samples.x.shape[1:]]
    other = OtherTeacher(teacher_patcher or patcher, settings.teacher, shape, teacher_guidance)
    job = FitJob(replace(settings, teacher=other.recipe), samples, noise, card)
    other.check(job, patcher)
    return job, other


@dataclass(eq=False)
class OtherTeacher:
    """A teacher on another model.

    Args:
        patcher: ComfyUI's ModelPatcher of the teacher.
        teacher: What runs on it; a recipe must have been made for it.
        shape: Of one latent, [1, C, ..., H, W].
        guidance: Its guidance at every knot, CFG or embedded as it has it; None: that of the knot.
    """

    patcher: Any
    teacher: Teacher | Recipe
    shape: Sequence[int]
    guidance: float | None = None
    _ends: dict[float | None, dict[int, Tensor]] = field(default_factory=dict)  # None: at the usual guidance

    @property
    def recipe(self) -> Recipe:
        """The teacher of the fit, which looks up what `run` computed."""
        suffix = "" if self.guidance is None else f" at guidance {self.guidance:g}"
        return Recipe(self.teacher.name + suffix, self.teacher.steps, 0, self._look_up)

    def _look_up(self, model: Any, x: Tensor, extra_args: Mapping[str, Any]) -> Tensor:
        ends = self._ends[self._key(extra_args.get("guidance"))]
        return torch.stack([ends[row] for row in extra_args["row"]]).to(x)

    def _key(self, knot: float | None) -> float | None:
        return knot if self.guidance is None else self.guidance

    def check(self, job: FitJob, student: Any) -> None:
        """Refuses a teacher whose end states mean nothing to the student, a ModelPatcher."""
        formats = [type(patcher.model.latent_format).__name__ for patcher in (student, self.patcher)]
        schedules = [patcher.get_model_object("model_sampling") for patcher in (student, self.patcher)]
        kind = noise_of(self.patcher.model, schedules[1], self.shape).kind
        names = " and ".join(architecture_name(patcher.model) for patcher in (student, self.patcher))
        if formats[0] != formats[1]:
            raise ValueError(f"{names} have different latent spaces: choose a teacher with the model's own")
        levels = [float(sampling.sigma_max) for sampling in schedules]
        if kind != job.noise.kind or abs(levels[0] / levels[1] - 1) > 1e-3:
            raise ValueError(
                f"{names} start from different noise ({job.noise.kind} at {levels[0]:.4g}, {kind} at {levels[1]:.4g}): "
                "choose a teacher with the model's own schedule"
            )
        check_calls(self.teacher, job.settings.steps[-1])
        fitted = job.card["guidance"].kind
        if self.guidance is None and fitted != self._kind:
            raise ValueError(
                f"the model has {fitted} guidance, the teacher {self._kind}: specify the teacher's guidance"
            )

    @property
    def _kind(self) -> str:
        base = self.patcher.model
        return "embedded" if embeds_guidance(base) else "cfg"

    def _rows(self, job: FitJob) -> dict[float | None, list[int]]:
        """The samples that the fit may ask for, by guidance."""
        held_out = range(job.fitted, len(job.samples))
        rows: dict[float | None, set[int]] = {self._usual_of(job): set(held_out)}
        for place, knot in enumerate(job.settings.guidance):
            fitted = job.samples_at(first_knot=place == job.first_knot)
            rows.setdefault(self._key(knot), set()).update(range(fitted), held_out)
        return {value: sorted(numbers) for value, numbers in rows.items()}

    def _usual_of(self, job: FitJob) -> float | None:
        return self._key(job.card["guidance"].default)

    def calls(self, job: FitJob) -> int:
        """Network calls of `run`, one per sample and call."""
        pilot = self.teacher.pilot_calls if isinstance(self.teacher, Teacher) else 0
        return sum(pilot + self.teacher.calls * len(rows) for rows in self._rows(job).values())

    def run(
        self,
        job: FitJob,
        conditioning: WiredConditioning | EncodedPrompts,
        log: Callable[[str], None],
        *,
        meter: Meter,
        processes: Processes | None = None,
        cache: Path | None = None,
        seed: int = 0,
        latent: Any = None,
    ) -> None:
        """Computes the end states of all samples that a job may ask for, each process its share.

        `cache` is a folder for this teacher only, `latent` an empty latent for `with_denoiser`.
        """
        processes = processes or Processes()
        noise = noise_of(self.patcher.model, self.patcher.get_model_object("model_sampling"), self.shape)
        values = self._rows(job)
        numbers = tuple(sorted(value for value in values if value is not None))
        usual, cfg = job.card["guidance"], None
        if self._kind == "embedded":
            cfg = usual.cfg if usual.kind == "embedded" else 1.0
        microbatch = job.samples.microbatch

        def work(denoiser: Callable[..., Tensor], device: torch.device) -> None:
            model = CountedDenoiser(denoiser, job.samples.x.dtype, log, memory=host_memory(), on_call=meter.add)
            model.batch_limit.largest = min(model.batch_limit.largest, job.most_together)
            for value, rows in values.items():
                x = job.samples.x[torch.tensor(rows)]
                samples = Samples(x, {"row": rows, "guidance": value}, microbatch, device)
                samples = samples.grouped([conditioning.group_of(row) for row in rows])
                share = processes.share(samples)
                if isinstance(self.teacher, Recipe):
                    reference = self.teacher.reference(model, share, cache=cache)
                else:
                    levels = processes.from_first(self.teacher.grid(model, samples, noise))
                    reference = self.teacher.reference(model, share, noise, levels=levels, cache=cache)
                ends = processes.gather(reference.end, share, len(samples))
                self._ends[value] = dict(zip(samples.extra_args["row"], ends, strict=True))
                log(f"teacher: {len(rows)} samples" + (f" at guidance {value:g}" if value is not None else ""))

            self._ends[None] = self._ends[self._usual_of(job)]

        latent = torch.zeros([microbatch or 1, *self.shape[1:]]) if latent is None else latent
        with_denoiser(work, self.patcher, conditioning, Guidance(self._kind, numbers, cfg=cfg), latent, seed=seed)
