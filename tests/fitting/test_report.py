"""What a fit says about itself, for people."""

from __future__ import annotations

from types import SimpleNamespace

from learned_solvers.training import Peer, StepReport, better_peers, table_of


def step(after: float, median: float = 0.15) -> StepReport:
    peers = (Peer("deis 2, shift 3", 0.20, 0.15), Peer("euler, shift 1", 0.45, 0.12))
    return StepReport(0.5, after, median, peers, 100, 1.0, "euler")


def test_a_classical_solver_that_is_closer_is_named_with_what_to_do():
    (told,) = better_peers(SimpleNamespace(report={4: step(0.19), 6: step(0.21)}))  # type: ignore[arg-type]
    assert told.startswith("At 6 calls deis 2, shift 3 is closer to the teacher than the new solver: ")
    assert "take more samples, or that one" in told
    (told,) = better_peers(SimpleNamespace(report={6: step(0.21, 0.1)}))  # type: ignore[arg-type]
    assert "than the new solver, though its median is larger: take more samples" in told


def test_the_table_shows_the_lead_in_error_and_in_median():
    result = SimpleNamespace(report={4: step(0.16, 0.04)}, held_out=16, teacher_calls=1000)
    row = table_of(result).splitlines()[2]  # type: ignore[arg-type]
    assert "| **0.1600** | 1.25 | 3.00 | 100 | 1 |" in row  # 0.20 / 0.16, and 0.12 / 0.04: each measure's best peer
