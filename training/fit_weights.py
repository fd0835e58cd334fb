"""Fit a solver for a model, with forward passes only, at the memory that sampling takes.

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
import re
import time
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
from .cost import most_calls
from .demo import run_demo
from .fit import FitResult, fit_solver
from .gauss_newton import GaussNewton
from .gradient import OPTIMIZERS, GradientDescent
from .memory import peak_memory
from .models.comfy import ComfyModel, find_comfy
from .models.conditioning import Cond, read_conditioning, write_conditioning
from .objective import LOSSES
from .output import Output
from .picture import save_strips
from .processes import Processes, join_processes
from .progress import CallBar
from .report import table_of
from .samples import Samples
from .strips import strips_of
from .teacher import TEACHERS, Teacher

__all__ = ["main"]

PROMPTS = Path(__file__).with_name("prompts.txt")
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
            _fit_model(args, join_processes())
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "\nstopped; nothing is lost: the same command goes on from here\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--demo", action="store_true", help="fit the bundled small model and draw the result")
    _add_model_options(parser)
    add("--steps", type=_count, nargs="+", default=[4, 6, 8], help="step counts, in network calls")
    add("--samples", type=_count, default=64, help="pictures to fit to; a third as many more judge")
    add("--family", choices=("dyweight", "ds"), default="dyweight")
    add("--history", type=_count, default=3, help="newest calls that a step may use")
    add("--teacher", choices=TEACHERS, default="heun")
    add("--teacher-steps", type=_count, default=30, help="30 steps of Heun are 59 calls")
    add("--optimizer", choices=("gauss-newton", *OPTIMIZERS), default="gauss-newton")
    add("--loss", choices=LOSSES, default="l2")
    add("--initial", default="scan", help="scan, a classical solver, or a solver file to go on from")
    add("--learn-grid", action="store_true", help="learn the grid's shift or rho too (dyweight)")
    add("--output", help="solver file, or a name for ComfyUI's models/solver_weights; --demo: a folder")
    add("--overwrite", action="store_true", help="replace files that exist")
    add("--dry-run", action="store_true", help="say what it will do and cost, and stop")
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds what says which model is run, on which prompts, at which guidance and size."""
    add = parser.add_argument
    add("--checkpoint", type=Path, help="checkpoint with model, text encoders and VAE")
    add("--diffusion-model", type=Path, help="diffusion model alone (FLUX, SD3.x, ...)")
    add("--clip", type=Path, nargs="+", default=[], help="its text encoders")
    add("--vae", type=Path, help="its VAE, for the picture")
    add("--comfyui", type=Path, help="ComfyUI's folder")
    add("--prompts", type=Path, default=PROMPTS, help="text file, a prompt per line (200 of our own)")
    add("--negative", help="negative prompt (empty)")
    add("--conditioning", type=Path, help="file of encoded prompts: reused where it exists, else written")
    add("--guidance", type=float, help="CFG; on FLUX the embedded guidance, with CFG 1 (usual for the architecture)")
    add("--size", type=_size, help="WIDTHxHEIGHT in pixels (what the architecture was trained on)")
    add("--microbatch", type=_count, default=1, help="pictures per model call, as memory allows")
    add("--seed", type=int, default=0)
    add("--threads", type=_count, help="CPU threads")


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
    file = args.conditioning or output.folder / f"prompts-{_hash(_texts(args), _stat(args))}.safetensors"
    model = ComfyModel.load(
        comfy,
        checkpoint=args.checkpoint,
        diffusion_model=args.diffusion_model,
        clip=args.clip,
        vae=args.vae,
        text_encoders=first and not file.exists(),
    )
    width, height = args.size or model.size
    shape = model.latent_shape(width, height)
    guidance, embedded = model.guidance(args.guidance)
    noise = model.noise(shape)
    if isinstance(settings, GradientDescent) and noise.kind == "vp":
        raise ValueError(
            f"ComfyUI rounds the model time of {model.family} to whole numbers, so no gradient reaches the noise "
            "levels: use --optimizer gauss-newton"
        )
    count = args.samples + held
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
        + f", usually a third to a half of it; result: {output.solver}"
    )
    states = teacher.steps + 1 if args.loss == "trajectory" else 1
    with output.claimed(2 * x.nbytes * states + 2**24) if first and not args.dry_run else nullcontext():
        conds = processes.from_first(_conditioning(args, model, file, say) if first else None)
        model.free_text_encoders()
        prompts = [[1 + i % (len(conds) - 1)] for i in range(count)]
        work = output.folder / _hash(conds, _stat(args), guidance, embedded, (width, height))

        def fit(denoiser: Callable[..., Tensor], device: torch.device) -> None:
            own, starts = _flat(denoiser), x.to(device)
            seconds = _timed(own, starts[: args.microbatch], prompts[: args.microbatch], file)
            sampling = peak_memory(device)
            say(
                f"One call takes {seconds:.2f} s here: at most {_duration(seconds * most / processes.count)}.\n"
                f"Memory of sampling {min(args.microbatch, count)} at a time: {sampling}."
            )
            if args.dry_run:
                return
            bar = CallBar(math.ceil(most / processes.count), silent=not first)
            card = {
                "model_family": model.family,
                "checkpoint": (args.checkpoint or args.diffusion_model).stem,
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
    if first and not args.dry_run:
        output.clear()


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
    model = args.checkpoint or args.diffusion_model
    path = Path(args.output or f"{args.family}_{model.stem if model else 'model'}")
    if path.suffix != ".safetensors":
        path = path.with_name(path.name + ".safetensors")
    return path if path.parent != Path(".") else comfy / "models" / "solver_weights" / path.name


def _conditioning(args: argparse.Namespace, model: ComfyModel, file: Path, say: Callable[[str], None]) -> list[Cond]:
    """Returns the encoded negative prompt and the prompts, from a file or from the text encoders."""
    if file.exists():
        say(f"encoded prompts: {file}")
        return read_conditioning(file, model.family, args.negative if file == args.conditioning else None)
    lines = _texts(args)
    if args.dry_run:
        return model.encode(lines[:2], say)
    conds = model.encode(lines, say)
    write_conditioning(file, conds, lines, model.family)
    return conds


def _texts(args: argparse.Namespace) -> list[str]:
    """Returns the negative prompt and as many prompts as there are samples."""
    lines = [line.strip() for line in args.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{args.prompts} holds no prompts: one per line")
    return [args.negative or "", *lines[: args.samples + math.ceil(args.samples / 3)]]


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


def _flat(denoiser: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns the denoiser with `prompt` as a list of one-entry lists, as samples carry it."""
    return lambda x, sigma, prompt: denoiser(x, sigma, [p[0] for p in prompt])


def _timed(denoiser: Callable[..., Tensor], x: Tensor, prompts: list[list[int]], file: Path) -> float:
    """Returns the seconds of one call for one sample, the faster of two microbatches after one to warm up."""
    seconds = []
    try:
        for _ in range(3):
            began = time.perf_counter()
            float(denoiser(x, 0.5 * x.new_ones([len(x)]), prompt=prompts).flatten()[0])  # waits for the device
            seconds.append((time.perf_counter() - began) / len(x))
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, KeyError) as error:
        raise ValueError(
            f"the model fails on its first call ({str(error).splitlines()[0]}); where the encoded prompts in {file} "
            "belong to another model, name another file with --conditioning"
        ) from error
    return min(seconds[1:])


def _count(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,6}", text):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{2,5})x(\d{2,5})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT in pixels, got {text!r}: 512x512, 1024x1024")
    return int(match[1]), int(match[2])


def _duration(seconds: float) -> str:
    if seconds < 5400:
        return f"{max(1, round(seconds / 60))} minutes"
    return f"{seconds / 3600:.1f} hours"


if __name__ == "__main__":
    main()
