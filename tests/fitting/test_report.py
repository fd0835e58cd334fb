"""The report of a fit: better peers, and the table of errors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from learned_solvers.training import Peer, StepReport, better_peers, table_of


def report(error: float, median: float = 0.15) -> StepReport:
    peers = (Peer("deis 2, shift 3", 0.20, 0.15), Peer("euler, shift 1", 0.45, 0.12))
    return StepReport(0.5, error, median, peers, 100, 1.0, "euler")


@pytest.mark.parametrize(
    ("median", "sentence"),
    [
        (0.15, "At 6 calls deis 2, shift 3 is closer to the teacher than the new solver: fit to more samples"),
        (0.10, "than the new solver, though its median is larger: fit to more samples"),
    ],
)
def test_a_closer_classical_solver_is_named_with_a_remedy(median, sentence):
    result = SimpleNamespace(report={4: report(0.19), 6: report(0.21, median)})
    (line,) = better_peers(result)  # type: ignore[arg-type]
    assert sentence in line


def test_the_table_shows_the_lead_in_error_and_in_median():
    result = SimpleNamespace(report={4: report(0.16, 0.04)}, held_out=16, teacher_calls=1000)
    row = table_of(result).splitlines()[2]  # type: ignore[arg-type]
    assert "| **0.1600** | 1.25 | 3.00 | 100 | 1 |" in row  # 0.20 / 0.16, and 0.12 / 0.04: each measure's best peer
