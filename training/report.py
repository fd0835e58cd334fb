"""The result of a fit, and its report as a Markdown table for terminal and file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..samplers import Solver, SolverTable
from .meter import duration

__all__ = ["FitResult", "Peer", "StepReport", "table_of", "verdict_of"]

_AS_CLOSE = 1.02  # a smaller difference is no reason for a new solver


@dataclass(frozen=True)
class Peer:
    """A classical solver: its name with its grid, its error and median on the held-out samples, see `StepReport`."""

    name: str
    error: float
    median: float
    table: SolverTable | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class StepReport:
    """The result for one step count; errors are RMSE to the teacher's end over held-out samples.

    Args:
        error_before: Error of the start of the fit.
        error_after: Error of the fitted solver.
        median_after: Root of the median of the samples' mean squares, which outliers do not dominate.
        peers: Classical solvers at equal calls, each at its best grid, best first.
        network_calls: Samples times calls for this step count, including the scan, excluding the teacher.
        seconds: Time spent by this process, interrupted runs included.
        start: Name of the start of the fit.
        samples: Number of samples that the parameters were fitted to.
        usual: Name of the peer that the model is usually sampled with; empty if unknown.
    """

    error_before: float
    error_after: float
    median_after: float
    peers: tuple[Peer, ...]
    network_calls: int
    seconds: float
    start: str
    samples: int = 0
    usual: str = ""


@dataclass(frozen=True)
class FitResult:
    """A fitted solver, and how the fit went.

    Args:
        solver: Ready to save and to sample with.
        report: Results per step count.
        teacher_calls: Network calls of the teacher, over all samples, shared by all step counts.
        held_out: Number of samples that the solver was evaluated on.
        at_knots: If fitted at several guidance values, the results by step count and guidance. `report` has the middle
            one's.
        seconds: Duration of the whole fit, interrupted runs included.
        levels: The teacher's grid at the guidance of `report`, shape [T + 1]; None for a recipe.
    """

    solver: Solver
    report: Mapping[int, StepReport]
    teacher_calls: int
    held_out: int
    at_knots: Mapping[tuple[int, float], StepReport] = field(default_factory=dict)
    seconds: float = 0.0
    levels: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def calls(self) -> int:
        """Network calls of the whole fit."""
        return self.teacher_calls + sum(report.network_calls for _, _, report in self.rows)

    @property
    def rows(self) -> list[tuple[int, str, StepReport]]:
        """All results: steps, guidance as text (empty if there is one), report."""
        if self.at_knots:
            return [(steps, f" at guidance {knot:g}", report) for (steps, knot), report in self.at_knots.items()]
        return [(steps, "", report) for steps, report in self.report.items()]


def _least_median(report: StepReport) -> float:
    return min(peer.median for peer in report.peers)


def _ratio(peer: float, fitted: float, digits: int = 2) -> str:
    return f"{peer / fitted:.{digits}f}" if fitted > 0 else "inf"


def verdict_of(result: FitResult) -> str:
    """In one line, how much closer to the teacher the solver is than the usual sampler, and what the fit took."""
    verdicts = []
    for steps, at, report in result.rows:
        if report is not result.report[steps]:
            continue
        best = report.peers[0]
        usual = next((peer for peer in report.peers if peer.name == report.usual), best)
        who = "the usual sampler" if usual.name == report.usual else "the best stock sampler tried"
        if _is_not_worth_it(report):
            verdicts.append(f"not worth it{at}: {_better_peer(steps, report)}")
            continue
        verdict = f"{_times(usual, report)} closer than {who} ({usual.name}, {steps} steps)"
        if best is not usual:
            verdict += f", {_times(best, report)} closer than the best stock sampler tried ({best.name})"
        verdicts.append(verdict + at)
    verdict = "; ".join(verdicts)
    return f"{verdict[0].upper()}{verdict[1:]}. The fit took {duration(result.seconds)} ({result.calls:,} calls)."


def _is_not_worth_it(report: StepReport) -> bool:
    return report.peers[0].error < _AS_CLOSE * report.error_after


def _better_peer(steps: int, report: StepReport) -> str:
    """That a classical solver is as close to the teacher as the fitted one, and the remedy."""
    remark = ", though its median is larger" if report.median_after < _least_median(report) else ""
    return (
        f"{report.peers[0].name}, {steps} steps, {_closeness(report)} the new solver{remark}: use it, or fit to more "
        "samples"
    )


def _closeness(report: StepReport) -> str:
    closer = report.peers[0].error < report.error_after
    return "is closer to the teacher than" if closer else "is as close to the teacher as"


def _times(peer: Peer, report: StepReport) -> str:
    digits = 1 if peer.error >= 1.1 * report.error_after else 2
    return f"{_ratio(peer.error, report.error_after, digits)} times"


def _shown(report: StepReport) -> str:
    """The three best peers and the usual sampler with their errors."""
    return "; ".join(
        f"{peer.name} {peer.error:.4f}" + " (as usual)" * (peer.name == report.usual)
        for rank, peer in enumerate(report.peers)
        if rank < 3 or peer.name == report.usual
    )


def table_of(result: FitResult) -> str:
    """The report in Markdown: the verdict, what a classical solver does as well, and per step count the numbers."""
    lines = [
        verdict_of(result),
        *(
            f"Not worth it{at}: {_better_peer(steps, report)}."
            for steps, at, report in result.rows
            if _is_not_worth_it(report) and report is not result.report[steps]
        ),
        "",
        "| calls | best classical solvers, each on its best grid | before | fitted | best classical / fitted "
        "| medians: best classical / fitted | network calls spent | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for steps, at, report in result.rows:
        lines.append(
            f"| {steps}{at} | {_shown(report)} | {report.error_before:.4f} | **{report.error_after:.4f}** "
            f"| {_ratio(report.peers[0].error, report.error_after)} "
            f"| {_ratio(_least_median(report), report.median_after)} "
            f"| {report.network_calls:,} | {report.seconds:.0f} |"
        )
    starts = "; ".join(f"{steps} calls: {report.start}" for steps, report in result.report.items())
    lines.append("")
    card = next(iter(result.solver.card.steps.values()))
    teacher_steps = f"{card.teacher_steps} steps" if card.teacher_steps else None
    teacher = ", ".join(filter(None, (card.teacher, teacher_steps)))
    lines.append(
        f"Errors are RMSE to the outputs of the teacher{f' ({teacher})' if teacher else ''} from the same noise, on "
        f"{result.held_out} held-out samples, to which nothing was fitted. A few trajectories that switch to another "
        "image can dominate such an error; the medians are insensitive to them. "
        f"*Before* is the error of each fit's initial solver ({starts}). "
        f"The teacher took {result.teacher_calls:,} network calls, shared by all rows."
    )
    return "\n".join(lines)
