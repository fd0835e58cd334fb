"""One fit inside ComfyUI: its widgets, its file, and the work done while the model is loaded.

A server that only samples loads nothing of training/, which is imported when a fit begins.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ..samplers.comfy_experts import boundary_of
from ..samplers.comfy_models import architecture_name, fingerprint, model_architecture, noise_of, pixel_size
from ..samplers.files.solver import SUFFIX
from ..samplers.files.write import check_name, has_suffix
from ..samplers.guidance import Guidance
from ..samplers.text import printable
from .base import check_number, counts_of, fixed_latent, show_text
from .folder import FOLDER
from .pictures import pictures_of, to_image
from .sampling import guidance_of

if TYPE_CHECKING:
    from ..training.comparison.measure import Result
    from ..training.meter import Meter
    from ..training.report import FitResult
    from ..training.store.output import Output

__all__ = ["FitWidgets", "NodeFit", "Outputs", "finished_outputs", "output_of", "path_of_new"]

Outputs = tuple[Tensor, str]
"""The comparison as an IMAGE, and the report."""
_PICTURES = 3  # held-out starts drawn in the image
_AS_TODAY = (
    "connect KSamplerSelect ({sampler}) to sampler and BasicScheduler ({scheduler}, {steps} steps) to sigmas, and set "
    "steps to {fewer}"
)
_TEXT_SECONDS = 5  # after which the text on the node is renewed
_log = logging.getLogger("learned_solvers")
_LONGEST_NAME = 200  # bytes; operating systems allow 255, suffix included


@dataclass(frozen=True)
class FitWidgets:
    """The node's widgets."""

    cfg: float
    family: str
    steps: str
    samples: int
    teacher: str
    teacher_steps: int
    seed: int
    file_name: str
    overwrite: bool
    effort: str = "default"
    guidance: str = ""
    teacher_cfg: float = 0.0
    loss: str = "l2"

    def __post_init__(self) -> None:
        if self.samples:
            check_number("samples", self.samples, 2, 4096)
        if self.teacher_steps:
            check_number("teacher_steps", self.teacher_steps, 2, 1000)
        check_number("cfg", self.cfg, 0, 100)
        check_number("teacher_cfg", self.teacher_cfg, 0, 100)


class NodeFit:
    """A fit for a MODEL, with its log shown on the node; the batch of `latent` is that of a model call."""

    def __init__(
        self,
        model: Any,
        positive: Any,
        negative: Any,
        latent: Mapping[str, Any],
        widgets: FitWidgets,
        checkpoint: str,
        fit_id: str,
        node_id: str | None,
        recipe: tuple[Any, Any],
        teacher_model: Any = None,
        vae: Any = None,
        names: Sequence[str] = (),
    ) -> None:
        from ..training import EFFORTS, FitSettings, most_calls
        from ..training.cost import usual_calls, work_bytes
        from ..training.data.batch_limit import MEASURED
        from ..training.data.samples import Samples
        from ..training.meter import Meter
        from ..training.models.comfy_samplers import usual_sampler
        from ..training.models.distilled import distilled_remark
        from ..training.models.guider import WiredConditioning, draw_starts
        from ..training.models.other_teacher import make_job

        self.model, self.node_id = model, node_id
        self.latent, self.seed = _empty(model, latent), widgets.seed
        self.shapes = [stream.shape for stream in _streams(self.latent)]
        self.guidance = _guidance(model.model, [entry[1] for entry in positive], widgets)
        self.conditioning = WiredConditioning(positive, negative)
        steps, sampling = counts_of(widgets.steps), model.get_model_object("model_sampling")
        effort = EFFORTS[widgets.effort]
        fitted, held_out = effort.sizes(widgets.samples or None)
        count = fitted + held_out
        x = draw_starts(sampling, [[1, *shape[1:]] for shape in self.shapes], count, widgets.seed)
        one = [1, *x.shape[1:]]
        teacher, usual = _teacher(teacher_model or model, recipe, one), usual_sampler(model)
        settings = FitSettings(
            widgets.family, steps, teacher=teacher or widgets.teacher, teacher_steps=widgets.teacher_steps or None,
            samples=widgets.samples or None, held_out=held_out, seed=widgets.seed,
            effort=widgets.effort, guidance=self.guidance.values, guidance_argument="guidance",
            loss=self._loss(widgets.loss, vae),
            usual=usual,
        )  # fmt: skip
        facts = model_architecture((teacher_model or model).model)
        distilled = None if teacher else distilled_remark(facts, names, usual, steps, _AS_TODAY)
        self.remarks = [remark for remark in (distilled, _cfg_remark(facts.name, self.guidance)) if remark]
        card = {
            "architecture": architecture_name(model.model),
            "checkpoint": checkpoint,
            "fingerprint": fingerprint(model.model),
            "guidance": self.guidance,
            "resolution": pixel_size(model.model, self.shapes[0]) or "",
            "fit_id": fit_id,
            "boundary": boundary_of(model),
        }
        noise = noise_of(model.model, sampling, one)
        microbatch = self.shapes[0][0] if self.shapes[0][0] > 1 else MEASURED
        samples = Samples(x, {"row": list(range(count))}, microbatch)
        self.job, self.other = make_job(
            settings, samples, noise, card, model, conds=[entry[1] for entry in (*positive, *negative)],
            teacher_patcher=teacher_model, teacher_guidance=widgets.teacher_cfg or None,
        )  # fmt: skip
        others = self.other.calls(self.job) if self.other else 0
        usual, most, self.bytes = usual_calls(self.job) + others, most_calls(self.job) + others, work_bytes(self.job)
        self.meter, self.bar, self.line = Meter(usual, most, self._move), comfy.utils.ProgressBar(usual), ""
        self.shown = 0.0

    def _loss(self, name: str, vae: Any) -> Any:
        """The loss of the settings."""
        from ..training.models.picture_loss import picture_loss

        if name != "features":
            return name
        if vae is None:
            raise ValueError("the loss features decodes end states, but no vae is connected: connect one, or use l2")
        if len(self.shapes) > 1:
            raise ValueError("the loss features is for pictures, but this latent has sound too: use l2")
        return picture_loss(self.model.model, vae)

    def run(self, output: Output, vae: Any) -> Outputs:
        """Fits, writes the files, and draws the comparison after sampling, as decoding may unload the model."""
        from ..training import run_fit, table_of
        from ..training.comparison.sheet import draw_results
        from ..training.data.probe import check_is_function
        from ..training.fit import remark_of
        from ..training.models.guider import Denoiser, host_memory, with_denoiser
        from ..training.report import verdict_of
        from ..training.store.content import content_hash

        folder = output.folder / content_hash(output.fit_id, self.job.content_hash())[:16]

        def check(denoiser: Denoiser, device: torch.device) -> None:
            check_is_function(denoiser, self.job.on(device).samples, self.job.noise, lambda line: None)

        def work(denoiser: Denoiser, device: torch.device) -> list[Result]:
            return run_fit(
                self.job.on(device), denoiser, self.show, meter=self.meter, pictures=_PICTURES, folder=folder,
                deliver=deliver, remark=output.append, memory=host_memory(),
            )  # fmt: skip

        def deliver(result: FitResult) -> None:
            output.deliver(result.solver, "\n\n".join([table_of(result), *self.remarks]))
            verdict = verdict_of(result)
            _log.info("%s", verdict)
            show_text(verdict, self.node_id)

        for remark in self.remarks:
            self.show(remark)
        on_model = self.model, self.conditioning, self.guidance, self.latent
        if self.other:
            with_denoiser(check, *on_model, seed=self.seed)  # before the teacher's run, which may take hours
            self.other.run(
                self.job, self.conditioning, self.show, meter=self.meter, cache=folder / "other teacher",
                seed=self.seed, latent=self.latent,
            )  # fmt: skip
        ends = with_denoiser(work, *on_model, seed=self.seed)
        if ends:
            with remark_of("picture", output.append):
                title = f"{output.solver.stem}: same noise, same model"
                output.add_picture(draw_results(title, ends, self._pictures(vae)))
        output.clear()
        self.bar.update_absolute(self.meter.total, self.meter.total)
        return finished_outputs(output)

    def _pictures(self, vae: Any) -> Callable[[Tensor], Tensor]:
        return lambda states: pictures_of(self.model, states, vae, self.shapes)

    def show(self, line: str) -> None:
        """Logs a line, and shows it on the node after the time that is left."""
        _log.info("%s", line)
        self._show_text(line)
        self.line = line if self.meter.left() else ""  # of the forecast only what is left remains

    def _show_text(self, line: str) -> None:
        self.shown = time.monotonic()
        show_text("; ".join(filter(None, [self.meter.left(), line])), self.node_id)

    def _move(self, meter: Meter) -> None:
        self.bar.update_absolute(meter.calls, meter.total)
        if time.monotonic() > self.shown + _TEXT_SECONDS and meter.left():
            self._show_text(self.line)


def finished_outputs(output: Output) -> Outputs:
    """Comparison and report of a finished fit, from its files; a note in place of a picture that is missing."""
    from PIL import Image

    from ..training.comparison.sheet import draw_note

    report = output.report.read_text("utf-8") if output.report.exists() else f"No report: {output.report} is missing."
    try:
        picture = to_image(Image.open(output.picture))
    except OSError:
        picture = to_image(draw_note(f"No picture: {output.picture.name} is missing or unreadable."))
    text = re.sub(r"(?m)^(<!--|!\[).*\n\n?", "", report).strip()  # its mark, and the link to its picture
    return picture, f"{text}\n\nwritten: {output.solver}"


def _teacher(model: Any, recipe: tuple[Any, Any], shape: Sequence[int]) -> Any:
    """The connected sampler on the connected levels; None without them."""
    from ..training.models.comfy_samplers import host_recipe

    sampler, sigmas = recipe
    if (sampler is None) != (sigmas is None):
        missing = "sampler" if sampler is None else "sigmas"
        raise ValueError(f"the teacher's {missing} is not connected: connect both sampler and sigmas, or neither")
    return None if sampler is None else host_recipe(model, sampler, sigmas, shape)


def _guidance(base: Any, conds: Sequence[Mapping[str, Any]], widgets: FitWidgets) -> Guidance:
    """The guidance values to fit at: those of the widget, or some around the usual one."""
    usual = guidance_of(base, conds, widgets.cfg) or Guidance("cfg", (widgets.cfg,))
    texts = widgets.guidance.replace(",", " ").split()
    if not texts:
        return Guidance.around(usual.values[0], usual.cfg)
    try:
        values = tuple(sorted({float(text) for text in texts}))
        within = min(max(usual.values[0], values[0]), values[-1])
        return Guidance(usual.kind, values, within, usual.cfg)
    except ValueError as error:
        raise ValueError(
            f"guidance must be numbers, such as 3 5 7.5 12, or empty, got {printable(repr(widgets.guidance), 80)}"
        ) from error


def _cfg_remark(architecture: str, guidance: Guidance) -> str | None:
    """A sentence for a model that is guided both by its embedded guidance and by CFG; None for others."""
    if guidance.kind != "embedded" or guidance.cfg in (None, 1):
        return None
    return (
        f"{architecture} has embedded guidance and is usually sampled at CFG 1, here at CFG {guidance.cfg:g}. With cfg "
        "set to 1 each model call takes half the time."
    )


def _empty(model: Any, latent: Mapping[str, Any]) -> Any:
    """An empty latent with the connected latent's size and batch."""
    samples, zeros = latent["samples"], [torch.zeros_like(stream) for stream in _streams(latent["samples"])]
    return fixed_latent(model, {**latent, "samples": zeros[0] if len(zeros) == 1 else type(samples)(zeros)})["samples"]


def _streams(latent: Any) -> list[Tensor]:
    """The tensors of a latent: one, or video and sound."""
    return latent.unbind() if getattr(latent, "is_nested", False) else [latent]


def path_of_new(name: str) -> tuple[Path, str]:
    """The path of a new file below models/solver_weights, and its drop-down entry."""
    plain = PurePosixPath(name.strip().replace("\\", "/"))
    if (
        not plain.name or plain.is_absolute() or ".." in plain.parts or ":" in str(plain) or not name.isprintable()
        or max(len(part.encode()) for part in plain.parts) > _LONGEST_NAME or len(name) > 4 * _LONGEST_NAME
    ):  # fmt: skip
        raise ValueError(
            f"file_name must be a name within models/{FOLDER} of at most {_LONGEST_NAME} bytes, such as my-model or "
            f"mine/my-model, got {printable(repr(name), 200)}"
        )
    for part in plain.parts:
        check_name(part)
    if not has_suffix(plain, SUFFIX):
        plain = plain.with_name(plain.name + SUFFIX)
    folder = Path(folder_paths.get_folder_paths(FOLDER)[0])
    path = folder.joinpath(*plain.parts)
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path.parent} is a link to a folder outside models/{FOLDER}: choose another file_name")
    return path, str(Path(*plain.parts))


def output_of(path: Path, fit_id: str, overwrite: bool) -> Output:
    """The files of a fit, with the node's remedies in messages."""
    from ..training.store.output import Output

    return Output(path, fit_id, overwrite, "choose another file_name", "turn overwrite on")
