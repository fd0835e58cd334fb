"""One fit inside ComfyUI: what the widgets say, where the file goes, and what runs while the model is loaded.

training/ is imported when a fit begins: a server that only samples loads none of it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ..samplers.comfy_models import architecture_name, noise_of, pixel_size
from ..samplers.files.solver import SUFFIX
from ..samplers.files.write import check_name, has_suffix
from ..samplers.guidance import per_sample, range_around
from ..samplers.text import shown
from .base import check_number, counts_of, fixed_latent, show_text
from .folder import FOLDER
from .pictures import pictures_of, to_image
from .sampling import guidance_of

if TYPE_CHECKING:
    from ..training import FitResult
    from ..training.comparison.measure import Result

__all__ = ["CFG_RANGE", "FitWidgets", "NodeFit", "claim", "model_file", "path_of_new", "upstream_of"]

CFG_RANGE = 0.33  # of cfg, to both sides
_BYTES = 2**20  # that must be free: a file has 100 kB
_PICTURES = 3  # held-out starts in the picture
_LINES = 4  # of the fit's log, on the node
_LONGEST_NAME = 200  # bytes; the systems take 255, ending included
_MODEL_WIDGETS = ("ckpt_name", "unet_name", "model_name", "gguf_name", "model_path")


@dataclass(frozen=True)
class FitWidgets:
    """The node's widgets.

    Raises:
        ValueError: One is out of range, or there are fewer samples than guidances.
    """

    cfg: float
    family: str
    steps: str
    samples: int
    teacher: str
    teacher_steps: int
    seed: int
    file_name: str
    overwrite: bool
    cfg_range: float = CFG_RANGE

    def __post_init__(self) -> None:
        check_number("samples", self.samples, 2, 4096)
        check_number("teacher_steps", self.teacher_steps, 2, 1000)
        check_number("cfg", self.cfg, 0, 100)
        check_number("cfg_range", self.cfg_range, 0, 0.9)
        per_sample(self.cfgs, self.samples)

    @property
    def cfgs(self) -> tuple[float, ...]:
        """Classifier-free guidance that the samples have in turn."""
        return range_around(self.cfg, self.cfg_range)


class NodeFit:
    """A fit for a MODEL, shown on the node.

    Args:
        model: ComfyUI's ModelPatcher.
        positive: Conditioning to follow.
        negative: Conditioning to avoid.
        latent: An empty latent of as many samples as one model call has.
        widgets: The node's.
        checkpoint: Name of the model file.
        node_id: The node's.
    """

    def __init__(
        self,
        model: Any,
        positive: Any,
        negative: Any,
        latent: Mapping[str, Any],
        widgets: FitWidgets,
        checkpoint: str,
        node_id: str | None,
    ) -> None:
        from ..training import FitJob, FitSettings, Teacher, most_calls
        from ..training.data.samples import Samples
        from ..training.models.guider import WiredConditioning, draw_starts

        self.model, self.node_id, self.lines, self.calls = model, node_id, [], 0
        self.widgets, self.latent = widgets, _empty(model, latent)
        self.conditioning = WiredConditioning(positive, negative)
        teacher, steps = Teacher(widgets.teacher, widgets.teacher_steps), counts_of(widgets.steps)
        if teacher.calls <= max(steps):
            raise ValueError(
                f"the teacher must be better than what it teaches: {widgets.teacher} with {widgets.teacher_steps} "
                f"steps makes {teacher.calls} model calls, the solver is to make {max(steps)}; 28 to 100 "
                "teacher_steps are usual"
            )
        held_out, sampling = math.ceil(widgets.samples / 3), model.get_model_object("model_sampling")
        count, shape = widgets.samples + held_out, self.latent.shape
        settings = FitSettings(widgets.family, steps, teacher=teacher, held_out=held_out, seed=widgets.seed)
        x = draw_starts(sampling, [1, *shape[1:]], count, widgets.seed)
        card = {
            "architecture": architecture_name(model.model),
            "checkpoint": checkpoint,
            "guidance": guidance_of(model.model, [entry[1] for entry in positive], *widgets.cfgs),
            "resolution": pixel_size(model.model, shape) or "",
        }
        noise = noise_of(model.model, sampling, shape)
        self.job = FitJob(settings, Samples(x, {"row": list(range(count))}, len(self.latent)), noise, card)
        self.most = most_calls(self.job)
        self.bar = comfy.utils.ProgressBar(self.most)

    def run(self) -> tuple[FitResult, list[Result]]:
        """Fits, and returns the result with the runs of a few held-out starts."""
        from ..training import run_fit
        from ..training.models.guider import Denoiser, with_denoiser

        def work(denoiser: Denoiser, device: torch.device) -> tuple[FitResult, list[Result]]:
            self.show(f"at most {self.most:,} model calls")
            return run_fit(self.job, denoiser, device, log=self.show, on_call=self._count, pictures=_PICTURES)

        cfgs, seed = self.widgets.cfgs, self.widgets.seed
        outcome = with_denoiser(work, self.model, self.conditioning, cfgs, self.latent, seed=seed)
        self.bar.update_absolute(self.most, self.most)
        return outcome

    def _count(self, samples: int) -> None:
        self.calls += samples
        self.bar.update_absolute(min(self.calls, self.most), self.most)

    def show(self, line: str) -> None:
        """Shows a line on the node, under the last few."""
        self.lines = [*self.lines, line][-_LINES:]
        show_text("\n".join(self.lines), self.node_id)

    def report(self, result: FitResult) -> str:
        """The table of errors, and where another solver would be better."""
        from ..training import better_peers, table_of

        return "\n\n".join([table_of(result), *(["\n".join(better)] if (better := better_peers(result)) else [])])

    def draw(self, title: str, ends: Sequence[Result], vae: Any) -> Tensor:
        """The runs as an IMAGE."""
        from ..training.comparison.sheet import draw_results

        return to_image(draw_results(title, ends, lambda states: pictures_of(self.model, states, vae)))


def _empty(model: Any, latent: Mapping[str, Any]) -> Tensor:
    """An empty latent of the size and batch that are wired in.

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


def path_of_new(name: str, overwrite: bool) -> tuple[Path, str]:
    """The path of a new file below models/solver_weights, and its drop-down entry.

    Raises:
        ValueError: The name leads out of the folder, or some system does not take it.
        FileExistsError: The file exists and `overwrite` is False.
    """
    plain = PurePosixPath(name.strip().replace("\\", "/"))
    if (
        not plain.name or plain.is_absolute() or ".." in plain.parts or ":" in str(plain) or not name.isprintable()
        or max(len(part.encode()) for part in plain.parts) > _LONGEST_NAME or len(name) > 4 * _LONGEST_NAME
    ):  # fmt: skip
        raise ValueError(
            f"file_name must be a name within models/{FOLDER}, got {shown(repr(name), 200)}: my-model, mine/my-model, "
            f"at most {_LONGEST_NAME} bytes"
        )
    for part in plain.parts:
        check_name(part)
    if not has_suffix(plain, SUFFIX):
        plain = plain.with_name(plain.name + SUFFIX)
    folder = Path(folder_paths.get_folder_paths(FOLDER)[0])
    path = folder.joinpath(*plain.parts)
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path.parent} is a link that leads out of models/{FOLDER}: choose a file_name without it")
    _refuse_existing(path, overwrite)
    return path, str(Path(*plain.parts))


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(f"{path} exists already: choose another file_name, or switch overwrite on")


@contextmanager
def claim(path: Path, entry: str, overwrite: bool) -> Iterator[None]:
    """Holds a new file's name for one fit at a time; `entry` is its drop-down entry."""
    from ..training import claimed

    with claimed(path.with_suffix(".fit"), _BYTES, name=entry, remedy="choose another file_name"):
        _refuse_existing(path, overwrite)  # made by a fit that has just ended
        yield


def upstream_of(prompt: Mapping[str, Any] | None, node_id: str | None) -> dict[str, Any]:
    """What a node's inputs follow from: by number, the nodes of the prompt that lead to it, its own inputs included.

    With what the host knows of changed files: `is_changed`, but for the node's own.
    """
    nodes, found, waiting = prompt or {}, {}, [str(node_id)]
    while waiting:
        key = waiting.pop()
        if key in nodes and key not in found:
            node = nodes[key]
            found[key] = {"inputs": node.get("inputs", {}), "class_type": node.get("class_type")}
            if key != str(node_id):
                found[key]["is_changed"] = node.get("is_changed")
            wires = (value for value in found[key]["inputs"].values() if isinstance(value, list | tuple) and value)
            waiting += [str(wire[0]) for wire in wires]
    return found


def model_file(nodes: Mapping[str, Any], node_id: str | None) -> str | None:
    """The stem of the model file that the `model` input of a node comes from; None if it cannot be seen."""
    node = nodes.get(str(node_id), {})
    for _ in range(100):  # a chain of patches; a prompt has no cycles, but nothing here relies on it
        wire = node.get("inputs", {}).get("model")
        if not (isinstance(wire, list | tuple) and wire and str(wire[0]) in nodes):
            break
        node = nodes[str(wire[0])]
    named = [node.get("inputs", {}).get(widget) for widget in _MODEL_WIDGETS]
    return next((PurePosixPath(n.replace("\\", "/")).stem for n in named if isinstance(n, str) and n), None)
