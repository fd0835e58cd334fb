"""What a fit says about its duration, before and during, and after it was interrupted."""

from __future__ import annotations

import pytest
from learned_solvers.training import meter as meter_module
from learned_solvers.training.meter import Meter


@pytest.mark.parametrize(
    ("rate", "forecast"),
    [
        (4.2, "about 12 minutes (3,100 calls at 4.2 per second), at most 16"),
        (0.7, "about 74 minutes (3,100 calls at 0.7 per second), at most 1.6 hours"),
        (0.04, "about 21.5 hours (3,100 calls at 25.0 seconds each), at most 27.8"),
        (0.01, "about 3.6 days (3,100 calls at 100.0 seconds each), at most 4.6"),
        (75.0, "less than a minute (3,100 calls at 75.0 per second), at most 1 minute"),
        (60.0, "about 1 minute (3,100 calls at 60.0 per second)"),
        (1000.0, "less than a minute (3,100 calls at 1,000 per second)"),
    ],
)
def test_a_forecast_is_in_minutes_and_says_what_it_is_based_on(rate, forecast):
    meter = Meter(3100, 4000)
    meter.rate = rate
    assert meter.forecast() == forecast


def test_a_meter_continues_where_an_interrupted_fit_was_at_the_pace_of_the_new_run(monkeypatch):
    now, updates = [0.0], []
    monkeypatch.setattr(meter_module.time, "monotonic", lambda: now[0])

    def work(meter: Meter, calls: int, seconds: float) -> None:
        for _ in range(calls):
            now[0] += seconds
            meter.add(1)

    first = Meter(1000, 1300)
    assert first.left() == ""
    work(first, 400, 0.5)
    record = first.record()
    now[0] += 10_000  # it was interrupted
    second = Meter(1000, 1300, lambda meter: updates.append((meter.calls, meter.total)))
    second.resume(record)
    second.rate = 2.0
    assert second.forecast() == "about 5 minutes left (600 calls at 2.0 per second), at most 8"
    work(second, 100, 2.0)
    assert second.left() == "about 17 minutes left" and second.seconds == 400
    assert updates == [(400 + i, 1000) for i in range(101)]
    work(second, 600, 0.1)
    assert updates[-1] == (1100, 1100) and second.left() == "less than a minute left"
