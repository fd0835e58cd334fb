"""The start of a fit from the teacher's own path: levels by dynamic programming, coefficients by regression.

The teacher's path gives the local error of any level and any row without a network call, as GITS uses it for Euler
(arXiv 2405.11326); the closed loop then runs the student once, so that later rows correct the errors of earlier ones.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ...samplers import SolverTable
from ...samplers.schedules import Noise
from ..data.samples import CountedDenoiser, Samples
from ..data.teacher import Reference, places_of

__all__ = ["MOST_LEVELS", "NO_EFFECT", "PATH_SAMPLES", "closed_loop", "path_levels"]

PATH_SAMPLES = 4
NO_EFFECT = (
    "no coefficient changes the model's end states: make the denoiser return the denoised state, not its input or a "
    "constant times it"
)
_RIDGE = 1e-3
MOST_LEVELS = 49  # the program's cost grows with their fourth power


def _slopes(path: Reference) -> Tensor:
    """dx/dsigma at every level of a path, from parabolas through neighbouring states, float64 on the CPU."""
    levels, x = path.levels.cpu().double(), path.states.flatten(2).cpu().double()
    steps = levels.diff()[:, None, None]
    secants = x.diff(dim=0) / steps
    inner = (steps[1:] * secants[:-1] + steps[:-1] * secants[1:]) / (steps[1:] + steps[:-1])
    return torch.cat([2 * secants[:1] - inner[:1], inner, 2 * secants[-1:] - inner[-1:]])


def path_levels(path: Reference, steps: int, noise: Noise, history: int) -> Tensor:
    """The teacher's levels on which a multistep solver's local errors add up to the least, shape [steps + 1].

    A dynamic program over triples of levels. The local error of a step is what remains of the teacher's step after
    regression on the newest slopes (at most three), divided by sigma^2 + 1 where noise is added to the state.
    """
    some = torch.linspace(0, len(path.levels) - 1, min(len(path.levels), MOST_LEVELS)).round().long()
    levels, slopes = path.levels.cpu().double()[some], _slopes(path)[some]
    x = path.states.flatten(2).cpu().double()[some]
    if not bool(slopes.any()):
        raise ValueError(NO_EFFECT)
    last, size = len(levels) - 1, x[0].numel()
    x = x - x[:1]
    ss, xs, xx = (torch.einsum("asd,bsd->ab", a, b) / size for a, b in ((slopes, slopes), (x, slopes), (x, x)))
    scale = torch.ones_like(levels) if noise.kind == "flow" else 1 / (levels.square() + 1)
    nodes = torch.arange(last)

    def costs(*entries: Tensor) -> Tensor:
        """Local errors of the steps from the newest of `entries` [M] to every level, shape [M, T + 1]."""
        at = torch.stack(entries, 1)
        used = at[:, max(0, len(entries) - history) :]
        gram = ss[used[:, :, None], used[:, None, :]]
        gram = gram + _RIDGE * gram[:, -1:, -1:] * torch.eye(used.shape[1], dtype=torch.float64)
        newest = at[:, -1]
        products = (xs[:, used] - xs[newest[:, None], used]).permute(1, 2, 0)  # [M, k, T + 1]
        rest = xx.diagonal()[None] - 2 * xx[newest] + xx.diagonal()[newest][:, None]
        error = (rest - (products * torch.linalg.solve(gram, products)).sum(1)).clamp(min=0) * scale
        return error.masked_fill(torch.arange(last + 1)[None] <= newest[:, None], math.inf)

    ends = torch.arange(last + 1) == last
    allowed = [ends if step == steps - 1 else ~ends for step in range(steps)]
    first = costs(torch.zeros(1, dtype=torch.long))[0].masked_fill(~allowed[0], math.inf)  # [b]
    if steps == 1:
        return levels[[0, last]]
    pair = torch.full((last, last + 1), math.inf, dtype=torch.float64)  # levels 0, a, b
    pair[1:] = first[1:last, None] + costs(torch.zeros(last - 1, dtype=torch.long), nodes[1:])
    pair = pair.masked_fill(~allowed[1], math.inf)
    best, back = torch.full((last, last, last + 1), math.inf, dtype=torch.float64), []
    best[0] = pair  # [q, a, b]: the newest three levels
    grid = torch.cartesian_prod(nodes, nodes, nodes)
    grid = grid[(grid.diff(dim=1) > 0).all(1)]
    triple = torch.full((last, last, last, last + 1), math.inf, dtype=torch.float64)
    triple[grid[:, 0], grid[:, 1], grid[:, 2]] = costs(*grid.unbind(1))
    for step in range(2, steps):
        following, origin = (best[:, :, :last, None] + triple).min(0)
        best = following.masked_fill(~allowed[step], math.inf)
        back.append(origin)
    flat = int(best.argmin())
    chosen = [flat // (last * (last + 1)), flat // (last + 1) % last, flat % (last + 1)]
    for origin in reversed(back):
        chosen.insert(0, int(origin[chosen[0], chosen[1], chosen[2]]))
    return levels[chosen[-steps - 1 :]]


def closed_loop(
    model: CountedDenoiser, samples: Samples, path: Reference, levels: Tensor, history: int, *, free_sums: bool
) -> tuple[SolverTable, float]:
    """The solver whose every row leads from its own state nearest to the teacher's at the next level; its error.

    Each row is a ridge regression on the entries of its window, towards Euler. The last row leads to the teacher's end.

    Args:
        model: The denoiser; it is called once per step.
        samples: Starts of the path.
        path: The teacher's states at all its levels, at `places_of` their numbers.
        levels: Noise levels, descending, shape [N + 1].
        history: Newest entries that a row uses.
        free_sums: Whether a row may lead to another level, as DyWeight's may; otherwise its sum is the step.
    """
    steps, slopes, places = len(levels) - 1, _slopes(path), places_of(samples.x[0].numel())

    def numbers(states: Tensor) -> Tensor:
        return states.flatten(1)[:, places].flatten().cpu().double()

    def denoise(x: Tensor, sigma: float) -> Tensor:
        def part(start: int, stop: int) -> Tensor:
            batch = replace(samples.rows(start, stop), x=x[start:stop]).loaded()
            return model(batch.x, sigma * batch.x.new_ones(len(batch)), **batch.extra_args).cpu()

        return torch.cat(list(model.each(samples, part)))

    x, entries, seen = samples.x.cpu(), dict[int, Tensor](), dict[int, Tensor]()
    coeffs = torch.zeros(steps, steps, dtype=torch.float64)
    for i in range(steps):
        sigma, step = float(levels[i]), float(levels[i + 1] - levels[i])
        entries[i] = (x - denoise(x, sigma)) / sigma
        seen[i] = numbers(entries[i])
        used = list(range(max(0, i - history + 1), i + 1))
        target = path.states[-1].flatten(1).cpu().double() if i == steps - 1 else _state_at(path, slopes, levels[i + 1])
        rows = torch.stack([step * seen[j] for j in used])
        goal = target.flatten() - numbers(x)
        if not bool(rows[-1].any()):
            raise ValueError(NO_EFFECT)
        columns = rows if free_sums else rows[:-1] - rows[-1]
        gram = columns @ columns.T + _RIDGE * rows[-1].square().sum() * torch.eye(len(columns), dtype=torch.float64)
        change = torch.linalg.solve(gram, columns @ (goal - rows[-1]))  # of Euler's row
        row = torch.cat([change, -change.sum()[None]]) if not free_sums else change
        row[-1] += 1
        coeffs[i, used] = step * row
        x = x + sum(float(coeffs[i, j]) * entries[j] for j in used)
        entries.pop(i - history + 1, None)
        seen.pop(i - history + 1, None)
    error = float((numbers(x) - path.states[-1].flatten().cpu().double()).square().mean().sqrt())
    ones = torch.ones(steps, dtype=torch.float64)
    return SolverTable(levels.double(), levels[:-1].double(), ones, coeffs, "derivative"), error


def _state_at(path: Reference, slopes: Tensor, level: Tensor) -> Tensor:
    """The path's states at a level, cubic between its own levels, shape [S, D], float64 on the CPU."""
    levels = path.levels.cpu().double()
    i = int((levels > float(level)).sum().clamp(1, len(levels) - 1))
    step = levels[i] - levels[i - 1]
    t = (float(level) - levels[i - 1]) / step
    x = path.states[i - 1 : i + 1].flatten(2).cpu().double()
    slope = step * slopes[i - 1 : i + 1]
    return (
        (2 * t**3 - 3 * t**2 + 1) * x[0] + (3 * t**2 - 2 * t**3) * x[1]
        + (t**3 - 2 * t**2 + t) * slope[0] + (t**3 - t**2) * slope[1]
    )  # fmt: skip
