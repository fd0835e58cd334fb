"""The grid of a many-step reference, with short steps where the model's path bends."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...samplers import ipndm, sample_table
from ...samplers.classical.adams import polynomial_weights
from ...samplers.grids import interpolate
from ...samplers.loop import Denoiser
from ...samplers.schedules import Noise
from .samples import Samples, each_microbatch

__all__ = ["PILOT_CALLS", "dense_grid"]

_STEPS, _SAMPLES = 20, 2  # of the pilot run
PILOT_CALLS = _STEPS * _SAMPLES
_ORDER = 4  # slopes from which a step's error is estimated
_EVEN = 0.3  # part of the steps that is spread evenly, whatever the estimate


def dense_grid(model: Denoiser, samples: Samples, noise: Noise, steps: int) -> Tensor:
    """Levels on which the steps of a multistep method have about equal errors, shape [steps + 1].

    The first two samples run 20 steps; the error of each is the difference between the integrals of the polynomials
    through the four and through the three slopes nearest to it. The error of such a step grows with the fourth power of
    its length, so the density of steps is its fourth root (de Boor's equidistribution). Costs `PILOT_CALLS`.
    """
    pilot, few = noise.teacher_grid(_STEPS), samples.rows(0, _SAMPLES)
    ends_at_data = noise.kind == "flow"  # others have no slope below their lowest level: the step to 0 stays one step

    def squares(start: int, stop: int) -> Tensor:
        slopes, errors, batch = dict[int, Tensor](), list[Tensor](), few.rows(start, stop).loaded()

        def keep(step: dict) -> None:
            slopes[step["i"]] = (step["x"] - step["denoised"]) / step["sigma"]
            while len(errors) < _STEPS - 1 and _nodes(len(errors))[-1] <= step["i"]:
                errors.append(_difference(pilot, slopes, len(errors)).square().sum())
                for i in [i for i in slopes if i < _nodes(len(errors))[0]]:
                    del slopes[i]

        sample_table(model, batch.x, ipndm(pilot, 3), batch.extra_args, keep, disable=True)
        return torch.stack(errors).cpu().double()

    total = torch.stack(list(each_microbatch(model, few, squares))).sum(0)
    known = pilot if ends_at_data else pilot[:-1]
    total = torch.cat([total, total[-1:]]) if ends_at_data else total / (known[:-1] ** 2 + 1)
    density = total.clamp(min=max(1e-12 * float(total.max()), 1e-300)) ** (0.5 / _ORDER)
    for _ in range(2):
        density = (torch.cat([density[:1], density[:-1]]) + 2 * density + torch.cat([density[1:], density[-1:]])) / 4
    density = (1 - _EVEN) * density / density.sum() + _EVEN / len(density)
    cumulative = torch.cat([density.new_zeros(1), density.cumsum(0)])
    targets = torch.linspace(0, float(cumulative[-1]), steps + len(known) - len(pilot) + 1, dtype=torch.float64)
    levels = interpolate(targets, cumulative, known if ends_at_data else known.log())
    levels = levels if ends_at_data else levels.exp()
    return torch.cat([pilot[:1], levels[1:-1], pilot[len(known) - 1 :]])


def _nodes(i: int) -> list[int]:
    """The four slopes that are nearest to the step from level i to the next."""
    first = max(0, min(i + 1 - _ORDER // 2, _STEPS - _ORDER))
    return list(range(first, first + _ORDER))


def _difference(levels: Tensor, slopes: Mapping[int, Tensor], i: int) -> Tensor:
    """The difference of the integrals from level i to the next, through the nearest four slopes and three."""
    nodes = _nodes(i)
    farthest = max(nodes, key=lambda j: abs(j - i - 0.5))
    fewer = [j for j in nodes if j != farthest]
    weights = dict(zip(nodes, polynomial_weights(levels[nodes], levels[i], levels[i + 1]).tolist(), strict=True))
    for j, weight in zip(fewer, polynomial_weights(levels[fewer], levels[i], levels[i + 1]).tolist(), strict=True):
        weights[j] -= weight
    return sum((weight * slopes[j] for j, weight in weights.items()), torch.zeros_like(slopes[nodes[0]]))
