"""A complete run on the bundled text-to-picture model: fit, save, load, sample, compare, draw. Ten seconds on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ...samplers import FlowNoise, Grid, Guidance, SolverTable, euler, load_solver
from ..comparison.sheet import Cell, Head, draw_sheet
from ..cost import most_calls, usual_calls
from ..data.samples import CountedDenoiser, Samples
from ..data.teacher import Teacher
from ..data.trial import Trial
from ..fit import fit
from ..job import FitJob, FitSettings
from ..meter import Meter
from ..models.emoji import SHAPE, WEIGHTS, EmojiDenoiser, load_emoji
from ..report import FitResult, table_of
from .bar import FitBar

__all__ = ["GUIDANCE", "PROMPTS", "demo_starts", "run_demo"]

GUIDANCE = 4.0
TEACHER = Teacher("ode", 48)
NOISE = FlowNoise()
PROMPTS = (
    "red heart", "smiling face", "crying face", "cat face", "flower plant", "red apple fruit", "cake sweet food",
    "blue book",
)  # fmt: skip
_OTHERS = (
    "moon sky", "house building", "green apple", "dog face", "pizza food", "fish animal", "bird animal", "tree plant",
    "angry face", "car transport", "yellow heart", "bread food", "guitar musical instrument", "hat clothing",
    "umbrella", "bear face",
)  # fmt: skip


def demo_starts(model: EmojiDenoiser, count: int, seed: int = 0) -> tuple[Tensor, dict[str, Any]]:
    """Returns starts [count, 3, 32, 32] and the model's arguments: other prompts than the picture's, and guidance 4."""
    x = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    prompts = [_OTHERS[i % len(_OTHERS)] for i in range(count)]
    return x, {"words": model.words(prompts), "guidance": GUIDANCE}


def run_demo(
    output: Path,
    *,
    prompts: Sequence[str] = (),
    steps: int = 5,
    overwrite: bool = False,
    log: Callable[[str], object] = tqdm.write,
) -> FitResult:
    """Fits a solver and writes dyweight_emoji.safetensors, demo.png and demo.md; returns the fit's result."""
    file, picture, text = files = [output / name for name in ("dyweight_emoji.safetensors", "demo.png", "demo.md")]
    for path in files:
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} already exists: add --overwrite, or name another folder with --output")
    model, prompts = load_emoji(), prompts or PROMPTS
    words = model.words(prompts)
    x, extra_args = demo_starts(model, 28)
    facts = {"architecture": "emoji", "checkpoint": WEIGHTS.stem, "licence": "MIT", "resolution": "32x32"}
    bar, card = FitBar(), {**facts, "guidance": Guidance("cfg", (GUIDANCE,))}
    job = FitJob(FitSettings(steps=(steps,), teacher=TEACHER), Samples(x, extra_args, 14), NOISE, card)

    def show(line: str) -> None:
        bar.note(line)
        log(line)

    result = fit(job, model, show, meter=Meter(usual_calls(job), most_calls(job), bar.move))
    bar.finish()
    result.solver.save(file, overwrite=overwrite)
    _draw(model, words, prompts, result, load_solver(file).table(steps, NOISE), steps).save(picture)
    text.write_text(f"# A solver fitted to the bundled model\n\n{table_of(result)}\n", "utf-8")
    log(f"\n{table_of(result)}\n\nwritten: {', '.join(map(str, files))}")
    return result


def _draw(
    model: EmojiDenoiser, words: Tensor, prompts: Sequence[str], result: FitResult, table: SolverTable, steps: int
) -> Any:
    """A row per sampler, a column per prompt, with the distance to the teacher below each picture."""
    x = torch.randn(len(words), *SHAPE, generator=torch.Generator().manual_seed(1))
    counted, samples = CountedDenoiser(model, x.dtype), Samples(x, {"words": words, "guidance": GUIDANCE}, len(x))
    reference = TEACHER.reference(counted, samples, NOISE, levels=result.levels)
    trial, best = Trial(counted, samples, reference, len(x)), result.report[steps].peers[0]
    assert best.table is not None
    rows = {
        Head("euler", "the usual sampler"): euler(Grid("flow_shift", {"shift": 1.0}).levels(steps, NOISE)),
        Head(best.name, "best stock one tried"): best.table,
        Head("learned", "fitted to the network", learned=True): table,
    }
    heads = [Head("teacher", f"{TEACHER.calls} calls"), *rows]
    ends = [reference.end, *(trial.ends(row) for row in rows.values())]
    cells = [
        [Cell((p + 1) / 2, "" if end is ends[0] else f"{float((p - q).square().mean().sqrt()):.3f}")
         for p, q in zip(end, ends[0], strict=True)]
        for end in ends
    ]  # fmt: skip
    title = f"Same noise and network, {steps} calls. Below each picture: its distance to the teacher's"
    return draw_sheet(title, [Head(prompt) for prompt in prompts], heads, cells, side=96)
