"""Train the bundled small model: `python training/train_digits.py` writes training/models/digits.safetensors.

About five minutes on two CPU cores. Needs scikit-learn (`pip install scikit-learn`) for the pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

if not __package__:  # run as a file
    import _as_package

    __package__ = _as_package.TRAINING

from .models.digits import NULL_LABEL, SHAPE, WEIGHTS, DigitsTransformer

__all__ = ["averaged", "flow_loss", "load_pictures", "main"]


def load_pictures() -> tuple[Tensor, Tensor]:
    """Returns scikit-learn's digits as pictures [1797, 1, 8, 8] in [-1, 1] and labels [1797]."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    return torch.tensor(data.data, dtype=torch.float32).view(-1, *SHAPE) / 8 - 1, torch.tensor(data.target)


def flow_loss(network: DigitsTransformer, pictures: Tensor, labels: Tensor, batch: int, blur: float) -> Tensor:
    """Returns rectified flow's loss of a random batch (arXiv 2209.03003), one label in ten dropped.

    A little noise on the pictures, of standard deviation `blur`, keeps the network from learning the 1797 of them by
    heart: its paths would turn sharply towards single pictures, as those of no large model do.
    """
    rows = torch.randint(len(pictures), (batch,))
    x0, label = pictures[rows] + blur * torch.randn(batch, *SHAPE), labels[rows]
    label = torch.where(torch.rand(batch) < 0.1, NULL_LABEL, label)
    noise, sigma = torch.randn_like(x0), torch.sigmoid(1.2 * torch.randn(batch))
    x = torch.lerp(x0, noise, sigma.view(-1, 1, 1, 1))
    return (network(x, sigma, label) - (noise - x0)).square().mean()


def averaged(model: nn.Module, loss_of_batch: Callable[[], Tensor], steps: int, rate: float) -> dict[str, Tensor]:
    """Returns the moving average of the weights of a model that is trained here: AdamW, one cycle, clipping."""
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
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int, default=3000)  # more and it learns pictures by heart
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--blur", type=float, default=0.15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    (pictures, labels), network = load_pictures(), DigitsTransformer()
    weights = averaged(
        network, lambda: flow_loss(network, pictures, labels, args.batch, args.blur), args.steps, args.rate
    )
    save_file(weights, args.output)


if __name__ == "__main__":
    main()
