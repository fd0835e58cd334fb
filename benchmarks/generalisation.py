"""Generalisation: solvers used at another guidance, size, class set or network than they were fitted at.

Every number is the best peer's error divided by ours under the conditions of use: above 1, the solver is better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from learned_solvers.samplers import Solver
from learned_solvers.training.data.trial import Trial
from learned_solvers.training.models.digits import DigitsDenoiser, DigitsTransformer, load_digits
from learned_solvers.training.starts.candidates import rmse
from learned_solvers.training.train_digits import flow_loss, load_pictures
from torch import Tensor

from .peers import peer_errors
from .setting import GUIDANCES, Setting, fit, unseen_trial
from .suite import BENCHMARKS, Benchmark

__all__ = ["classes", "fine_tuned", "guidances", "seeds", "sizes_of_pictures"]

_USED_GUIDANCES = (1.0, 3.0, 5.0, 7.0, 10.0)
_CLASSES = {"digits": range(10), "patches": range(1, 7)}


def guidances(name: str, setting: Setting) -> dict[str, Any]:
    """Ratios at each guidance, of solvers fitted at one guidance and of solvers fitted at several."""
    benchmark, count = BENCHMARKS[name], setting.fitted + setting.held_out
    mixes = {"3 to 7": (3.0, 5.0, 7.0), "1 to 10": (1.0, 3.0, 6.0, 10.0)}
    fitted: dict[str, float | Tensor] = {f"{guidance:g}": guidance for guidance in GUIDANCES}
    fitted |= {label: torch.tensor([values[i % len(values)] for i in range(count)]) for label, values in mixes.items()}
    solvers = {label: fit(benchmark, guidance, setting).solver for label, guidance in fitted.items()}
    used = {f"{guidance:g}": unseen_trial(benchmark, guidance, setting) for guidance in _USED_GUIDANCES}
    return _ratios(f"{name}, guidance", benchmark, solvers, used, setting)


def seeds(name: str, setting: Setting) -> dict[str, Any]:
    """Ratios of solvers fitted on three sets of starts."""
    benchmark = BENCHMARKS[name]
    solvers = {f"starts {seed}": fit(benchmark, 3.0, setting, seed=seed).solver for seed in (0, 1, 2)}
    return _ratios(f"{name}, starts", benchmark, solvers, {"unseen": unseen_trial(benchmark, 3.0, setting)}, setting)


def classes(name: str, setting: Setting) -> dict[str, Any]:
    """Ratios on each half of the classes, of solvers fitted on either half."""
    benchmark, labels = BENCHMARKS[name], _CLASSES[name]
    shape = benchmark.conditioning(1, torch.Generator()).shape[1:]

    def limited_to(half: range) -> Benchmark:
        def draw(count: int, generator: torch.Generator) -> Tensor:
            return torch.randint(half.start, half.stop, (count, *shape), generator=generator)

        return replace(benchmark, conditioning=draw)

    middle = len(labels) // 2
    places = {"first half": limited_to(labels[:middle]), "second half": limited_to(labels[middle:])}
    return _across(f"{name}, classes", places, setting)


def sizes_of_pictures(name: str, setting: Setting) -> dict[str, Any]:
    """Ratios at each image size, of solvers fitted at each size."""
    sides = (8, 16, 24)
    places = {f"{side}x{side}": replace(BENCHMARKS[name], shape=(3, side, side)) for side in sides}
    return _across(f"{name}, size", places, setting)


def fine_tuned(setting: Setting) -> dict[str, Any]:
    """Ratios on the digits network and on a copy fine-tuned on digits turned upside down."""
    digits, tuned = BENCHMARKS["digits"], _train_further(300)
    places = {"original": digits, "fine-tuned": replace(digits, load=lambda dtype: tuned)}
    return _across("digits, network", places, replace(setting, cache=None))  # the cache is not keyed by network


def _across(what: str, places: Mapping[str, Benchmark], setting: Setting) -> dict[str, Any]:
    """Ratios at each place, of the solvers fitted at each place, at guidance 3."""
    solvers = {label: fit(place, 3.0, setting).solver for label, place in places.items()}
    used = {label: unseen_trial(place, 3.0, setting) for label, place in places.items()}
    return _ratios(what, next(iter(places.values())), solvers, used, setting)


def _ratios(
    what: str, benchmark: Benchmark, solvers: Mapping[str, Solver], used: Mapping[str, Trial], setting: Setting
) -> dict[str, Any]:
    """The best peer's error / ours, by solver and place of use."""
    (steps,) = setting.steps
    ratios: dict[str, dict[str, float]] = {label: {} for label in solvers}
    for place, unseen in used.items():
        (peer,) = peer_errors(benchmark, steps, unseen.first(setting.ranked), unseen)
        for label, solver in solvers.items():
            ratios[label][place] = peer / rmse(unseen, solver.table(steps, benchmark.noise))
    print(what, {n: {p: round(r, 2) for p, r in row.items()} for n, row in ratios.items()}, flush=True)
    return {"what": what, "steps": steps, "ratios": ratios}


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
