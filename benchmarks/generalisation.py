"""Generalisation: solvers used at another guidance, size, class set or network than they were fitted at.

Every figure is the best peer's error divided by ours, at the place of use: above 1 the solver still wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from learned_solvers.samplers import Solver
from learned_solvers.training.data.trial import Trial
from learned_solvers.training.models.digits import DigitsDenoiser, DigitsTransformer, load_digits
from learned_solvers.training.starts.candidates import rmse
from learned_solvers.training.train_digits import flow_loss, load_pictures
from torch import Tensor

from .fidelity import Sizes, fit, unseen_of
from .peers import best_peers, least_error
from .subjects import SUBJECTS, Subject

__all__ = ["GUIDANCES", "classes", "fine_tuned", "guidances", "seeds", "sizes_of_pictures"]

STEPS = 5
GUIDANCES = (1.0, 3.0, 5.0, 7.0, 10.0)


def guidances(name: str, sizes: Sizes, cache: Path | None) -> dict[str, Any]:
    """Returns ratios at each guidance of solvers fitted at one guidance, and at several at once."""
    subject = SUBJECTS[name]
    count = sizes.fitted + sizes.held_out
    fitted_at: Mapping[str, float | Tensor] = {
        "1": 1.0, "3": 3.0, "7": 7.0,
        "3 to 7": _spread((3.0, 5.0, 7.0), count), "1 to 10": _spread((1.0, 3.0, 6.0, 10.0), count),
    }  # fmt: skip
    solvers = {label: fit(subject, "dyweight", at, (STEPS,), sizes).solver for label, at in fitted_at.items()}
    used = {f"{at:g}": unseen_of(subject, at, sizes.unseen, cache) for at in GUIDANCES}
    return _ratios(f"{name}, guidance", subject, solvers, used, sizes)


def seeds(name: str, sizes: Sizes, cache: Path | None) -> dict[str, Any]:
    """Returns the ratios of solvers fitted on three other sets of starts."""
    subject = SUBJECTS[name]
    solvers = {f"starts {n}": fit(subject, "dyweight", 3.0, (STEPS,), sizes, seed=n).solver for n in (0, 1, 2)}
    return _ratios(f"{name}, starts", subject, solvers, {"unseen": unseen_of(subject, 3.0, sizes.unseen, cache)}, sizes)


def classes(name: str, sizes: Sizes, cache: Path | None) -> dict[str, Any]:
    """Returns ratios on each half of the classes of solvers fitted on either half."""
    subject = SUBJECTS[name]
    count = 10 if name == "digits" else 6
    first = 0 if name == "digits" else 1
    halves = {"first half": (first, first + count // 2), "second half": (first + count // 2, first + count)}

    def limited(low: int, high: int) -> Subject:
        shape = () if name == "digits" else (1,)
        return replace(subject, conditioning=lambda n, g: torch.randint(low, high, (n, *shape), generator=g))

    solvers = {label: fit(limited(*half), "dyweight", 3.0, (STEPS,), sizes).solver for label, half in halves.items()}
    used = {label: unseen_of(limited(*half), 3.0, sizes.unseen, cache) for label, half in halves.items()}
    return _ratios(f"{name}, classes", subject, solvers, used, sizes)


def sizes_of_pictures(name: str, sizes: Sizes, cache: Path | None) -> dict[str, Any]:
    """Returns ratios at other picture sizes of a solver fitted at 16x16 and of ones fitted there."""
    subject = SUBJECTS[name]
    places = {f"{side}x{side}": replace(subject, shape=(3, side, side)) for side in (8, 16, 24)}
    solvers = {label: fit(place, "dyweight", 3.0, (STEPS,), sizes).solver for label, place in places.items()}
    used = {label: unseen_of(place, 3.0, sizes.unseen, cache) for label, place in places.items()}
    return _ratios(f"{name}, size", subject, solvers, used, sizes)


def fine_tuned(sizes: Sizes) -> dict[str, Any]:
    """Returns ratios on a copy of the digits network that was trained further, on digits turned upside down."""
    subject = SUBJECTS["digits"]
    tuned = _trained_further(300)
    places = {
        "original": subject,
        "fine-tuned": replace(subject, load=lambda dtype: tuned),
    }
    solvers = {label: fit(place, "dyweight", 3.0, (STEPS,), sizes).solver for label, place in places.items()}
    used = {label: unseen_of(place, 3.0, sizes.unseen) for label, place in places.items()}
    return _ratios("digits, network", subject, solvers, used, sizes)


def _spread(values: tuple[float, ...], count: int) -> Tensor:
    """Returns a guidance per sample: the values in turn."""
    return torch.tensor(values).repeat(-(-count // len(values)))[:count]


def _ratios(
    label: str, subject: Subject, solvers: Mapping[str, Solver], used: Mapping[str, Trial], sizes: Sizes
) -> dict[str, Any]:
    """Returns best peer / ours, by solver and by place of use."""
    ratios: dict[str, dict[str, float]] = {name: {} for name in solvers}
    for place, unseen in used.items():
        peer = least_error(unseen, best_peers(subject, unseen, STEPS, sizes))
        for name, solver in solvers.items():
            ratios[name][place] = peer / rmse(unseen, solver.table(STEPS, subject.noise))
    print(label, {n: {p: round(r, 2) for p, r in row.items()} for n, row in ratios.items()}, flush=True)
    return {"what": label, "steps": STEPS, "ratios": ratios}


def _trained_further(steps: int) -> DigitsDenoiser:
    """Returns the digits network after some steps on digits upside down, about as far from it as a fine-tune is."""
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
