"""A fit that is killed loses nothing; benchmarks/kill_fit.py kills more of them, and keeps the record."""

from __future__ import annotations

import json
import os
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parent.parent / "benchmarks" / "kill_fit.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes, which Windows does not have")
def test_fits_that_are_killed_leave_whole_files_and_end_as_an_undisturbed_one(tmp_path):
    spec = spec_from_file_location("kill_fit", BENCHMARK)
    assert spec is not None and spec.loader is not None
    benchmark = module_from_spec(spec)
    benchmark.__package__ = "benchmarks"  # the tests' own package is loaded already
    spec.loader.exec_module(benchmark)
    found = benchmark.run(3, 1, tmp_path)
    assert len(found["runs"]) == 3 and found["finished"] >= 1


def test_the_record_is_of_fifty_kills():
    record = json.loads((BENCHMARK.parent / "results" / "kill_fit.json").read_text())
    assert record["kills"] == len(record["runs"]) == 50 and record["finished"] >= 1
    states = {run["left"].partition(" ")[2] or run["left"] for run in record["runs"]}
    assert {"records", "begun"} & states and len(states) >= 2
