"""Fit a solver for a model, with forward passes only.

    python training/fit_weights.py --demo                a complete run on the bundled small model, on any CPU

    python training/fit_weights.py --checkpoint sd15.safetensors --steps 6 --size 512x512
    python training/fit_weights.py --diffusion-model flux1-dev.safetensors --clip clip_l.safetensors \\
        t5xxl.safetensors --vae ae.safetensors --steps 6 --guidance 3.5 --size 1024x1024

ComfyUI loads and runs the models: the one given by --comfyui or COMFYUI_PATH, or the one whose custom_nodes contains
this folder. You can interrupt a fit at any time; the same command resumes it. For several GPUs, start the script with
torchrun --nproc-per-node N.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

if not __package__:  # run as a file
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # absent with python -I and in portable builds
    import _as_package

    __package__ = _as_package.TRAINING

from .command.demo import run_demo
from .command.options import DemoCommand, parse_fit
from .command.run import fit_model
from .data.processes import join_processes

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    try:
        command = parse_fit(__doc__ or "", arguments)
        if isinstance(command, DemoCommand):
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                raise ValueError("--demo runs in one process: start it without torchrun")
            run_demo(
                command.output, prompts=command.prompts, steps=command.steps, overwrite=command.overwrite
            )  # fmt: skip
        else:
            processes = join_processes()
            fit_model(command, processes)
            processes.leave()
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nstopped; progress is saved: run the same command again to resume", file=sys.stderr)
        sys.exit(130)
    except Exception:  # raised by the model: its traceback says more than a message
        print("\nstopped by the error below; progress is saved: fix the cause and run the same command again",
              file=sys.stderr)  # fmt: skip
        raise


if __name__ == "__main__":
    main()
