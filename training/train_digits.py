"""Train the bundled digits model: `python training/train_digits.py` writes training/models/digits.safetensors.

Takes about five minutes on two CPU cores. Needs scikit-learn (`pip install scikit-learn`) for the images.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

if not __package__:  # run as a file
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # absent with python -I and in portable builds
    import _as_package

    __package__ = _as_package.TRAINING

from .models.digits import NULL_LABEL, SHAPE, WEIGHTS, DigitsTransformer

__all__ = ["flow_loss", "load_pictures", "main", "train_averaged"]


def load_pictures() -> tuple[Tensor, Tensor]:
    """Returns scikit-learn's digits as pictures [1797, 1, 8, 8] in [-1, 1] and labels [1797]."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    return torch.tensor(data.data, dtype=torch.float32).view(-1, *SHAPE) / 8 - 1, torch.tensor(data.target)


def flow_loss(network: DigitsTransformer, pictures: Tensor, labels: Tensor, batch: int, blur: float) -> Tensor:
    """Returns the rectified-flow loss (arXiv 2209.03003) of a random batch, with one label in ten dropped.

    Noise of standard deviation `blur` on the pictures keeps the network from memorising all 1797. Its trajectories
    would then turn sharply towards single pictures, unlike those of a large model.
    """
    rows = torch.randint(len(pictures), (batch,))
    x0, label = pictures[rows] + blur * torch.randn(batch, *SHAPE), labels[rows]
    label = torch.where(torch.rand(batch) < 0.1, NULL_LABEL, label)
    noise, sigma = torch.randn_like(x0), torch.sigmoid(1.2 * torch.randn(batch))
    x = torch.lerp(x0, noise, sigma.view(-1, 1, 1, 1))
    return (network(x, sigma, label) - (noise - x0)).square().mean()


def train_averaged(model: nn.Module, loss_of_batch: Callable[[], Tensor], steps: int, rate: float) -> dict[str, Tensor]:
    """Trains a model (AdamW, one cycle, gradient clipping) and returns the moving average of its weights."""
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.05)
    running = 0.0
    for i in range(1, steps + 1):
        loss = loss_of_batch()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        running += (loss.item() - running) / min(i, 200)
        if i % 250 == 0:
            print(f"step {i:6d}  loss {running:.4f}", flush=True)
    return average.module.state_dict()


def main() -> None:
    """Trains and writes the weights file."""
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, default=WEIGHTS, help="weights file (default: the bundled one)")
    # With more steps it memorises pictures.
    add("--steps", type=int, default=3000, help="training steps (default: %(default)s)")
    add("--batch", type=int, default=128, help="images per step (default: %(default)s)")
    add("--rate", type=float, default=2e-3, help="highest learning rate (default: %(default)s)")
    add("--blur", type=float, default=0.15, help="standard deviation of noise on the images (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of weights, batches and noise (default: %(default)s)")
    add("--threads", type=int, default=2, help="number of CPU threads (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    (pictures, labels), network = load_pictures(), DigitsTransformer()
    weights = train_averaged(
        network, lambda: flow_loss(network, pictures, labels, args.batch, args.blur), args.steps, args.rate
    )
    save_file(weights, args.output)


if __name__ == "__main__":
    main()
