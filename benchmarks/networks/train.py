"""Train a benchmark network: `python -m benchmarks.networks.train patches` (or shapes) writes its weights file.

A quarter of an hour of a core each. Needs scikit-learn and pillow (`pip install -e ".[train]"`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from learned_solvers.samplers.files.write import write_tensors
from learned_solvers.training.train_digits import averaged
from torch import Tensor

from . import patches, shapes

__all__ = ["main", "train"]

KINDS = {
    "patches": (patches.PatchesDenoiser, patches.load_pictures, patches.patches_loss),
    "shapes": (shapes.ShapesDenoiser, shapes.load_pictures, shapes.shapes_loss),
}


def train(kind: str, steps: int, batch: int, rate: float, seed: int) -> dict[str, Tensor]:
    """Returns the weights' moving average, float16; the condition is left out for 10 % of the samples."""
    torch.manual_seed(seed)
    make, load, loss_of = KINDS[kind]
    pictures, tokens = load()
    model = make()

    def loss_of_batch() -> Tensor:
        rows = torch.randint(len(pictures), (batch,))
        kept = (torch.rand(batch, 1) >= 0.1).long()
        return loss_of(model, pictures[rows], tokens[rows] * kept)

    return {name: value.half() for name, value in averaged(model, loss_of_batch, steps, rate).items()}


def main() -> None:
    """Trains and writes the weights file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    output = args.output or Path(__file__).with_name(f"{args.kind}.safetensors")
    write_tensors(output, train(args.kind, args.steps, args.batch, args.rate, args.seed))


if __name__ == "__main__":
    main()
