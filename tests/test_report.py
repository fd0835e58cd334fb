"""What a fit says about itself, for people."""

from __future__ import annotations

from types import SimpleNamespace

from learned_solvers.training import Peer, StepReport, better_peers


def step(after: float) -> StepReport:
    return StepReport(0.5, after, (Peer("deis 2, shift 3", 0.20), Peer("euler, shift 1", 0.45)), 100, 1.0, "euler")


def test_a_classical_solver_that_is_closer_is_named_with_what_to_do():
    (told,) = better_peers(SimpleNamespace(report={4: step(0.19), 6: step(0.21)}))  # type: ignore[arg-type]
    assert told.startswith("At 6 calls deis 2, shift 3 is closer to the teacher than the new solver: ")
    assert "take more samples, or that one" in told
