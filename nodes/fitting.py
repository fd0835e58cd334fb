"""One fit inside ComfyUI: what runs while the host has the model loaded, and what the node shows meanwhile.

The one module here that reaches into training/, when a fit begins: a server that only samples loads none of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.utils
import torch
from torch import Tensor

from ..samplers import sample_table
from ..samplers.comfy_models import noise_of
from .host_text import show_text
from .inside_guider import Denoiser
from .picture_grid import Column

__all__ = ["Fit", "Wanted", "claimed"]

_ROOM = 2**20  # bytes that must be free: a file has 100 kB
_SHOWN = 3  # held-out starts in the picture
_LINES = 4  # of what the fit says, on the node


def claimed(path: Path, entry: str) -> AbstractContextManager[object]:
    """Returns what holds a new file's name for one fit at a time; `entry` is its drop-down entry."""
    from .. import training

    return training.claimed(path.with_suffix(".fit"), _ROOM, name=entry, remedy="choose another file_name")


@dataclass(frozen=True)
class Wanted:
    """What the widgets say."""

    family: str
    steps: tuple[int, ...]
    samples: int
    teacher: str
    teacher_steps: int
    seed: int


class Fit:
    """One fit: what runs inside the guider, and what is told meanwhile."""

    def __init__(self, model: Any, empty: Tensor, wanted: Wanted, card: dict[str, str], node_id: str | None) -> None:
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
        """Moves the node's bar on by a model call of so many samples."""
        self.calls += samples
        self.bar.update_absolute(min(self.calls, self.most), self.most)

    def say(self, line: str) -> None:
        """Shows a line on the node, under the last few."""
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
            peer = self.training.candidate_named(best, steps, self.noise).table
            ours = result.solver.table(steps, self.noise)
            for column, table in (
                (Column(best, f"{peer.nfe} calls"), peer),
                (Column(f"fitted {self.wanted.family}", f"{steps} calls", ours=True), ours),
            ):
                end = each(lambda a, extra, table=table: sample_table(denoiser, a, table, extra, disable=True))
                ends.append((column, end))
        return ends
