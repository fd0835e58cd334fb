"""Fit a solver for a model, with forward passes only.

    python training/fit_weights.py --demo                the whole path on the bundled small model, any CPU

    python training/fit_weights.py --checkpoint sd15.safetensors --steps 4 6 8 --guidance 7.5 --size 512x512
    python training/fit_weights.py --diffusion-model flux1-dev.safetensors --clip clip_l.safetensors \\
        t5xxl.safetensors --vae ae.safetensors --steps 4 6 8 --guidance 3.5 --size 1024x1024

Models are loaded and run by ComfyUI (the one whose custom_nodes this folder lies in, --comfyui DIR, or COMFYUI_PATH).
Interrupt it as you like: the same command goes on where it was. Several GPUs: torchrun --nproc-per-node N.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

if not __package__:  # run as a file
    import _as_package

    __package__ = _as_package.TRAINING

from ..samplers import load_solver
from ..samplers.schedules import Noise
from .cost import duration, most_calls, seconds_of_call
from .demo import run_demo
from .fit import FitResult, fit_solver
from .gauss_newton import GaussNewton
from .gradient import OPTIMIZERS, GradientDescent
from .memory import peak_memory
from .models.comfy import find_comfy
from .objective import LOSSES
from .options import (
    add_model_options,
    count_of,
    encoded_prompts,
    load_model,
    model_name,
    per_sample,
    prompts_of,
    texts_of,
)
from .output import Output
from .picture import save_strips
from .processes import Processes, join_processes
from .progress import CallBar
from .report import table_of
from .samples import Samples
from .strips import strips_of
from .teacher import TEACHERS, Teacher

__all__ = ["main"]

_SHOWN = 4  # held-out samples in the picture


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        if args.demo:
            run_demo(Path(args.output or "demo"), overwrite=args.overwrite)
        else:
            processes = join_processes()
            _fit_model(args, processes)
            processes.leave()
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "\nstopped; nothing is lost: the same command goes on from here\n")
    except Exception:  # the model's own: its traceback says more than we can
        print("\nstopped by the error below; nothing is lost: once its cause is mended, the same command goes on",
              file=sys.stderr)  # fmt: skip
        raise


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--demo", action="store_true", help="fit the bundled small model and draw the result")
    add_model_options(parser)
    add("--steps", type=count_of, nargs="+", default=[4, 6, 8], help="step counts, in network calls")
    add("--samples", type=count_of, default=64, help="pictures to fit to; a third as many more judge")
    add("--family", choices=("dyweight", "ds"), default="dyweight")
    add("--history", type=count_of, default=3, help="newest calls that a step may use")
    add("--teacher", choices=TEACHERS, default="heun")
    add("--teacher-steps", type=count_of, default=30, help="30 steps of Heun are 59 calls")
    add("--seed", type=int, default=0)
    add("--optimizer", choices=("gauss-newton", *OPTIMIZERS), default="gauss-newton")
    add("--loss", choices=LOSSES, default="l2")
    add("--initial", default="scan", help="scan, a classical solver, or a solver file to go on from")
    add("--learn-grid", action="store_true", help="learn the grid's shift or rho too (dyweight)")
    add("--output", help="solver file, or a name for ComfyUI's models/solver_weights; --demo: a folder")
    add("--overwrite", action="store_true", help="replace files that exist")
    add("--dry-run", action="store_true", help="say what it will do and cost, and stop")
    return parser


def _fit_model(args: argparse.Namespace, processes: Processes) -> None:
    if len(args.steps) != len(set(args.steps)):
        raise ValueError(f"--steps names a count twice: {args.steps}")
    teacher, settings = Teacher(args.teacher, args.teacher_steps), _settings(args)
    first = processes.rank == 0
    say = (lambda line: print(line, flush=True)) if first else (lambda line: None)
    comfy, held = find_comfy(args.comfyui), math.ceil(args.samples / 3)
    output = Output(_solver_file(args, comfy), _identity(args), args.overwrite)
    if first:
        output.check()
    count = args.samples + held
    file = args.conditioning or output.folder / f"prompts-{_hash(texts_of(args, count), _stat(args))}.safetensors"
    model = load_model(args, comfy, encode=first and not file.exists())
    width, height = args.size or model.size
    shape = model.latent_shape(width, height)
    guidance, embedded = model.guidance(args.guidance)
    noise = model.noise(shape)
    if isinstance(settings, GradientDescent) and noise.kind == "vp":
        raise ValueError(
            f"ComfyUI rounds the model time of {model.family} to whole numbers, so no gradient reaches the noise "
            "levels: use --optimizer gauss-newton"
        )
    x = model.starts(shape, count, args.seed)
    most = most_calls(
        args.steps, args.samples, held, noise, family=args.family, history=args.history,
        learn_grid=args.learn_grid, teacher=teacher, settings=settings,
    )  # fmt: skip
    say(
        f"{model.family} ({noise.kind}), {width}x{height}, "
        + (f"CFG {guidance:g}" if embedded is None else f"embedded guidance {embedded:g}")
        + f": {args.family} solvers of {', '.join(map(str, args.steps))} steps from {args.samples} pictures, judged on "
        f"{held} more.\nAt most {most:,} network calls"
        + (" of two passes each (CFG)" if guidance != 1 else "")
        + f", an eighth to a seventh of it is usual; result: {output.solver}"
    )
    states = teacher.steps + 1 if args.loss == "trajectory" else 1
    with output.claimed(2 * x.nbytes * states + 2**24) if first and not args.dry_run else nullcontext():
        number, keep = (1, None) if args.dry_run and not file.exists() else (count, file)
        conds = processes.from_first(encoded_prompts(args, model, number, keep, say) if first else None)
        model.free_text_encoders()
        prompts = prompts_of(conds, count)
        work = output.folder / _hash(conds, _stat(args), guidance, embedded, (width, height))

        def fit(denoiser: Callable[..., Tensor], device: torch.device) -> None:
            own, starts = per_sample(denoiser), x.to(device)
            seconds = seconds_of_call(own, starts[: args.microbatch], prompts[: args.microbatch], file)
            sampling = peak_memory(device)
            say(
                f"One call takes {seconds:.2f} s here: at most {duration(seconds * most / processes.count)}.\n"
                f"Memory of sampling {min(args.microbatch, count)} at a time: {sampling}."
            )
            if args.dry_run:
                return
            bar = CallBar(math.ceil(most / processes.count), silent=not first)
            card = {
                "model_family": model.family,
                "checkpoint": model_name(args),
                "guidance": f"{guidance:g}" if embedded is None else f"{embedded:g} (distilled, CFG 1)",
                "resolution": model.pixels(shape),
                "note": f"fitted to {args.samples} samples, judged on {held}, seed {args.seed}",
            }
            result = fit_solver(
                bar.counted(own), starts, noise=noise, family=args.family, steps=args.steps, history=args.history,
                teacher=args.teacher, teacher_steps=args.teacher_steps, optimizer=settings, loss=args.loss,
                initial=args.initial, learn_grid=args.learn_grid, extra_args={"prompt": prompts}, held_out=held,
                microbatch=args.microbatch, seed=args.seed, progress=bar, cache=work / "teacher",
                journal=work / "journal.safetensors", processes=processes, card=card,
            )  # fmt: skip
            bar.close()
            if first:
                some = -min(_SHOWN, held)
                shown = Samples(starts[some:], {"prompt": prompts[some:]}, args.microbatch)
                facts = f"{output.command}\n\nPeak memory: {peak_memory(device)}; plain sampling: {sampling}."
                _write(output, result, facts, teacher, own, shown, noise, model.decode)
                say(f"\n{table_of(result)}\n\nwritten: {', '.join(map(str, reversed(output.files)))}")

        batch = [args.microbatch, *shape[1:]]
        gradient = isinstance(settings, GradientDescent)
        model.with_denoiser(fit, conds, conds[0], guidance, embedded, batch, differentiable=gradient)


def _settings(args: argparse.Namespace) -> GaussNewton | GradientDescent:
    if args.optimizer == "gauss-newton":
        return GaussNewton()
    # The papers' rates for latent models; several passes, as the samples are few.
    return GradientDescent(args.optimizer, rate=1e-2 if args.optimizer == "lion" else 1e-3, epochs=40, seed=args.seed)


def _write(
    output: Output,
    result: FitResult,
    facts: str,
    teacher: Teacher,
    denoiser: Callable[..., Tensor],
    shown: Samples,
    noise: Noise,
    decode: Callable[[Tensor], Tensor],
) -> None:
    """Writes solver file, report and picture: made in the output's folder, then moved together."""
    png, md, solver = (output.folder / file.name for file in output.files)
    result.solver.save(solver, overwrite=True)
    strips = strips_of(
        load_solver(solver), result, teacher, denoiser, shown, noise, lambda x: torch.cat([decode(e[None]) for e in x])
    )
    save_strips(png, f"{solver.stem}: the same held-out starts", strips, size=160)
    md.write_text(f"# {solver.stem}\n\n{facts}\n\n{table_of(result)}\n\n![the same starts]({png.name})\n", "utf-8")
    output.deliver()


def _solver_file(args: argparse.Namespace, comfy: Path) -> Path:
    path = Path(args.output or f"{args.family}_{model_name(args)}")
    if path.suffix != ".safetensors":
        path = path.with_name(path.name + ".safetensors")
    return path if path.parent != Path(".") else comfy / "models" / "solver_weights" / path.name


def _stat(args: argparse.Namespace) -> list[tuple[str, int, int]]:
    """Returns what tells the model's files from others: paths, sizes, times."""
    files = [file for file in (args.checkpoint, args.diffusion_model, *args.clip) if file is not None and file.exists()]
    return [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _hash(*values: object) -> str:
    """Returns a name for values: numbers, texts, encoded prompts."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for cond in value:
                for key in sorted(cond):
                    digest.update(key.encode() + cond[key].float().numpy().tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()[:16]


def _identity(args: argparse.Namespace) -> str:
    """Returns the command without the options that do not change the result."""
    options = {k: v for k, v in vars(args).items() if k not in ("overwrite", "dry_run", "threads", "comfyui")}
    changed = {k: v for k, v in options.items() if v != _parser().get_default(k)}
    words = [f"--{k.replace('_', '-')} {_words(v)}" for k, v in changed.items()]
    return f"`python training/fit_weights.py {' '.join(words)}`"


def _words(value: object) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return " ".join(map(str, value)) if isinstance(value, list) else "" if value is True else str(value)


if __name__ == "__main__":
    main()
