"""Part of a table: image-to-image, denoise < 1 and split sigmas run only some of a solver's own grid."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

from .table import SolverTable

__all__ = ["part_of_table"]

_SAME = 1e-4  # hosts carry sigmas in float32, some of them interpolated twice


def part_of_table(table: SolverTable, sigma_first: float, sigma_last: float) -> SolverTable:
    """Returns the table that takes a state from `sigma_first` to `sigma_last` along this table's own grid.

    The part starts with the row whose own start is nearest to `sigma_first` (by the ratio of noise levels), ends with
    the row whose end is nearest to `sigma_last`, and stretches these two rows to meet both exactly. A row whose
    history is cut off gives the lost coefficients to its oldest remaining entry, so that a state on a straight path
    (one and the same D in every call) still stands at the table's levels after each row. An analytic first step is a
    statement about pure noise: it becomes a model call unless the part starts at `table.sigma_start`.

    Args:
        table: A solver on its whole grid.
        sigma_first: Noise level of the state that is handed in.
        sigma_last: Noise level wanted at the end; anything at or below `table.sigma_end` is the table's own end.

    Raises:
        ValueError: The two are not descending, the table's own levels are not, or nothing is left to do.
    """
    if not (math.isfinite(sigma_first) and sigma_first > sigma_last >= 0):
        raise ValueError(
            f"sigmas must descend from a finite level to 0 or above, got {sigma_first} -> {sigma_last}: hand over the "
            "noise levels in descending order, unflipped"
        )
    levels = table.levels.tolist()
    if math.isclose(sigma_first, levels[0], rel_tol=_SAME) and sigma_last <= levels[-1] * (1 + _SAME):
        return table
    if any(a <= b for a, b in pairwise(levels)):
        raise ValueError(f"only a descending grid has parts, this solver's is {levels}; run it with denoise 1, unsplit")
    if sigma_first <= table.sigma_end * (1 + _SAME):
        raise ValueError(
            f"the state must be noisier than the solver's own end, {table.sigma_end:.4g}, got {sigma_first:.4g}: raise "
            "denoise, or start the part earlier"
        )
    start = _nearest(levels[:-1], sigma_first)
    whole_end = sigma_last <= table.sigma_end * (1 + _SAME)
    end = table.steps if whole_end else max(start, _nearest(levels[1:], sigma_last)) + 1
    part = _rows(table, start, end)
    part = _stretch(part, 0, sigma_first, part.levels[1].item())
    return part if whole_end else _stretch(part, part.steps - 1, part.levels[-2].item(), sigma_last)


def _nearest(levels: list[float], sigma: float) -> int:
    """The index of the level nearest to sigma in log space; a final 0 counts as a quarter of the level before it."""
    if levels[-1] == 0 and len(levels) > 1:
        levels = [*levels[:-1], levels[-2] / 4]
    return min(range(len(levels)), key=lambda i: abs(math.log(max(levels[i], 1e-12) / sigma)))


def _rows(table: SolverTable, start: int, end: int) -> SolverTable:
    """Returns rows start ... end - 1; the coefficients of lost entries go to the oldest one that remains.

    On a straight path x_j = D + levels_j * noise a derivative entry is levels_j / sigmas_j * noise: where the model is
    called at another level than the state's, entries differ by that ratio, and their coefficients change hands at it.
    """
    coeffs, lost = table.coeffs[start:end, start:end].clone(), table.coeffs[start:end, :start]
    if table.entry == "derivative":
        seen = table.levels[:-1] / table.sigmas
        lost = lost * seen[:start] / seen[start]
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
    """Returns the table with row i taking the state from `sigma` to `sigma_next` instead of its own levels.

    The row's update is read as a change per unit of what it integrates: sigma itself for derivatives; for denoised
    entries x_next = r * x + (1 - r) * D with r = sigma_next / sigma, in VE and flow coordinates alike.
    """
    own, own_next = table.levels[i].item(), table.levels[i + 1].item()
    same_start = math.isclose(sigma, own, rel_tol=_SAME)
    if same_start and math.isclose(sigma_next, own_next, rel_tol=_SAME):
        return table
    levels, sigmas, scale, coeffs = (t.clone() for t in (table.levels, table.sigmas, table.scale, table.coeffs))
    levels[i], levels[i + 1] = sigma, sigma_next
    sigmas[i] *= sigma / own
    if table.entry == "derivative":
        coeffs[i] *= (sigma_next - sigma) / (own_next - own)
    else:
        r, own_r = sigma_next / sigma, own_next / own
        scale[i] += r - own_r
        coeffs[i] *= (1 - r) / (1 - own_r)
    return replace(
        table,
        levels=levels,
        sigmas=sigmas,
        scale=scale,
        coeffs=coeffs,
        analytic_first=table.analytic_first and (i > 0 or same_start),
    )
