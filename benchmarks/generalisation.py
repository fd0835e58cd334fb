"""Generalisation: solvers used at another size, on other classes or on another network than they were fitted to.

Every number is the best peer's error divided by ours under the conditions of use: above 1, the solver is better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from statistics import geometric_mean
from typing import Any

import torch
from learned_solvers.training.models.digits import DigitsDenoiser, DigitsTransformer, load_digits
from learned_solvers.training.starts.candidates import rmse
from learned_solvers.training.train_digits import flow_loss, load_pictures
from torch import Tensor

from .peers import best_peer
from .setting import SEEDS, fit, unseen_trial
from .suite import BENCHMARKS, Benchmark, draw, prompts

__all__ = ["classes", "fine_tuned", "sizes_of_pictures"]

STEPS, GUIDANCE = 5, 3.0
_UNSEEN = {"emoji": 48}  # starts, otherwise 256


def classes(name: str) -> dict[str, Any]:
    """Ratios on each half of the classes or prompts, of solvers fitted on either half."""
    rows = {"digits": torch.arange(10), "patches": torch.arange(1, 7)[:, None], "emoji": prompts()}[name]
    halves = rows.chunk(2)
    places = [replace(BENCHMARKS[name], conditioning=partial(_draw_from, half)) for half in halves]
    what = "prompts" if name == "emoji" else "classes"
    return _across(f"{BENCHMARKS[name].title}, {what}", dict(zip(("first half", "second half"), places, strict=True)))


def _draw_from(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return draw(rows, count, generator)


def sizes_of_pictures(name: str) -> dict[str, Any]:
    """Ratios at each image size, of solvers fitted at each size."""
    benchmark = BENCHMARKS[name]
    places = {f"{side}x{side}": replace(benchmark, shape=(3, side, side)) for side in (8, 16, 24)}
    return _across(f"{benchmark.title}, size", places)


def fine_tuned() -> dict[str, Any]:
    """Ratios on the digits network and on a copy fine-tuned on digits turned upside down."""
    digits, tuned = BENCHMARKS["digits"], _train_further(300)
    return _across("digits, network", {"original": digits, "fine-tuned": replace(digits, load=lambda dtype: tuned)})


def _across(what: str, places: Mapping[str, Benchmark], seeds: tuple[int, ...] = SEEDS) -> dict[str, Any]:
    """Ratios at each place, of the solvers fitted at each place."""
    solvers = {
        label: [fit(place, STEPS, GUIDANCE, seed=seed).solver for seed in seeds] for label, place in places.items()
    }
    ratios: dict[str, dict[str, float]] = {label: {} for label in solvers}
    for used, place in places.items():
        unseen = unseen_trial(place, GUIDANCE, _UNSEEN.get(place.name, 256))
        peer = rmse(unseen, best_peer(place, unseen, STEPS).table)
        for label, fitted in solvers.items():
            errors = [rmse(unseen, solver.table(STEPS, place.noise)) for solver in fitted]
            ratios[label][used] = peer / geometric_mean(errors)
    print(what, {n: {p: round(r, 2) for p, r in row.items()} for n, row in ratios.items()}, flush=True)
    return {"what": what, "steps": STEPS, "ratios": ratios}


def _train_further(steps: int) -> DigitsDenoiser:
    """The digits network after some steps on upside-down digits: about as different as a fine-tuned model."""
    network: DigitsTransformer = load_digits().network.requires_grad_(True).train()
    pictures, labels = load_pictures()
    pictures = pictures.flip(2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            flow_loss(network, pictures, labels, 128, blur=0.15).backward()
            optimizer.step()
    return DigitsDenoiser(network.eval()).requires_grad_(False)
