"""Interrupted fits resume: nothing is lost, and the result is the same file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fits import FLOW, Watched, quick_fit, starts
from learned_solvers.samplers import FlowNoise, VPNoise, euler
from learned_solvers.training import FitJob, FitResult, FitSettings, GradientDescent, LevenbergMarquardt, Teacher, fit
from learned_solvers.training import meter as meter_module
from learned_solvers.training.data.samples import CountedDenoiser, Samples
from learned_solvers.training.fit import run_fit
from learned_solvers.training.meter import Meter
from learned_solvers.training.store.content import content_hash
from learned_solvers.training.store.journal import Journal
from oracles import curved, ds_solver, smooth
from torch.testing import assert_close


def file_of(result: FitResult, folder: Path) -> bytes:
    return result.solver.save(folder / "result.safetensors", overwrite=True).read_bytes()


@pytest.mark.parametrize("part", [0.05, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"steps": (5,), "teacher": euler(torch.linspace(1, 0, 7, dtype=torch.float64))},
        {"optimizer": "adam"},
        {"guidance": (1.0, 2.0), "guidance_argument": "guidance"},
    ],
    ids=["two starts", "one start and a table as teacher", "adam", "knots"],
)
def test_a_fit_interrupted_anywhere_resumes_and_ends_with_the_same_file(tmp_path, monkeypatch, settings, part):
    now, log = [0.0], []
    monkeypatch.setattr(meter_module.time, "monotonic", lambda: now[0])

    def slow(x: torch.Tensor, sigma: torch.Tensor, **extra_args: object) -> torch.Tensor:
        now[0] += 1
        return smooth(x, sigma)

    model, resumed_model, finished_model = (Watched(model=slow) for _ in range(3))
    settings = {"steps": (3, 4), **settings}
    whole = quick_fit(model, **settings)
    settings |= {"journal": tmp_path / "journal", "cache": tmp_path / "cache"}

    def stop(x: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    interrupted_model = Watched(int(part * model.calls), stop, slow)
    with pytest.raises(KeyboardInterrupt):
        quick_fit(interrupted_model, **settings)
    resumed = quick_fit(resumed_model, progress=log.append, **settings)
    finished = quick_fit(finished_model, **settings)
    files = [file_of(result, tmp_path) for result in (whole, resumed, finished)]
    assert files[0] == files[1] == files[2]
    assert finished_model.calls == 0
    reports = [[replace(report, seconds=0.0) for report in r.report.values()] for r in (whole, resumed, finished)]
    assert reports[0] == reports[1] == reports[2]
    spent = [torch.tensor([report.seconds for _, _, report in r.rows]) for r in (whole, resumed, finished)]
    assert spent[0].sum() == model.calls  # a second each
    assert_close(spent[1], spent[0], rtol=0, atol=8.0)  # a teacher's run that was cached, but not recorded, is lost
    assert spent[2].equal(spent[1])
    assert log[0] == f"resuming the fit in {tmp_path / 'journal'}"
    # The work since the last record is repeated: a Jacobian, or a tenth of gradient descent.
    assert interrupted_model.samples + resumed_model.samples < 1.25 * model.samples


@dataclass
class Condition:
    value: torch.Tensor


class Opaque:
    """A condition that only the model understands; its repr has an address in it."""


def key_of(*, noise=FLOW, x=None, shift=0.0, microbatch=24, card=None, **settings) -> str:
    """The key of a fit's journal."""
    x = starts("flow", 24) if x is None else x
    extra_args = {"shift": shift, "condition": [Opaque() for _ in x]}  # objects of unknown types count by their type
    return FitJob(FitSettings(**settings), Samples(x, extra_args, microbatch), noise, card or {}).content_hash()


@pytest.mark.parametrize(
    "changed",
    [
        {"steps": (4,)}, {"family": "ds"}, {"history": 4}, {"teacher": Teacher("heun", 61)}, {"loss": "l1"},
        {"optimizer": GradientDescent()}, {"initial": "euler"}, {"held_out": 7}, {"seed": 1}, {"effort": "quick"},
        {"guidance": (3.0,)}, {"guidance_argument": "guidance"},
        {"x": -starts("flow", 24)}, {"shift": torch.ones(24, 1)}, {"noise": FlowNoise(256)},
    ],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_a_journals_key_depends_on_everything_that_changes_the_result(changed):
    assert key_of(**changed) != key_of() == key_of(microbatch=5, card={"note": "other"}, history=3, held_out=4)


def test_a_journals_key_depends_on_the_content_of_noise_teacher_and_initial_solver(tmp_path):
    levels = torch.linspace(0.03, 14.6, 2000, dtype=torch.float64)  # a repr has dots in the middle
    keys, file = [], tmp_path / "start.safetensors"
    for change, solver in ((0, ds_solver(4)), (0.001, ds_solver(4, 5))):
        noise = VPNoise.from_sigmas(levels + change * (torch.arange(2000) == 1000))
        solver.save(file, overwrite=True)
        keys += [key_of(noise=noise, x=starts("vp", 24)), key_of(family="ds", initial=str(file))]
    levels = torch.linspace(1, 0, 7, dtype=torch.float64)
    keys += [key_of(teacher=table) for table in (euler(levels), euler(levels.square()))]
    assert len(set(keys)) == 6 and keys[-1] == key_of(teacher=euler(levels.square()))


def test_a_journal_of_another_fit_is_refused(tmp_path):
    quick_fit(steps=(2,), journal=tmp_path / "journal")
    with pytest.raises(ValueError, match="journal belongs to a fit with different settings"):
        quick_fit(steps=(4,), journal=tmp_path / "journal")


def test_progress_that_a_fit_does_not_use_is_named(tmp_path):
    job, lines = FitJob(FitSettings(steps=(2,), teacher_steps=6), Samples(starts(), {}, 12), FLOW, {}), []
    for name, count in (("one", 0), ("other", 1), ("other", 1)):
        run_fit(
            job, smooth, lines.append, meter=Meter(), deliver=str, remark=str, pictures=1, folder=tmp_path / name
        )  # fmt: skip
        assert sum("has the progress of another fit" in line for line in lines) == count


def test_the_errors_of_the_pictures_are_those_of_the_report(tmp_path):
    job = FitJob(FitSettings(steps=(2,), teacher_steps=6), Samples(starts(), {}, 12), FLOW, {})
    fits: list[FitResult] = []
    teacher, *results = run_fit(
        job, smooth, str, meter=Meter(), deliver=fits.append, remark=str, pictures=job.held_out, folder=tmp_path
    )  # fmt: skip
    report = fits[0].report[2]
    assert teacher.ends is not None and len(teacher.ends) == job.held_out
    errors = {result.learned: result.error for result in results}
    assert errors == pytest.approx({True: report.error_after, False: report.peers[0].error}, rel=1e-6)


def test_the_content_hash_distinguishes_values():
    content = partial(content_hash, describe=lambda other: type(other).__qualname__)
    tensor = torch.arange(3000.0)
    other = tensor.clone()
    other[1500] += 1  # where a repr has dots
    pairs = [
        (tensor, other), (tensor, tensor.view(3, 1000)), ([tensor], [other]), ({"a": tensor}, {"a": other}),
        (tensor.numpy(), other.numpy()), ([1, [2]], [[1], 2]), ({"a": 1}, {"b": 1}), (1, "1"), (None, False),
        (["a,b"], ["a", "b"]), (["ab", "c"], ["a", "bc"]), ({"a": 1}, ["a", 1]), (b"a", b"b"),
        (np.float32(3), np.float32(5)), (np.array(["a"]), np.array(["b"])), (Condition(tensor), Condition(other)),
        (np.array([None, "a"]), np.array([None, "b"])), (tensor.bool(), other.view(2, -1).bool()),
    ]  # fmt: skip
    assert all(content(a) != content(b) for a, b in pairs)
    assert content({"a": 1, "b": [tensor]}) == content({"b": [tensor.clone()], "a": 1})
    assert content(tensor.numpy()[::-1]) == content(tensor.flip(0).numpy())
    one, two = Opaque(), Opaque()
    assert content(one) == content(two) and content_hash(one) != content_hash(two)


def test_a_fit_resumed_after_midnight_keeps_the_day_on_which_it_began(tmp_path, monkeypatch):
    settings = {"steps": (2,), "optimizer": LevenbergMarquardt(work=1.5)}

    def set_day(day: int) -> None:
        monkeypatch.setattr(fit, "date", type("Day", (date,), {"today": lambda: date(2030, 12, day)}))

    set_day(31)
    whole = file_of(quick_fit(**settings), tmp_path)
    with pytest.raises(LookupError):  # at the first call of the teacher
        quick_fit(lambda x, sigma: {}[0], journal=tmp_path / "journal", **settings)
    set_day(1)
    resumed = quick_fit(journal=tmp_path / "journal", **settings)
    assert resumed.solver.card.date == "2030-12-31" and file_of(resumed, tmp_path) == whole
    assert quick_fit(**settings).solver.card.date == "2030-12-01"


def test_a_damaged_journal_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / "journal"
    Journal(path, "a").put("x", {"y": torch.ones(3)})
    content = path.read_bytes()
    for damaged in (b"", content[:20], content[:-1], b"\xff" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"journal cannot be read .*: delete the file to start over"):
            Journal(path, "a")


def test_cached_states_spare_the_teacher_and_damaged_ones_are_made_again(tmp_path, caplog):
    model, samples = CountedDenoiser(curved, torch.float64), Samples(starts("flow"), {}, 12)

    def end(steps: int = 10) -> torch.Tensor:
        return Teacher("heun", steps).reference(model, samples, FLOW, cache=tmp_path).end

    first = end()
    assert_close(end(), first, rtol=0, atol=0)
    assert model.calls == 19 * 12
    files = list(tmp_path.iterdir())
    assert len(files) == 12
    file = files[5]
    whole = file.read_bytes()
    for damaged in (b"", whole[:100], whole[:-4]):
        file.write_bytes(damaged)
        assert_close(end(), first, rtol=0, atol=0)
        assert file.read_bytes() == whole
    assert caplog.text.count("is damaged") == 3 and caplog.text.count("running the teacher again") == 3
    end(11)
    assert model.calls == 19 * (12 + 3) + 21 * 12
