"""Compare solvers with common samplers at equal network calls: a table, a plot and images.

    python training/compare.py --demo --solver demo/dyweight_emoji.safetensors       on the bundled small model, any CPU

    python training/compare.py --checkpoint sd15.safetensors --solver dyweight_sd15.safetensors --guidance 7.5

The stock samplers are ComfyUI's sampler functions on ComfyUI's schedulers and step lists, each on its best grid; for
the bundled model, this project's tables of the same methods. The error is the root mean square distance to a many-step
teacher from the same initial noise. Choose a --seed that the solvers were not fitted with.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

if not __package__:  # run as a file
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # absent with python -I and in portable builds
    import _as_package

    __package__ = _as_package.TRAINING

from ..samplers import FlowNoise, Guidance, Solver, load_solver
from .command.demo import GUIDANCE, demo_starts
from .command.options import (
    Prompts,
    add_model_options,
    check_demo,
    join_host_options,
    model_files,
    parse_count,
    parse_guidance,
    parse_seed,
    prompts,
)
from .command.run import guidance_for
from .comparison.measure import ComparedModel, Entry, compare, most_compared, solver_entries, table_entries
from .comparison.write import FILES, PICTURES, write_files
from .data.samples import CountedDenoiser, Samples
from .data.teacher import TEACHERS, Teacher
from .meter import duration
from .models.comfy import ComfyModel
from .models.comfy_samplers import host_entries
from .models.emoji import load_emoji
from .models.guider import host_memory
from .models.loading import ModelFiles

__all__ = ["main"]

_DEMO_OPTIONS = {
    *("demo", "solver", "steps", "grids", "samples", "teacher", "teacher_steps", "seed", "output", "no_plot"),
    *("overwrite", "threads"),
}


@dataclass(frozen=True)
class CompareCommand:
    """The options of a comparison; without `files` it runs on the bundled model."""

    text: str
    files: ModelFiles | None
    prompts: Prompts
    size: tuple[int, int] | None
    frames: int | None
    microbatch: int
    guidance: float | None
    solvers: tuple[Solver, ...]
    steps: tuple[int, ...]
    grids: tuple[str, ...]
    samples: int
    teacher: Teacher
    seed: int
    output: Path
    plot: bool


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    try:
        command = _parse(join_host_options(arguments))
        (_compare_demo if command.files is None else _compare_model)(command)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)


def _parse(arguments: list[str]) -> CompareCommand:
    """Parses the arguments and makes every check that needs no model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--demo", action="store_true", help="compare on the bundled small model")
    add_model_options(parser)
    add("--guidance", type=parse_guidance,
        help="CFG; on FLUX, embedded guidance with CFG 1 (default: the architecture's usual value)")  # fmt: skip
    add("--solver", type=Path, nargs="+", default=[],
        help="solver files; a bare name is also looked up in ComfyUI's models/solver_weights")  # fmt: skip
    add("--steps", type=parse_count, nargs="+",
        help="step counts, in network calls (default: those of the solvers, otherwise 3 to 8)")  # fmt: skip
    add("--grids", nargs="+", default=[], help="run the stock samplers only on these grids, as listed in the table")
    add("--samples", type=parse_count, default=32, help="number of starts (default: 32)")
    add("--teacher", choices=TEACHERS, default="heun", help="many-step solver to measure against (default: heun)")
    add("--teacher-steps", type=parse_count, default=60,
        help="steps of the teacher; 60 steps of heun make 119 calls (default: 60)")  # fmt: skip
    add("--seed", type=parse_seed, default=1_000_000,
        help="seed of the starts, different from the seed of the fit (default: 1000000)")  # fmt: skip
    add("--output", type=Path, default=Path("comparison"), help="folder for the results (default: comparison)")
    add("--no-plot", action="store_true", help="do not draw compare.png")
    add("--overwrite", action="store_true", help="replace existing files")
    args = parser.parse_args(arguments)
    if args.demo:
        check_demo(parser, arguments, args, _DEMO_OPTIONS)
    if args.threads:
        torch.set_num_threads(args.threads)
    files = None if args.demo else model_files(args)
    for path in (args.output / name for name in FILES):
        if path.exists() and not args.overwrite:
            raise FileExistsError(f"{path} already exists: choose another --output, or add --overwrite")
    solvers = tuple(load_solver(_solver_file(path, files)) for path in args.solver)
    steps = args.steps or [n for solver in solvers for n in solver.steps] or range(3, 9)
    return CompareCommand(
        shlex.join(["python", "training/compare.py", *arguments]), files, prompts(args), args.size, args.frames,
        args.microbatch, args.guidance, solvers, tuple(sorted(set(steps))), tuple(args.grids), args.samples,
        Teacher(args.teacher, args.teacher_steps), args.seed, args.output, not args.no_plot,
    )  # fmt: skip


def _solver_file(path: Path, files: ModelFiles | None) -> Path:
    """The path as given; for a bare name that does not exist, that file in the folder that fits write to."""
    if files is None or path.parent != Path(".") or path.is_file():
        return path
    fitted = files.host.solver_folder / path.name
    return fitted if fitted.is_file() else path


def _compare_demo(command: CompareCommand) -> None:
    emoji, noise = load_emoji(), FlowNoise()
    denoiser = CountedDenoiser(emoji, torch.float32)
    x, extra_args = demo_starts(emoji, command.samples, command.seed)
    model = ComparedModel(
        name=f"the bundled emoji model, guidance {GUIDANCE:g}",
        denoiser=denoiser,
        noise=noise,
        guidance=Guidance("cfg", (GUIDANCE,)),
        samples=Samples(x, extra_args, command.samples),
        peers=lambda calls: table_entries(denoiser, noise, calls),
        pictures=lambda ends: (ends + 1) / 2,
    )
    _compare(command, model)


def _compare_model(command: CompareCommand) -> None:
    files, count, encoded = command.files, command.samples, command.prompts.encoded
    assert files is not None
    encode = encoded is None or not encoded.exists()
    if encode:
        command.prompts.texts(count)  # refuses an unreadable file of prompts before the model is loaded
    loaded = ComfyModel.load(files, text_encoders=encode)
    shape = loaded.latent_shape(*(command.size or loaded.size), command.frames or loaded.frames)
    conds = command.prompts.conditioning(loaded, count, encoded, _log)
    loaded.free_text_encoders()
    _log(f"Device: {loaded.device}")
    value = loaded.usual_guidance if command.guidance is None else command.guidance
    guidance = guidance_for(loaded, [value])

    def work(denoiser: Callable[..., Tensor], device: torch.device) -> None:
        counted = CountedDenoiser(denoiser, torch.float32, memory=host_memory())
        x = loaded.starts(shape, count, command.seed)
        model = ComparedModel(
            name=f"{files.name}{files.with_loras}, {loaded.pixels(shape)}, guidance {value:g}",
            denoiser=counted,
            noise=loaded.noise(shape),
            guidance=guidance,
            samples=Samples(x, {"row": list(range(count))}, command.microbatch, device),
            peers=lambda calls: host_entries(loaded, counted, calls),
            pictures=loaded.decode,
        )
        _compare(command, model)

    loaded.with_denoiser(work, conds, guidance, [command.microbatch or 1, *shape[1:]])


def _compare(command: CompareCommand, model: ComparedModel) -> None:
    """Logs the cost, measures, and writes the files."""
    for solver in command.solvers:
        if solver.prediction != model.noise.kind:
            raise ValueError(
                f"{solver.name} was fitted for {solver.prediction} models, but this model is {model.noise.kind}: "
                "remove it from --solver"
            )
    entries, teacher, samples = _entries(command, model), command.teacher, model.samples
    if teacher.calls <= max(entries):
        raise ValueError(
            f"the teacher makes {teacher.calls} network calls, but must make more than the solvers' {max(entries)}: "
            "raise --teacher-steps"
        )
    most = most_compared(entries, len(samples))
    _log(
        f"{model.name}: {len(samples)} starts. {teacher.calls * len(samples):,} network calls for the teacher "
        f"({teacher.method}, {teacher.calls} calls), then at most {most:,}. Fewer --samples, --steps or --grids reduce "
        "this."
    )
    started = time.perf_counter()
    goal = teacher.reference(model.denoiser, samples, model.noise).end
    seconds = time.perf_counter() - started
    rest = duration(seconds * most / model.denoiser.calls)
    _log(f"The teacher took {seconds:.0f} s; the rest takes {'' if rest.startswith('less') else 'at most '}{rest}.")
    results = compare(entries, model.denoiser, samples, goal, pictures=PICTURES, log=_log)
    text = write_files(command.output, command.text, model, teacher, command.seed, goal, results, plot=command.plot)
    _log(f"\n{text}")


def _entries(command: CompareCommand, model: ComparedModel) -> dict[int, list[Entry]]:
    """Solvers and peers by number of calls."""
    entries: dict[int, list[Entry]] = {}
    grids: dict[str, None] = {}
    for n in command.steps:
        peers = list(model.peers(n))
        grids |= dict.fromkeys(entry.grid for entry in peers)
        entries[n] = list(solver_entries(model.denoiser, model.noise, command.solvers, n, model.guidance))
        entries[n] += [entry for entry in peers if not command.grids or entry.grid in command.grids]
    if unknown := [grid for grid in command.grids if grid not in grids]:
        missing, available = (", ".join(map(repr, names)) for names in (unknown, grids))
        raise ValueError(
            f"--grids: no stock sampler uses {missing} at {list(command.steps)} calls; choose from {available}"
        )
    if not any(entries.values()):
        raise ValueError(f"no solver or stock sampler runs in {list(command.steps)} calls: change --steps")
    return entries


def _log(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
