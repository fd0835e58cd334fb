"""Distances between a set of images and the teacher's: RMSE, Frechet distance, sharpness, span bound."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from learned_solvers.samplers import SolverTable
from learned_solvers.training.data.trial import Trial
from torch import Tensor, nn

from .suite import BENCHMARKS

__all__ = ["classifier", "error_and_median", "frechet", "quality", "quality_of_ends", "sharpness", "span_error"]

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


@cache
def classifier(name: str) -> Classifier:
    """A classifier of a benchmark's real images, trained in seconds with a fixed seed."""
    pictures, classes = BENCHMARKS[name].pictures()
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


def quality_of_ends(name: str, trial: Trial, ends: Tensor) -> dict[str, float]:
    """Measures of end states [S, C, H, W] against the teacher's.

    Returns:
        RMSE (`error`), the root of the median over the starts (`median`), Frechet distance in the classifier's features
        (`frechet`) and mean gradient magnitude relative to the teacher's (`sharpness`).
    """
    truth, features = trial.reference.end, classifier(name).features
    return {
        **error_and_median((ends - truth).double().flatten(1).square().mean(1)),
        "frechet": frechet(features(ends.float()), features(truth.float())),
        "sharpness": sharpness(ends) / sharpness(truth),
    }


def quality(name: str, trial: Trial, table: SolverTable) -> dict[str, float]:
    """The same for a table's end states."""
    return quality_of_ends(name, trial, trial.ends(table))


def span_error(trial: Trial, table: SolverTable) -> float:
    """RMSE between the teacher's end states and their projections onto the span of the run's start and gradients.

    No linear multistep rule on this trajectory can be closer, not even one with separate coefficients for every start.
    """
    total = torch.zeros((), dtype=torch.float64)
    for start, batch in trial.samples.batches():
        run = trial.run(table, batch)
        basis = torch.stack([run.states[0], *run.entries], dim=1).flatten(2).double()  # [B, N + 1, D]
        # Normalised: at the first levels the vectors differ only in their last digits, which contain the image.
        basis = torch.nn.functional.normalize(basis, dim=2)
        truth = trial.reference.rows(start, start + len(batch)).end.flatten(1).double()
        _, sizes, axes = torch.linalg.svd(basis, full_matrices=False)
        axes = axes * (sizes > 1e-8 * sizes[:, :1])[:, :, None]  # smaller directions are float64 rounding
        rest = truth - (axes.transpose(1, 2) @ (axes @ truth[:, :, None]))[:, :, 0]
        total += rest.square().mean(1).sum()
    return float(total / trial.total) ** 0.5
