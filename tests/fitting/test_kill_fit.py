"""A killed fit loses nothing; `python -m benchmarks.kill_fit` kills more fits and keeps the record."""

from __future__ import annotations

import signal

import pytest
from killed_fits import kill_fits

from benchmarks.record import read_records


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills with SIGKILL, which Windows does not have")
def test_killed_fits_leave_whole_files_and_end_like_an_undisturbed_one(tmp_path):
    record = kill_fits(2, 1, tmp_path)
    assert len(record["runs"]) == 2 and record["finished"] >= 1


def test_the_record_is_of_fifty_kills():
    (record,) = read_records("kill_fit").values()
    assert record["kills"] == len(record["runs"]) == 50 and record["finished"] >= 1
    states = {run["left"].partition(" ")[2] or run["left"] for run in record["runs"]}
    assert {"records", "begun"} & states and len(states) >= 2
