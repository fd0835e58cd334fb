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
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

if not __package__:  # run as a file
    import _as_package

    __package__ = _as_package.TRAINING

from ..samplers import load_solver, sample_table
from .cost import expected_calls
from .demo import run_demo
from .fit import FitResult, fit_solver
from .models.comfy import ComfyModel, Cond, find_comfy, read_conditioning, write_conditioning
from .objective import LOSSES
from .picture import save_strips
from .processes import Processes, join_processes
from .report import table_of
from .scan import candidates
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
            _fit_model(args)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "\nstopped; nothing is lost: the same command goes on from here\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--demo", action="store_true", help="fit the bundled small model and draw the result")
    add("--checkpoint", type=Path, help="checkpoint with model, text encoders and VAE")
    add("--diffusion-model", type=Path, help="diffusion model alone (FLUX, SD3.x, ...)")
    add("--clip", type=Path, nargs="+", default=[], help="its text encoders")
    add("--vae", type=Path, help="its VAE, for the picture")
    add("--comfyui", type=Path, help="ComfyUI's folder")
    add("--prompts", type=Path, default=PROMPTS, help="text file, a prompt per line (200 of our own)")
    add("--negative", default="", help="negative prompt")
    add("--conditioning", type=Path, help="file of encoded prompts: reused where it exists, else written")
    add("--steps", type=int, nargs="+", default=[4, 6, 8], help="step counts, in network calls")
    add("--guidance", type=float, default=None, help="CFG; on FLUX the embedded guidance, with CFG 1")
    add("--size", default="512x512", help="WIDTHxHEIGHT in pixels")
    add("--samples", type=int, default=64, help="pictures to fit to; a third as many more judge")
    add("--family", choices=("dyweight", "ds"), default="dyweight")
    add("--history", type=int, default=3, help="newest calls that a step may use")
    add("--teacher", choices=TEACHERS, default="heun")
    add("--teacher-steps", type=int, default=30, help="30 steps of Heun are 59 calls")
    add("--optimizer", choices=("gauss-newton", "adam", "adamw", "lion"), default="gauss-newton")
    add("--loss", choices=LOSSES, default="l2")
    add("--initial", default="scan", help="scan, a classical solver, or a solver file to go on from")
    add("--learn-grid", action="store_true", help="learn the grid's shift or rho too (dyweight)")
    add("--microbatch", type=int, default=1, help="pictures per model call, as memory allows")
    add("--seed", type=int, default=0)
    add("--output", help="solver file, or a name for ComfyUI's models/solver_weights; --demo: a folder")
    add("--overwrite", action="store_true", help="replace files that exist")
    add("--dry-run", action="store_true", help="say what it will do and cost, and stop")
    add("--threads", type=int, help="CPU threads")
    return parser


def _fit_model(args: argparse.Namespace) -> None:
    processes = join_processes()
    say = _printer(processes)
    comfy = find_comfy(args.comfyui)
    output = _output_of(args, comfy)
    if output.exists() and not args.overwrite:
        raise ValueError(f"{output} exists already: choose another --output, or add --overwrite")
    reuse = args.conditioning is not None and args.conditioning.exists()
    model = ComfyModel.load(
        comfy,
        checkpoint=args.checkpoint,
        diffusion_model=args.diffusion_model,
        clip=args.clip,
        vae=args.vae,
        text_encoders=not reuse,
    )
    width, height = _size(args.size)
    shape = model.latent_shape(width, height)
    held = math.ceil(args.samples / 3)
    count = args.samples + held
    conds = _conditioning(args, model, reuse, say)
    work = output.with_suffix(".fit") / _digest(args, conds)
    model.free_text_encoders()
    guidance, embedded = _guidance(args, model)
    noise = model.noise(shape)
    calls = expected_calls(
        args.steps, args.samples, held, noise, args.history, Teacher(args.teacher, args.teacher_steps)
    )
    passes = 1 if guidance == 1 else 2
    say(
        f"{model.family} ({noise.kind}), {args.size}, guidance {guidance if embedded is None else embedded}: "
        f"{args.family} solvers of {', '.join(map(str, args.steps))} steps from {args.samples} pictures, "
        f"judged on {held} more.\n"
        f"At most {calls:,} network calls"
        + (" of two passes each (CFG)" if passes == 2 else "")
        + f"; result: {output}"
    )
    x = model.starts(shape, count, args.seed)
    prompts = [[1 + i % (len(conds) - 1)] for i in range(count)]

    def work_inside(denoiser: Callable[..., Tensor], device: torch.device) -> FitResult | None:
        seconds = _timed(denoiser, x[:1].to(device), prompts[0])
        say(f"One call takes {seconds:.2f} s here: at most {_duration(seconds * calls / processes.count)}.")
        if device.type == "cuda":
            say(f"Memory at sampling: {torch.cuda.max_memory_allocated() / 2**30:.1f} GB; fitting takes the same.")
        if args.dry_run:
            return None
        result = fit_solver(
            _flat(denoiser), x.to(device), noise=noise, family=args.family, steps=args.steps, history=args.history,
            teacher=args.teacher, teacher_steps=args.teacher_steps, optimizer=args.optimizer, loss=args.loss,
            initial=args.initial, learn_grid=args.learn_grid, extra_args={"prompt": prompts}, held_out=held,
            microbatch=args.microbatch, seed=args.seed, progress=say, cache=work / "teacher",
            journal=work / "journal.safetensors", processes=processes,
            card=_card(args, model, guidance, embedded, shape),
        )  # fmt: skip
        if processes.rank == 0:
            result.solver.save(output, overwrite=args.overwrite)
            report = output.with_suffix(".md")
            report.write_text(f"# {output.stem}\n\n{_command()}\n\n{table_of(result)}\n")
            _draw(output, model, denoiser, x[-_SHOWN:].to(device), prompts[-_SHOWN:], noise, args, result)
            shutil.rmtree(work.parent)
            say(f"\n{table_of(result)}\n\nwritten: {output}, {report}, {output.with_suffix('.png')}")
        return result

    model.with_denoiser(work_inside, conds, conds[0], guidance, embedded, shape)


def _printer(processes: Processes) -> Callable[[str], None]:
    return (lambda line: print(line, flush=True)) if processes.rank == 0 else (lambda line: None)


def _output_of(args: argparse.Namespace, comfy: Path) -> Path:
    model = args.checkpoint or args.diffusion_model
    name = args.output or f"{args.family}_{model.stem if model else 'model'}"
    path = Path(name)
    if path.suffix != ".safetensors":
        path = path.with_name(path.name + ".safetensors")
    return path if path.parent != Path(".") else comfy / "models" / "solver_weights" / path.name


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{2,5})x(\d{2,5})", text)
    if not match:
        raise ValueError(f"--size must be WIDTHxHEIGHT in pixels, got {text!r}: 512x512, 1024x1024")
    return int(match[1]), int(match[2])


def _guidance(args: argparse.Namespace, model: ComfyModel) -> tuple[float, float | None]:
    """Returns CFG and the guidance that is an input of the model, or None."""
    if model.family in ("Flux", "FluxInpaint", "HunyuanVideo"):
        return 1.0, 3.5 if args.guidance is None else args.guidance
    return (7.5 if args.guidance is None else args.guidance), None


def _conditioning(args: argparse.Namespace, model: ComfyModel, reuse: bool, say: Callable[[str], None]) -> list[Cond]:
    """Returns the encoded negative prompt and the prompts, from a file or from the text encoders."""
    if reuse:
        say(f"encoded prompts: {args.conditioning}")
        return read_conditioning(args.conditioning)
    lines = [line.strip() for line in args.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{args.prompts} holds no prompts: one per line")
    lines = [args.negative, *lines[: args.samples + math.ceil(args.samples / 3)]]
    conds = model.encode(lines, say)
    if args.conditioning is not None:
        write_conditioning(args.conditioning, conds, lines)
        say(f"encoded prompts written: {args.conditioning}")
    return conds


def _digest(args: argparse.Namespace, conds: list[Cond]) -> str:
    """Returns a name for what trajectories follow from beside starts and teacher: model, prompts, guidance, size."""
    file = args.checkpoint or args.diffusion_model
    status = file.stat()
    known = (str(file.resolve()), status.st_size, status.st_mtime_ns, args.guidance, args.size)
    digest = hashlib.sha256(repr(known).encode())
    for cond in conds:
        for key in sorted(cond):
            digest.update(cond[key].float().numpy().tobytes())
    return digest.hexdigest()[:16]


def _card(
    args: argparse.Namespace, model: ComfyModel, guidance: float, embedded: float | None, shape: list[int]
) -> dict[str, Any]:
    file = args.checkpoint or args.diffusion_model
    return {
        "model_family": model.family,
        "checkpoint": file.stem,
        "guidance": f"{guidance:g}" if embedded is None else f"{embedded:g} (distilled, CFG 1)",
        "resolution": model.pixels(shape),
    }


def _flat(denoiser: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns the denoiser with `prompt` as a list of one-entry lists, as samples carry it."""
    return lambda x, sigma, prompt: denoiser(x, sigma, [p[0] for p in prompt])


def _timed(denoiser: Callable[..., Tensor], x: Tensor, prompt: list[int]) -> float:
    """Returns the seconds of one call, the faster of two after one to warm up."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        float(denoiser(x, 0.5 * x.new_ones([1]), prompt).flatten()[0])  # waits for the device
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _command() -> str:
    return f"`python training/fit_weights.py {' '.join(sys.argv[1:])}`"


def _draw(
    output: Path,
    model: ComfyModel,
    denoiser: Callable[..., Tensor],
    x: Tensor,
    prompts: list[list[int]],
    noise: Any,
    args: argparse.Namespace,
    result: FitResult,
) -> None:
    """Draws a few held-out starts: the teacher, per step count the best classical solver and ours, from the file."""
    solver, teacher = load_solver(output), Teacher(args.teacher, args.teacher_steps)
    own = _flat(denoiser)
    ends = {
        f"{args.teacher}, {teacher.calls} calls": (
            "the teacher",
            _each(x, prompts, lambda a, p: teacher.end_of(own, a, {"prompt": p}, noise)),
        )
    }
    for steps in solver.steps:
        best = result.report[steps].peers[0].name
        peer = next(c.table for c in candidates(steps, noise) if c.name == best)
        for name, table in ((f"{best} ({steps})", peer), (f"Learned Solvers ({steps})", solver.table(steps, noise))):
            run = _each(x, prompts, lambda a, p, table=table: sample_table(own, a, table, {"prompt": p}, disable=True))
            ends[name] = (f"{steps} calls", run)
    strips = [(name, remark, torch.cat([model.decode(e[None]) for e in end])) for name, (remark, end) in ends.items()]
    save_strips(output.with_suffix(".png"), f"{output.stem}: the same starts", strips, size=160)


def _each(x: Tensor, prompts: list[list[int]], run: Callable[[Tensor, list[list[int]]], Tensor]) -> Tensor:
    return torch.cat([run(x[i : i + 1], prompts[i : i + 1]) for i in range(len(x))])


if __name__ == "__main__":
    main()
