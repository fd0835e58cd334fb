"""Interrupted fits resume: nothing is lost, and the result is the same file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fits import FLOW, GRIDS, Watched, quick_fit, starts
from learned_solvers.samplers import FlowNoise, VPNoise
from learned_solvers.training import FitJob, FitResult, FitSettings, GradientDescent, LevenbergMarquardt, Teacher, fit
from learned_solvers.training.data.samples import CountedDenoiser, Samples
from learned_solvers.training.spaces import make_space
from learned_solvers.training.store.content import content_hash
from learned_solvers.training.store.journal import Journal
from oracles import curved, ds_solver
from torch.testing import assert_close

ON_ALL_45 = {"x": starts("flow", 60, 16), "steps": (5,), "history": 4, "optimizer": LevenbergMarquardt(core=16)}


def file_of(result: FitResult, folder: Path) -> bytes:
    return result.solver.save(folder / "result.safetensors", overwrite=True).read_bytes()


@pytest.mark.parametrize(
    ("settings", "stop_at"),
    [({"steps": (3, 4)}, "4 steps: initial solver"), (ON_ALL_45, "iteration 3 on all 45 samples")],
    ids=["second step count", "all samples"],
)
def test_an_interrupted_fit_resumes_and_ends_with_the_same_file(tmp_path, settings, stop_at):
    model, resumed_model, finished_model, log, log_of_rest = Watched(), Watched(), Watched(), [], []
    settings = {**settings, "cache": tmp_path / "cache"}
    whole = file_of(quick_fit(model, progress=log.append, **settings), tmp_path)

    def stop(line: str) -> None:
        if line.startswith(stop_at):  # before its step is saved
            raise KeyboardInterrupt

    settings["journal"] = tmp_path / "journal"
    with pytest.raises(KeyboardInterrupt):
        quick_fit(progress=stop, **settings)
    resumed = quick_fit(resumed_model, progress=log_of_rest.append, **settings)
    finished = quick_fit(finished_model, **settings)
    assert file_of(resumed, tmp_path) == file_of(finished, tmp_path) == whole
    assert finished_model.calls == 0
    reports = [[replace(report, seconds=0.0) for report in r.report.values()] for r in (resumed, finished)]
    assert reports[0] == reports[1]
    assert log_of_rest[0] == f"resuming the fit in {tmp_path / 'journal'}"
    stopped = next(i for i, line in enumerate(log) if line.startswith(stop_at))
    iterations = [line for line in log[stopped:] if line.startswith("iteration")]
    assert [line for line in log_of_rest if line.startswith("iteration")] == iterations
    if settings["steps"] == (5,):
        # What remains: Jacobians of 32 samples, and runs of their steps and of the held-out samples.
        restarts = make_space("dyweight", 5, FLOW, GRIDS["flow"], 4, False).restart
        jacobian, count = 32 * (5 + sum(5 - restart.entries for restart in restarts)), len(iterations)
        assert count * jacobian < resumed_model.samples < count * (jacobian + 10 * 5 * 45) + 6 * 5 * 60
        assert resumed_model.samples < model.samples - 2 * jacobian


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
        {"optimizer": GradientDescent()}, {"initial": "euler"}, {"learn_grid": True}, {"held_out": 7}, {"seed": 1},
        {"x": -starts("flow", 24)}, {"shift": torch.ones(24, 1)}, {"noise": FlowNoise(256)},
    ],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_a_journals_key_depends_on_everything_that_changes_the_result(changed):
    assert key_of(**changed) != key_of() == key_of(microbatch=5, card={"note": "other"}, history=3, held_out=6)


def test_a_journals_key_depends_on_the_content_of_noise_and_initial_solver(tmp_path):
    levels = torch.linspace(0.03, 14.6, 2000, dtype=torch.float64)  # a repr has dots in the middle
    keys, file = [], tmp_path / "start.safetensors"
    for change, solver in ((0, ds_solver(4)), (0.001, ds_solver(4, 5))):
        noise = VPNoise.from_sigmas(levels + change * (torch.arange(2000) == 1000))
        solver.save(file, overwrite=True)
        keys += [key_of(noise=noise, x=starts("vp", 24)), key_of(family="ds", initial=str(file))]
    assert len(set(keys)) == 4


def test_a_journal_of_another_fit_is_refused(tmp_path):
    quick_fit(steps=(2,), journal=tmp_path / "journal")
    with pytest.raises(ValueError, match="journal belongs to a fit with different settings"):
        quick_fit(steps=(4,), journal=tmp_path / "journal")


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
    settings = {"steps": (2,), "optimizer": LevenbergMarquardt(iterations=1)}

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
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for damaged in (b"", whole[:100], whole[:-4]):
        file.write_bytes(damaged)
        assert_close(end(), first, rtol=0, atol=0)
        assert file.read_bytes() == whole
    assert caplog.text.count("is damaged") == 3 and caplog.text.count("running the teacher again") == 3
    end(11)
    assert model.calls == (19 * 4 + 21) * 12
