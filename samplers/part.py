"""Part of a table, for image-to-image, denoise < 1 and split sigmas."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

from .table import SolverTable

__all__ = ["part_of_table"]

_SAME = 1e-4  # relative; hosts keep sigmas in float32, some of them interpolated twice


def part_of_table(table: SolverTable, sigma_first: float, sigma_last: float) -> SolverTable:
    """The table that takes a state from `sigma_first` to `sigma_last` along the grid of `table`.

    The part begins with the row whose start is nearest to `sigma_first` (by the ratio of noise levels), ends with the
    row whose end is nearest to `sigma_last`, and stretches these two rows to meet both exactly. In a row that loses
    history, the lost coefficients go to the oldest remaining entry, so that a state on a straight path (the same D in
    every call) is still at the table's level after each row. An analytic first step holds for pure noise only: it
    becomes a model call unless the part starts at `table.sigma_start`.

    Args:
        table: A solver on its whole grid.
        sigma_first: Noise level of the start.
        sigma_last: Noise level of the result; the part ends at `table.sigma_end` if that is higher.

    Raises:
        ValueError: The two sigmas or the table's levels do not descend, or `sigma_first` is at the table's end.
    """
    if not (math.isfinite(sigma_first) and sigma_first > sigma_last >= 0):
        raise ValueError(
            f"sigmas must descend from a finite level to 0 or above, got {sigma_first} -> {sigma_last}; "
            "connect them in descending order, not flipped"
        )
    levels = table.levels.tolist()
    if math.isclose(sigma_first, levels[0], rel_tol=_SAME) and sigma_last <= levels[-1] * (1 + _SAME):
        return table
    if any(a <= b for a, b in pairwise(levels)):
        raise ValueError(
            f"this solver's noise levels {levels} are not descending, so it can only run as a whole; use denoise 1 and "
            "unsplit sigmas"
        )
    if sigma_first <= table.sigma_end * (1 + _SAME):
        raise ValueError(
            f"the first sigma, {sigma_first:.4g}, is not above the solver's last noise level, {table.sigma_end:.4g}; "
            "raise denoise, or split the sigmas earlier"
        )
    start = _nearest(levels[:-1], sigma_first)
    runs_to_end = sigma_last <= table.sigma_end * (1 + _SAME)
    end = table.steps if runs_to_end else max(start, _nearest(levels[1:], sigma_last)) + 1
    part = _rows(table, start, end)
    part = _stretch(part, 0, sigma_first, part.levels[1].item())
    return part if runs_to_end else _stretch(part, part.steps - 1, part.levels[-2].item(), sigma_last)


def _nearest(levels: list[float], sigma: float) -> int:
    """The index of the level nearest to sigma in log space; a final 0 counts as a quarter of the level before it."""
    if levels[-1] == 0 and len(levels) > 1:
        levels = [*levels[:-1], levels[-2] / 4]
    return min(range(len(levels)), key=lambda i: abs(math.log(max(levels[i], 1e-12) / sigma)))


def _rows(table: SolverTable, start: int, end: int) -> SolverTable:
    """Rows start ... end - 1; the coefficients of lost entries go to the oldest remaining entry.

    On a straight path x_j = D + levels_j * noise, a derivative entry is levels_j / sigmas_j * noise. Where the model is
    called at a level other than the state's, this ratio differs between entries, so it scales the moved coefficients.
    """
    coeffs, lost = table.coeffs[start:end, start:end].clone(), table.coeffs[start:end, :start]
    if table.entry == "derivative":
        ratio = table.levels[:-1] / table.sigmas
        lost = lost * ratio[:start] / ratio[start]
    coeffs[:, 0] += lost.sum(1)
    return SolverTable(
        levels=table.levels[start : end + 1],
        sigmas=table.sigmas[start:end],
        scale=table.scale[start:end],
        coeffs=coeffs,
        entry=table.entry,
        analytic_first=table.analytic_first and start == 0,
    )


def _stretch(table: SolverTable, i: int, sigma: float, sigma_next: float) -> SolverTable:
    """The table whose row i takes the state from `sigma` to `sigma_next` instead of between its two levels.

    Derivative rows scale with the length of the step in sigma. Denoised rows are x_next = r * x + (1 - r) * D with
    r = sigma_next / sigma, in VE and in flow coordinates, and scale with 1 - r.
    """
    level, level_next = table.levels[i].item(), table.levels[i + 1].item()
    same_start = math.isclose(sigma, level, rel_tol=_SAME)
    if same_start and math.isclose(sigma_next, level_next, rel_tol=_SAME):
        return table
    levels, sigmas, scale, coeffs = (t.clone() for t in (table.levels, table.sigmas, table.scale, table.coeffs))
    levels[i], levels[i + 1] = sigma, sigma_next
    sigmas[i] *= sigma / level
    if table.entry == "derivative":
        coeffs[i] *= (sigma_next - sigma) / (level_next - level)
    else:
        r, level_r = sigma_next / sigma, level_next / level
        scale[i] += r - level_r
        coeffs[i] *= (1 - r) / (1 - level_r)
    return replace(
        table,
        levels=levels,
        sigmas=sigmas,
        scale=scale,
        coeffs=coeffs,
        analytic_first=table.analytic_first and (i > 0 or same_start),
    )
