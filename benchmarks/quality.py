"""Distances between a set of images and the teacher's: RMSE, Frechet distance, sharpness, span bound."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from learned_solvers.samplers import SolverTable
from learned_solvers.training.data.trial import Run, Trial
from learned_solvers.training.models.emoji import LONGEST, EmojiUNet, load_emoji
from torch import Tensor, nn

from .suite import BENCHMARKS, Benchmark

__all__ = ["error_and_median", "features", "frechet", "quality", "quality_of_ends", "sharpness"]

FEATURES = 32


class Classifier(nn.Module):
    """A small convolutional network: `features` [S, 32], then one head per slot of the caption."""

    def __init__(self, channels: int, size: int, classes: list[int]) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, padding=1), nn.ReLU(),
            nn.Conv2d(32, 32, 3, 2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * (size // 4) ** 2, FEATURES),
            nn.ReLU(),
        )  # fmt: skip
        self.heads = nn.ModuleList(nn.Linear(FEATURES, count) for count in classes)

    def forward(self, x: Tensor) -> list[Tensor]:
        h = self.features(x)
        return [head(h) for head in self.heads]


def features(benchmark: Benchmark, images: Tensor) -> Tensor:
    """Features [S, F] of images: of a classifier of real ones, or of the network itself where there are none.

    The latter are the mean activations of the emoji network's lowest level, without words and at little noise.
    """
    if benchmark.pictures:
        return _classifier(benchmark.name).features(images)
    network, kept = _emoji_network(), list[Tensor]()
    with network.attend2.register_forward_hook(lambda module, inputs, output: kept.append(output.mean((2, 3)))):
        for part in images.split(benchmark.microbatch):
            network(part, torch.full((len(part),), 0.1), torch.zeros(len(part), LONGEST, dtype=torch.long))
    return torch.cat(kept)


@cache
def _emoji_network() -> EmojiUNet:
    return load_emoji().network


@cache
def _classifier(name: str) -> Classifier:
    """A classifier of a benchmark's real images, trained in seconds with a fixed seed."""
    load = BENCHMARKS[name].pictures
    assert load is not None
    pictures, classes = load()
    classes = classes.view(len(classes), -1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Classifier(pictures.shape[1], pictures.shape[-1], (classes.amax(0) + 1).tolist())
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
        for _ in range(400):
            rows = torch.randint(len(pictures), (128,))
            guesses = network(pictures[rows] + 0.1 * torch.randn(128, *pictures.shape[1:]))
            loss = sum(nn.functional.cross_entropy(g, classes[rows, i]) for i, g in enumerate(guesses))
            optimizer.zero_grad(set_to_none=True)
            torch.as_tensor(loss).backward()
            optimizer.step()
    return network.requires_grad_(False).eval()


def frechet(a: Tensor, b: Tensor) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) of features [S, F] (arXiv 1706.08500)."""
    means = [t.double().mean(0).numpy() for t in (a, b)]
    covariances = [np.cov(t.double().numpy(), rowvar=False) for t in (a, b)]
    # The product of two covariances has real eigenvalues of at least 0, but for rounding.
    root = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(min=0)).sum()
    trace = np.trace(covariances[0] + covariances[1]) - 2 * root
    return float(np.square(means[0] - means[1]).sum() + max(trace, 0.0))


def sharpness(pictures: Tensor) -> float:
    """Mean magnitude of the gradient of images [S, C, H, W]."""
    down, right = pictures.diff(dim=-2)[..., :-1], pictures.diff(dim=-1)[..., :-1, :]
    return float((down.square() + right.square()).sqrt().mean())


def error_and_median(squares: Tensor) -> dict[str, float]:
    """RMSE over all starts, and the root of the median of their mean squares [S], which outliers do not dominate."""
    return {"error": float(squares.mean().sqrt()), "median": float(squares.median().sqrt())}


def quality_of_ends(benchmark: Benchmark, trial: Trial, ends: Tensor) -> dict[str, float]:
    """Measures of end states [S, C, H, W] against the teacher's.

    Returns:
        RMSE (`error`), the root of the median over the starts (`median`), Frechet distance in a network's features
        (`frechet`) and mean gradient magnitude relative to the teacher's (`sharpness`).
    """
    truth = trial.reference.end
    return {
        **error_and_median((ends - truth).double().flatten(1).square().mean(1)),
        "frechet": frechet(features(benchmark, ends.float()), features(benchmark, truth.float())),
        "sharpness": sharpness(ends) / sharpness(truth),
    }


def quality(benchmark: Benchmark, trial: Trial, table: SolverTable) -> dict[str, float]:
    """The same for a table's end states, and its `span` bound.

    The bound is the RMSE between the teacher's end states and their projections onto the span of the run's start and
    gradients: no linear multistep rule on this trajectory can be closer, not even one with separate coefficients for
    every start.
    """
    runs = list(trial.each(lambda batch, _: trial.run(table, batch)))
    rests = [
        _rest(run, truth)
        for run, truth in zip(runs, trial.reference.end.split([len(run.states[0]) for run in runs]), strict=True)
    ]
    ends = torch.cat([run.states[-1] for run in runs])
    return {**quality_of_ends(benchmark, trial, ends), "span": float(torch.cat(rests).mean()) ** 0.5}


def _rest(run: Run, truth: Tensor) -> Tensor:
    """Mean squares [B] of what remains of the teacher's end states after the projection."""
    basis = torch.stack([run.states[0], *run.entries], dim=1).flatten(2).double()  # [B, N + 1, D]
    # Normalised: at the first levels the vectors differ only in their last digits, which contain the image.
    basis = torch.nn.functional.normalize(basis, dim=2)
    _, sizes, axes = torch.linalg.svd(basis, full_matrices=False)
    axes = axes * (sizes > 1e-8 * sizes[:, :1])[:, :, None]  # smaller directions are float64 rounding
    flat = truth.flatten(1).double()
    return (flat - (axes.transpose(1, 2) @ (axes @ flat[:, :, None]))[:, :, 0]).square().mean(1)
