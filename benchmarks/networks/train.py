"""Train a benchmark network: `python -m benchmarks.networks.train patches` (or `shapes`) writes its weights file.

Takes a quarter of an hour on one core. Needs scikit-learn and pillow (`pip install -e ".[train]"`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from learned_solvers.samplers.files.write import write_tensors
from learned_solvers.training.train_digits import train_averaged
from torch import Tensor

from . import patches, shapes

__all__ = ["main"]

KINDS = {
    "patches": (patches.PatchesDenoiser, patches.load_pictures),
    "shapes": (shapes.ShapesDenoiser, shapes.load_pictures),
}


def main() -> None:
    """Trains with the condition dropped for 10 % of the samples; writes the averaged weights in float16."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rate", type=float, default=2e-3)
    for option, default in (("--steps", 6000), ("--batch", 96), ("--seed", 0), ("--threads", 1)):
        parser.add_argument(option, type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    make, load_pictures = KINDS[args.kind]
    (pictures, tokens), model = load_pictures(), make()

    def loss_of_batch() -> Tensor:
        rows = torch.randint(len(pictures), (args.batch,))
        kept = (torch.rand(args.batch, 1) >= 0.1).long()
        return model.loss(pictures[rows], tokens[rows] * kept)

    weights = train_averaged(model, loss_of_batch, args.steps, args.rate)
    output = args.output or Path(__file__).with_name(f"{args.kind}.safetensors")
    write_tensors(output, {name: value.half() for name, value in weights.items()})


if __name__ == "__main__":
    main()
