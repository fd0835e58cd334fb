"""A complete run on the bundled small model: fit, save, load, sample, compare, draw. About a minute on any CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ...samplers import FlowNoise, Guidance, load_solver
from ..comparison.measure import fit_results
from ..comparison.sheet import draw_results
from ..data.samples import Samples
from ..data.teacher import Teacher
from ..fit import fit_solver
from ..models.digits import SHAPE, load_digits
from ..optimise.levenberg_marquardt import LevenbergMarquardt
from ..report import FitResult, table_of

__all__ = ["GUIDANCE", "demo_starts", "run_demo"]

GUIDANCE = 3.0
STEPS = (3, 5, 7)
TEACHER = Teacher("heun", 60)


def demo_starts(count: int, seed: int = 0) -> tuple[Tensor, dict[str, object]]:
    """Returns starts [count, 1, 8, 8] and the model's arguments: random labels and guidance 3."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *SHAPE, generator=generator)
    return x, {"label": torch.randint(0, 10, (count,), generator=generator), "guidance": GUIDANCE}


def run_demo(output: Path, *, overwrite: bool = False, log: Callable[[str], None] = print) -> FitResult:
    """Fits a solver and writes dyweight_digits.safetensors, demo.png and demo.md; returns the fit's result."""
    file, picture, text = files = [output / name for name in ("dyweight_digits.safetensors", "demo.png", "demo.md")]
    for path in files:
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} already exists: choose another --output, or add --overwrite")
    model, noise = load_digits(), FlowNoise()
    x, extra_args = demo_starts(128)
    facts = {"architecture": "digits", "checkpoint": "training/models/digits.safetensors", "licence": "MIT"}
    card = {**facts, "guidance": Guidance("cfg", (GUIDANCE,)), "resolution": "8x8"}
    result = fit_solver(
        model, x, noise=noise, steps=STEPS, held_out=64, extra_args=extra_args, progress=log,
        teacher=TEACHER.method, teacher_steps=TEACHER.steps, card=card,
        effort="thorough", optimizer=LevenbergMarquardt(),  # all peers, but no more samples than usual
    )  # fmt: skip
    result.solver.save(file, overwrite=overwrite)
    x, _ = demo_starts(10, seed=1)
    starts = Samples(x, {"label": torch.arange(10), "guidance": GUIDANCE}, len(x))  # one per digit
    results = fit_results(load_solver(file), result, TEACHER, model, starts, noise)
    title = "Same noise, same network, guidance 3: which solver is closest to the teacher? (errors of these ten)"
    draw_results(title, results, lambda end: (end + 1) / 2, side=64).save(picture)
    text.write_text(f"# A solver fitted to the bundled model\n\n{table_of(result)}\n", "utf-8")
    log(f"\n{table_of(result)}\n\nwritten: {', '.join(map(str, files))}")
    return result
