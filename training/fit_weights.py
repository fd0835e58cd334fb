"""Fit a solver for a model, with forward passes only.

    python training/fit_weights.py --demo                the whole path on the bundled small model, any CPU

    python training/fit_weights.py --checkpoint sd15.safetensors --steps 4 6 8 --size 512x512
    python training/fit_weights.py --diffusion-model flux1-dev.safetensors --clip clip_l.safetensors \\
        t5xxl.safetensors --vae ae.safetensors --steps 4 6 8 --guidance 3.5 --size 1024x1024

Models are loaded and run by ComfyUI (the one whose custom_nodes this folder lies in, --comfyui DIR, or COMFYUI_PATH).
Interrupt it as you like: the same command goes on where it was. Several GPUs: torchrun --nproc-per-node N.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

if not __package__:  # run as a file
    import _as_package

    __package__ = _as_package.TRAINING

from ..samplers.files.names import check_name, has_suffix
from .checks import MOST_STEPS
from .command.demo import run_demo
from .command.options import add_model_options, check_demo, count_of, model_name, seed_of
from .command.run import fit_model
from .data.processes import Processes, join_processes
from .data.teacher import TEACHERS, Teacher
from .models.loading import check_one_model, find_comfy
from .optimise.gradient import OPTIMIZERS, GradientDescent
from .optimise.levenberg_marquardt import GaussNewton
from .optimise.losses import LOSSES
from .starts.choose import resolve_initial
from .store.output import Output

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.demo:
        check_demo(parser, arguments, args, ("demo", "output", "overwrite", "threads"))
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
        print("\nstopped by the error below; of a fit that had begun nothing is lost: once the cause is mended, the "
              "same command goes on", file=sys.stderr)  # fmt: skip
        raise


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--demo", action="store_true", help="fit the bundled small model and draw the result")
    add_model_options(parser)
    add("--guidance", type=float, nargs="+", metavar="G",
        help="CFG; several: each sample has one of them in turn (two thirds, one and four thirds of what is usual for "
             "the architecture); on FLUX the embedded guidance, with CFG 1 (the usual one)")  # fmt: skip
    add("--steps", type=count_of, nargs="+", default=[4, 6, 8], help="step counts, in network calls")
    add("--samples", type=count_of, default=64, help="pictures to fit to; a third as many more judge")
    add("--family", choices=("dyweight", "ds"), default="dyweight")
    add(
        "--history",
        type=count_of,
        help="newest calls that a step may use (3; 6 with 256 samples and more, where Gauss-Newton starts from a scan)",
    )
    add("--teacher", choices=TEACHERS, default="heun")
    add("--teacher-steps", type=count_of, default=30, help="30 steps of Heun are 59 calls")
    add("--seed", type=seed_of, default=0)
    add("--optimizer", choices=("gauss-newton", *OPTIMIZERS), default="gauss-newton")
    add("--loss", choices=LOSSES, default="l2")
    add("--initial", default="scan", help="scan, a classical solver, or a solver file to go on from")
    add("--learn-grid", action="store_true", help="learn the grid's shift or rho too (dyweight)")
    add("--output", help="solver file, or a name for ComfyUI's models/solver_weights; --demo: a folder")
    add("--overwrite", action="store_true", help="replace files that exist")
    add("--dry-run", action="store_true", help="say what it will do and cost, and stop")
    return parser


def _fit_model(args: argparse.Namespace, processes: Processes) -> None:
    """Refuses what can be refused before a model is loaded, then fits."""
    check_one_model(args.checkpoint, args.diffusion_model)
    if max(args.steps) > MOST_STEPS:
        raise ValueError(f"--steps has counts of at most {MOST_STEPS}, got {max(args.steps)}")
    if len(args.steps) != len(set(args.steps)):
        raise ValueError(f"--steps names a count twice: {args.steps}")
    if len(args.guidance or ()) != len(set(args.guidance or ())):
        raise ValueError(f"--guidance names a value twice: {args.guidance}")
    resolve_initial(args.initial, args.family, args.steps)
    teacher, settings, comfy = Teacher(args.teacher, args.teacher_steps), _settings(args), find_comfy(args.comfyui)
    output = Output(_solver_file(args, comfy), _identity(args), args.overwrite)
    fit_model(args, comfy, output, teacher, settings, processes)


def _settings(args: argparse.Namespace) -> GaussNewton | GradientDescent:
    if args.optimizer == "gauss-newton":
        return GaussNewton()
    # The papers' rates for latent models; several passes, as the samples are few.
    return GradientDescent(args.optimizer, rate=1e-2 if args.optimizer == "lion" else 1e-3, epochs=40, seed=args.seed)


def _solver_file(args: argparse.Namespace, comfy: Path) -> Path:
    path = Path(args.output or f"{args.family}_{model_name(args)}")
    check_name(path.name)
    plain = path.with_suffix("") if has_suffix(path, ".safetensors") else path  # in any case, ".SAFETENSORS" too
    path = plain.with_name(plain.name + ".safetensors")
    if os.path.dirname(args.output or ""):  # "./name" is a place, a name alone is ComfyUI's
        return path
    return comfy / "models" / "solver_weights" / path.name


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
