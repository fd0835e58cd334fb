"""Compare solvers with the samplers that people use, at equal network calls: a table, a plot and pictures.

    python training/compare.py --demo --solver demo/dyweight_digits.safetensors        the bundled small model, any CPU

    python training/compare.py --checkpoint sd15.safetensors --solver dyweight_sd15.safetensors --guidance 7.5

A model's peers are ComfyUI's own sampler functions on its own schedulers and step lists, each at its best grid; the
bundled model's are our tables of the same methods. The error is the root mean square distance to a many-step teacher
from the same starts. Choose a --seed that the solvers were not fitted with.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

if not __package__:  # run as a file
    import _as_package

    __package__ = _as_package.TRAINING

from ..samplers import FlowNoise, Solver, load_solver
from ..samplers.schedules import Noise
from ..samplers.version import VERSION
from .comparison import Entry, Row, compare, most_compared, run_entry, solver_entries, table_entries
from .cost import duration
from .demo import GUIDANCE, demo_starts
from .models.comfy_samplers import host_entries
from .models.digits import load_digits
from .models.loading import check_one_model, find_comfy
from .options import add_model_options, count_of, encoded_prompts, load_model, model_name, per_sample, prompts_of
from .picture import Strip, save_strips
from .plot import save_plot
from .samples import CountedDenoiser, Samples
from .teacher import TEACHERS, Teacher

__all__ = ["main"]

FILES = ("compare.md", "compare.json", "compare.png", "pictures.png")
_SHOWN = 6  # starts in the picture grid


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = _parser()
    args = parser.parse_args(arguments)
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
    add("--seed", type=int, default=1_000_000, help="of the starts; another than the fit's")
    add("--output", type=Path, default=Path("comparison"), help="folder")
    add("--no-plot", action="store_true", help="write no compare.png, which needs matplotlib")
    add("--overwrite", action="store_true", help="replace files that exist")
    return parser


@dataclass(frozen=True, eq=False)
class _Subject:
    """What solvers are compared on: a counted denoiser with starts, a name and a way to see the ends."""

    name: str
    model: CountedDenoiser
    noise: Noise
    samples: Samples
    peers: Callable[[int], Iterable[Entry]]
    pictures: Callable[[Tensor], Tensor]
    best_peer: str
    versions: dict[str, str]


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
    _run(args, _Subject(name, model, noise, samples, peers, lambda ends: (ends + 1) / 2, best, {}), solvers)


def _compare_model(args: argparse.Namespace, solvers: list[Solver]) -> None:
    comfy, file = find_comfy(args.comfyui), args.conditioning
    model = load_model(args, comfy, encode=file is None or not file.exists())
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
        _run(args, _Subject(name, own, model.noise(shape), samples, peers, model.decode, best, versions), solvers)

    model.with_denoiser(work, conds, conds[0], [args.microbatch, *shape[1:]])


def _run(args: argparse.Namespace, subject: _Subject, solvers: list[Solver]) -> None:
    """Measures, after saying what it takes, and writes the files."""
    for solver in solvers:
        if solver.prediction != subject.noise.kind:
            raise ValueError(
                f"{solver.name} is for {solver.prediction} models, this one is {subject.noise.kind}: leave it out"
            )
    entries, teacher = _entries(args, subject, solvers), Teacher(args.teacher, args.teacher_steps)
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
    _write(args, subject, teacher, compare(entries, model, samples, ends, _say), ends)


def _entries(args: argparse.Namespace, subject: _Subject, solvers: list[Solver]) -> dict[int, list[Entry]]:
    """Returns what is compared, by number of calls."""
    steps = args.steps or sorted({n for solver in solvers for n in solver.steps}) or list(range(3, 9))
    found = {n: list(solver_entries(subject.model, subject.noise, solvers, n)) for n in sorted(set(steps))}
    for n, entries in found.items():
        entries += [entry for entry in subject.peers(n) if not args.grids or entry.grid in args.grids]
    if not any(found.values()):
        raise ValueError(f"no solver and no peer has {steps} calls on the grids {args.grids}: see --steps and --grids")
    return found


def _write(
    args: argparse.Namespace, subject: _Subject, teacher: Teacher, found: dict[Row, Entry], ends: Tensor
) -> None:
    rows = list(found)
    args.output.mkdir(parents=True, exist_ok=True)
    facts = {
        "command": args.command,
        "date": date.today().isoformat(),
        "versions": {"learned_solvers": VERSION, "torch": torch.__version__, "python": platform.python_version()}
        | subject.versions,
        "model": subject.name,
        "teacher": {"method": args.teacher, "steps": args.teacher_steps, "calls": teacher.calls},
        "samples": len(subject.samples),
        "seed": args.seed,
        "network_calls": subject.model.calls,
    }
    table, record, plot, pictures = (args.output / name for name in FILES)
    table.write_text(_markdown(facts, rows), encoding="utf-8")
    record.write_text(json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=1) + "\n", encoding="utf-8")
    if not args.no_plot:
        save_plot(plot, f"Error to a {teacher.calls}-call teacher: {subject.name}", rows, subject.best_peer)
    _draw(pictures, subject, found, ends, f"{args.teacher}, {teacher.calls} calls")
    written = [table, record, *([] if args.no_plot else [plot]), pictures]
    _say(f"\n{_table(rows)}\n\nwritten: {', '.join(map(str, written))}")


def _markdown(facts: dict[str, Any], rows: list[Row]) -> str:
    teacher, versions = facts["teacher"], ", ".join(f"{k} {v}" for k, v in facts["versions"].items())
    return (
        f"# Solvers compared: {facts['model']}\n\n{_table(rows)}\n\n"
        f"Root mean square distance to the ends of {teacher['method']} with {teacher['calls']} calls, over "
        f"{facts['samples']} starts (seed {facts['seed']}); bold is the least. In brackets the peer's best grid, the "
        "one with the least error on these very starts. Peers are ComfyUI's samplers of these names; those with an "
        "order (ab 2, ipndm 3) keep it to the last step. Heun takes two calls a step and one in the last: of an even "
        "number it leaves one unused. A dash: the solver has no such number of calls.\n\n"
        f"`{facts['command']}`, {facts['date']}, {versions}; {facts['network_calls']:,} network calls.\n"
    )


def _table(rows: list[Row]) -> str:
    """Returns a Markdown table: a line per solver, ours first, a column per number of calls."""
    steps = sorted({row.calls for row in rows})
    cells = {(row.method, row.calls): row for row in rows}
    best = {n: min(row.error for row in rows if row.calls == n) for n in steps}
    ours = [m for m in dict.fromkeys(row.method for row in rows if row.ours)]
    peers = sorted(
        dict.fromkeys(row.method for row in rows if not row.ours),
        key=lambda m: min((cells[m, n].error / best[n] for n in steps if (m, n) in cells), default=0),
    )

    def cell(method: str, n: int) -> str:
        row = cells.get((method, n))
        if row is None:
            return "-"
        error = f"**{row.error:.4f}**" if row.error == best[n] else f"{row.error:.4f}"
        return error if row.ours else f"{error} ({row.grid})"

    lines = ["| calls | " + " | ".join(map(str, steps)) + " |", "|---" * (len(steps) + 1) + "|"]
    lines += [f"| {method} | " + " | ".join(cell(method, n) for n in steps) + " |" for method in [*ours, *peers]]
    return "\n".join(lines)


def _draw(path: Path, subject: _Subject, found: dict[Row, Entry], ends: Tensor, teacher: str) -> None:
    """Draws a few starts: the teacher, and of up to three numbers of calls the best peer and the best of ours."""
    shown = subject.samples.rows(0, min(_SHOWN, len(subject.samples)))
    strips: list[tuple[str, str, Tensor]] = [(teacher, "the teacher", ends[: len(shown)])]
    steps = sorted({row.calls for row in found})
    for n in steps if len(steps) <= 3 else (steps[0], steps[len(steps) // 2], steps[-1]):
        for ours in (False, True):
            rows = [row for row in found if row.calls == n and row.ours == ours]
            if rows:
                row = min(rows, key=lambda row: row.error)
                remark = f"{row.used} calls{'' if ours else f' on {row.grid}'}: {row.error:.4f}"
                strips.append((row.method, remark, run_entry(found[row], shown)))
    pictures = subject.pictures(torch.cat([end for _, _, end in strips]))
    parts: list[Strip] = [
        (name, remark, part) for (name, remark, _), part in zip(strips, pictures.split(len(shown)), strict=True)
    ]
    title = f"{subject.name}: the same starts, with the errors over all {len(subject.samples)}"
    save_strips(path, title, parts, size=96)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
