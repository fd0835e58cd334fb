"""Compare solvers with the samplers that people use, at equal network calls: a table, a plot and pictures.

    python training/compare.py --demo --solver demo/dyweight_digits.safetensors        the bundled small model, any CPU

    python training/compare.py --checkpoint sd15.safetensors --solver dyweight_sd15.safetensors --guidance 7.5

A model's peers are ComfyUI's own sampler functions on its own schedulers and step lists, each at its best grid; the
bundled model's are our tables of the same methods. The error is the root mean square distance to a many-step teacher
from the same starts. Choose a --seed that the solvers were not fitted with.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

if not __package__:  # run as a file
    import _as_package

    __package__ = _as_package.TRAINING

from ..samplers import FlowNoise, Solver, load_solver
from .command.demo import GUIDANCE, demo_starts
from .command.options import (
    add_model_options,
    check_demo,
    count_of,
    encoded_prompts,
    load_model,
    model_name,
    per_sample,
    prompts_of,
    seed_of,
    texts_of,
)
from .comparison.measure import Entry, Subject, compare, most_compared, solver_entries, table_entries
from .comparison.write import FILES, write_files
from .cost import duration
from .data.samples import CountedDenoiser, Samples
from .data.teacher import TEACHERS, Teacher
from .models.comfy_samplers import host_entries
from .models.digits import load_digits
from .models.loading import check_one_model, find_comfy

__all__ = ["main"]

_OF_DEMO = (
    "demo", "solver", "steps", "grids", "samples", "teacher", "teacher_steps", "seed", "output", "no_plot", "overwrite",
    "threads",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.demo:
        check_demo(parser, arguments, args, _OF_DEMO)
    args.command = shlex.join(["python", "training/compare.py", *(sys.argv[1:] if arguments is None else arguments)])
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        _check(args)
        solvers = [load_solver(_solver_file(args, path)) for path in args.solver]
        if args.demo:
            _compare_demo(args, solvers)
        else:
            _compare_model(args, solvers)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--demo", action="store_true", help="compare on the bundled small model")
    add_model_options(parser)
    add("--guidance", type=float, help="CFG; on FLUX the embedded guidance, with CFG 1 (usual for the architecture)")
    add("--solver", type=Path, nargs="+", default=[], help="solver files, also of ComfyUI's models/solver_weights")
    add("--steps", type=count_of, nargs="+", help="numbers of network calls (the solvers' own, or 3 to 8)")
    add("--grids", nargs="+", help="try the peers on these grids alone, by the names that the table gives")
    add("--samples", type=count_of, default=32, help="starts")
    add("--teacher", choices=TEACHERS, default="heun")
    add("--teacher-steps", type=count_of, default=60, help="60 steps of Heun are 119 calls")
    add("--seed", type=seed_of, default=1_000_000, help="of the starts; another than the fit's")
    add("--output", type=Path, default=Path("comparison"), help="folder")
    add("--no-plot", action="store_true", help="write no compare.png, which needs matplotlib")
    add("--overwrite", action="store_true", help="replace files that exist")
    return parser


def _check(args: argparse.Namespace) -> None:
    if not args.demo:
        check_one_model(args.checkpoint, args.diffusion_model)
    for name in FILES:
        if (args.output / name).exists() and not args.overwrite:
            raise FileExistsError(f"{args.output / name} exists already: choose another --output, or add --overwrite")
    if not args.no_plot and find_spec("matplotlib") is None:
        raise ValueError(f"the plot needs matplotlib: {sys.executable} -m pip install matplotlib, or add --no-plot")


def _solver_file(args: argparse.Namespace, path: Path) -> Path:
    """Returns where a solver file is: as named, else under this name where a fit writes it by default."""
    if args.demo or path.parent != Path(".") or path.is_file():
        return path
    fitted = find_comfy(args.comfyui) / "models" / "solver_weights" / path.name
    return fitted if fitted.is_file() else path


def _compare_demo(args: argparse.Namespace, solvers: list[Solver]) -> None:
    model, noise = CountedDenoiser(load_digits(), torch.float32), FlowNoise()
    x, extra_args = demo_starts(args.samples, args.seed)
    name = f"the bundled digits model, guidance {GUIDANCE:g}"
    peers = lambda calls: table_entries(model, noise, calls)  # noqa: E731
    samples, best = Samples(x, extra_args, args.samples), "the best classical solver on its best grid"
    _run(args, Subject(name, model, noise, samples, peers, lambda ends: (ends + 1) / 2, best, {}), solvers)


def _compare_model(args: argparse.Namespace, solvers: list[Solver]) -> None:
    comfy, file = find_comfy(args.comfyui), args.conditioning
    encode = file is None or not file.exists()
    if encode:
        texts_of(args, args.samples)  # refuses a file of prompts that cannot be read before a model is loaded
    model = load_model(args, comfy, encode=encode)
    width, height = args.size or model.size
    shape = model.latent_shape(width, height)
    conds = encoded_prompts(args, model, args.samples, file, _say)
    model.free_text_encoders()
    guidance = model.usual_guidance if args.guidance is None else args.guidance
    extra_args = {"prompt": prompts_of(conds, args.samples), "guidance": [guidance] * args.samples}
    x = model.starts(shape, args.samples, args.seed)
    name = f"{model_name(args)}, {width}x{height}, guidance {guidance:g}"
    versions = {"comfyui": getattr(sys.modules.get("comfyui_version"), "__version__", "unknown")}

    def work(denoiser: Callable[..., Tensor], device: torch.device) -> None:
        own = CountedDenoiser(per_sample(denoiser), torch.float32)
        best = "ComfyUI's best sampler on its best schedule"
        samples = Samples(x.to(device), extra_args, args.microbatch)
        peers = lambda calls: host_entries(model, own, calls)  # noqa: E731
        _run(args, Subject(name, own, model.noise(shape), samples, peers, model.decode, best, versions), solvers)

    model.with_denoiser(work, conds, conds[0], [args.microbatch, *shape[1:]])


def _run(args: argparse.Namespace, subject: Subject, solvers: list[Solver]) -> None:
    """Measures, after saying what it takes, and writes the files."""
    for solver in solvers:
        if solver.prediction != subject.noise.kind:
            raise ValueError(
                f"{solver.name} is for {solver.prediction} models, this one is {subject.noise.kind}: leave it out"
            )
    entries, teacher = _entries(args, subject, solvers), Teacher(args.teacher, args.teacher_steps)
    if teacher.calls <= max(entries):
        raise ValueError(
            f"the teacher must make more calls than what it judges, {max(entries)}; it makes {teacher.calls}: raise "
            "--teacher-steps"
        )
    model, samples = subject.model, subject.samples
    most = most_compared(entries, len(samples))
    _say(
        f"{subject.name}: {len(samples)} starts. {teacher.calls * len(samples):,} network calls for the teacher "
        f"({args.teacher}, {teacher.calls} calls), then at most {most:,}; fewer --samples, --steps, --grids take fewer."
    )
    began = time.perf_counter()
    ends = teacher.reference(model, samples, subject.noise).end
    spent = time.perf_counter() - began
    _say(f"The teacher took {spent:.0f} s: at most {duration(spent * most / model.calls)} more.")
    found = compare(entries, model, samples, ends, _say)
    _say("\n" + write_files(args, subject, teacher, found, ends))


def _entries(args: argparse.Namespace, subject: Subject, solvers: list[Solver]) -> dict[int, list[Entry]]:
    """Returns what is compared, by number of calls."""
    steps = args.steps or sorted({n for solver in solvers for n in solver.steps}) or list(range(3, 9))
    found = {n: list(solver_entries(subject.model, subject.noise, solvers, n)) for n in sorted(set(steps))}
    grids: dict[str, None] = {}
    for n, entries in found.items():
        peers = list(subject.peers(n))
        grids |= dict.fromkeys(entry.grid for entry in peers)
        entries += [entry for entry in peers if not args.grids or entry.grid in args.grids]
    if unknown := [grid for grid in args.grids or () if grid not in grids]:
        told, known = (", ".join(map(repr, names)) for names in (unknown, grids))
        raise ValueError(f"--grids: no peer has {told} at {steps} calls; choose of {known}")
    if not any(found.values()):
        raise ValueError(f"no solver and no peer has {steps} calls: choose other --steps")
    return found


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
