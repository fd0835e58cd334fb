"""Numbers in the documents against the benchmarks' records and the fit's own estimates; their wording is free."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import pytest
import torch
from learned_solvers.samplers import EDMNoise, FlowNoise, VPNoise
from learned_solvers.samplers.schedules import Noise
from learned_solvers.training import EFFORTS, FitJob, FitSettings, most_calls
from learned_solvers.training.data.samples import Samples
from learned_solvers.training.starts.candidates import UsualSampler
from repository import ROOT

from benchmarks.cost import calls_alone
from benchmarks.fidelity import points
from benchmarks.figures import FIGURES
from benchmarks.jobs import PARTS as MEASURED_PARTS
from benchmarks.jobs import jobs_by_part
from benchmarks.record import RESULTS, read_measurements, read_records
from benchmarks.suite import BENCHMARKS
from benchmarks.tables import PARTS, with_tables

VP = VPNoise.stable_diffusion()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]


def most_calls_of_fit(steps: int, noise: Noise, numbers: int, usual: UsualSampler | None = None) -> int:
    """The limit on network calls of a fit with the default effort to samples of that many numbers."""
    samples, held_out = EFFORTS["default"].for_numbers(numbers).sizes(None)
    x = noise.sigma_max * torch.randn(samples + held_out, numbers, generator=torch.Generator().manual_seed(0))
    return most_calls(
        FitJob(FitSettings(steps=(steps,), usual=usual, held_out=held_out), Samples(x, {}, len(x)), noise, {})
    )


def limits() -> Iterable[object]:
    numbers = 4 * 64 * 64  # SD 1.5's
    yield from EFFORTS["default"].for_numbers(numbers).sizes(None)
    for steps in (3, 4, 5, 6, 8, 10):
        noises = (FlowNoise(), VP, EDMNoise())
        usual = (UsualSampler("euler", "simple", noise.teacher_grid) for noise in noises)
        most = max(most_calls_of_fit(steps, noise, numbers, u) for noise, u in zip(noises, usual, strict=True))
        yield from (100 * math.ceil(most / 100), steps)


def test_the_cost_of_a_fit_is_that_of_its_settings():
    """In the tables and the text of the section, in this order, with other numbers in between."""
    text = (ROOT / "docs" / "fit.md").read_text(encoding="utf-8").partition("\n## What does it cost?\n")[2]
    numbers = re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", re.split(r"^#", text, maxsplit=1, flags=re.MULTILINE)[0])
    remaining = iter([number.replace(",", "") for number in numbers])
    assert [value for value in map(str, limits()) if value not in remaining] == [], "missing, or in another order"


def test_recorded_fits_take_the_stated_part_of_their_limit():
    for (name, _, steps), point in points().items():
        limit = most_calls_of_fit(steps, BENCHMARKS[name].noise, math.prod(BENCHMARKS[name].shape))
        for run in point["fits"]:
            if (run["family"], run["effort"]) == ("dyweight", "default"):
                assert 0.6 < calls_alone(name, steps, "default", run) / limit <= 1


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_tables_are_those_of_the_records(document):
    text = document.read_text(encoding="utf-8")
    assert with_tables(text) == text, "run python -m benchmarks figures"
    named = re.findall(r"<!-- table: (\w+) -->\n", text)
    assert set(named) <= set(PARTS) and text.count("<!-- end -->") == len(named)
    written = re.sub(r"(?<=<!-- table: )(\w+ -->\n).*?(?=<!-- end -->)", r"\1", text, flags=re.DOTALL)
    measured = [name for name in named if any(PARTS[name]())]
    assert all(f"<!-- table: {name} -->\n<!-- end" not in with_tables(written) for name in measured)


def test_every_figure_is_shown_and_every_table_written_somewhere():
    text = "".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
    assert set(re.findall(r"figures/(\w+)\.png", text)) == set(FIGURES)
    assert set(re.findall(r"<!-- table: (\w+) -->", text)) == set(PARTS)


def test_no_solver_is_closer_than_its_bound():
    """The error of every recorded fit is at least the distance to the span of its trajectory."""
    for point in points().values():
        assert all(run["error"] >= 0.999 * run["span"] for run in point["fits"])


def test_every_measurement_is_on_record():
    assert {path.stem for path in RESULTS.glob("*.json")} == set(MEASURED_PARTS)
    for part, jobs in jobs_by_part().items():
        assert part == "overhead" or set(read_records(part)) == {job.name for job in jobs}


def test_records_name_where_they_come_from():
    for path in RESULTS.glob("*.json"):
        for measurement in read_measurements(path).values():
            assert {"command", "commit", "code", "machine", "seconds", "torch", "python"} <= set(measurement["about"])
