"""Fits that are interrupted, and go on: nothing is lost, and the result is the same file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date
from functools import partial

import numpy as np
import pytest
import torch
from fits import FLOW, GRIDS, starts
from learned_solvers.samplers import VPNoise
from learned_solvers.training import GaussNewton, Teacher, fit_solver
from learned_solvers.training.data.samples import CountedDenoiser, Samples
from learned_solvers.training.spaces import make_space
from learned_solvers.training.store.content import content_hash
from oracles import curved
from safetensors import safe_open
from torch.testing import assert_close


@pytest.mark.parametrize("stop_after", [1, 3, 6, 8])
def test_an_interrupted_fit_goes_on_and_ends_with_the_same_file(tmp_path, stop_after):
    x = starts("flow", 32)
    settings = {"noise": FLOW, "steps": (3, 4), "teacher_steps": 10, "cache": tmp_path / "cache"}
    whole = fit_solver(curved, x, **settings).solver.save(tmp_path / "whole.safetensors")
    lines: list[str] = []

    def stop(line: str) -> None:
        lines.append(line)
        if len(lines) > stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_solver(curved, x, journal=tmp_path / "journal", progress=stop, **settings)
    said: list[str] = []
    resumed = fit_solver(curved, x, journal=tmp_path / "journal", progress=said.append, **settings)
    assert resumed.solver.save(tmp_path / "resumed.safetensors").read_bytes() == whole.read_bytes()
    assert any("going on with the fit" in line for line in said) == (tmp_path / "journal").exists()


@dataclass
class Known:
    held: torch.Tensor


class Opaque:
    """A condition that only the model understands; its repr has an address in it."""


def test_a_journal_of_other_conditions_is_refused_and_one_of_the_same_goes_on(tmp_path):
    def conditioned(x, sigma, shift, cond):
        return curved(x, sigma) + 0.1 * shift

    def settings_with(change: float) -> dict:
        shift = torch.zeros(32, 1)
        shift[20] += change
        return {"extra_args": {"shift": shift, "cond": [Opaque() for _ in shift]}}

    x, said = starts("flow", 32), []
    settings = {"noise": FLOW, "steps": (3,), "teacher_steps": 10, "journal": str(tmp_path / "journal")}
    first = fit_solver(conditioned, x, **settings, **settings_with(0))
    again = fit_solver(conditioned, x, **settings, **settings_with(0), progress=said.append)
    assert any("going on with the fit" in line for line in said)
    assert_close(again.solver.parameters[3], first.solver.parameters[3], rtol=0, atol=0)
    with pytest.raises(ValueError, match="belongs to a fit with other settings"):
        fit_solver(conditioned, x, **settings, **settings_with(0.5))


@pytest.mark.parametrize("other", ["starts", "noise", "initial"])
def test_a_journal_of_other_starts_another_schedule_or_another_beginning_is_refused(tmp_path, other):
    file, journal = tmp_path / "own.safetensors", tmp_path / "journal"
    settings = {"steps": (3,), "teacher_steps": 8, "history": 3}

    def begin(shift: float) -> None:
        made = fit_solver(curved, starts("flow"), noise=FLOW, initial=f"ipndm 2, shift {shift:g}", **settings)
        made.solver.save(file, overwrite=True)

    levels = torch.linspace(0.03, 14.6, 2000, dtype=torch.float64)  # a repr has dots in the middle
    bent = levels.clone()
    bent[1000] += 0.001
    begin(1)
    noise = VPNoise.from_sigmas(levels) if other == "noise" else FLOW
    start = {"x": starts("vp" if other == "noise" else "flow"), "noise": noise}
    start["initial"] = "ipndm 2" if other == "noise" else str(file)
    first = fit_solver(curved, start["x"], journal=journal, **settings, noise=noise, initial=start["initial"])
    same = fit_solver(curved, start["x"], journal=journal, **settings, noise=noise, initial=start["initial"])
    assert_close(dict(same.solver.parameters[3]), dict(first.solver.parameters[3]), rtol=0, atol=0)
    if other == "starts":
        start["x"] = -start["x"]  # of the same size
    elif other == "noise":
        start["noise"] = VPNoise.from_sigmas(bent)
    else:
        begin(3)  # another solver under the same name
    with pytest.raises(ValueError, match="belongs to a fit with other settings"):
        fit_solver(curved, start["x"], journal=journal, **settings, noise=start["noise"], initial=start["initial"])


def test_what_an_extra_argument_holds_tells_it_from_another():
    content = partial(content_hash, describe=lambda other: type(other).__qualname__)
    tensor = torch.arange(3000.0)
    other = tensor.clone()
    other[1500] += 1  # where a repr has dots
    pairs = [
        (tensor, other), (tensor, tensor.view(3, 1000)), ([tensor], [other]), ({"a": tensor}, {"a": other}),
        (tensor.numpy(), other.numpy()), ([1, [2]], [[1], 2]), ({"a": 1}, {"b": 1}), (1, "1"), (None, False),
        (["a,b"], ["a", "b"]), (["ab", "c"], ["a", "bc"]), ({"a": 1}, ["a", 1]), (b"a", b"b"),
        (np.float32(3), np.float32(5)), (np.array(["a"]), np.array(["b"])), (Known(tensor), Known(other)),
        (np.array([None, "a"]), np.array([None, "b"])), (tensor.bool(), other.view(2, -1).bool()),
    ]  # fmt: skip
    assert all(content(a) != content(b) for a, b in pairs)
    assert content({"a": 1, "b": [tensor]}) == content({"b": [tensor.clone()], "a": 1})
    assert content(tensor.numpy()[::-1]) == content(tensor.flip(0).numpy())
    one, two = Opaque(), Opaque()
    assert content(one) == content(two) and content_hash(one) != content_hash(two)


@pytest.mark.parametrize("turns", [1, 4])
def test_a_fit_that_was_killed_on_all_samples_goes_on_there(tmp_path, turns):
    x, journal, calls = starts("flow", 60, 16), tmp_path / "journal", 0

    def done() -> float:
        if not journal.exists():
            return 0.0
        with safe_open(journal, framework="pt") as file:
            name = "5/window|refined numbers"
            return float(file.get_tensor(name)[1]) if name in file.keys() else 0.0  # noqa: SIM118

    def killed(x, sigma):
        if done() >= turns:
            raise KeyboardInterrupt
        return curved(x, sigma)

    def counted(x, sigma):
        nonlocal calls
        calls += len(x)
        return curved(x, sigma)

    settings = {"noise": FLOW, "steps": (5,), "teacher_steps": 10, "history": 4, "cache": tmp_path}
    settings["optimizer"] = GaussNewton(core=16)
    lines: list[str] = []
    whole = fit_solver(counted, x, progress=lines.append, **settings)
    assert sum("on all 45 samples" in line for line in lines) > turns
    file, needed = whole.solver.save(tmp_path / "whole.safetensors"), calls
    with pytest.raises(KeyboardInterrupt):
        fit_solver(killed, x, journal=journal, **settings)
    assert done() == turns
    calls, before = 0, list(lines)
    lines.clear()
    resumed = fit_solver(counted, x, journal=journal, progress=lines.append, **settings)
    assert resumed.solver.save(tmp_path / "resumed.safetensors").read_bytes() == file.read_bytes()
    left = [line for line in before if "on all 45 samples" in line][turns:]
    assert [line for line in lines if "iteration" in line] == left
    # What is left: Jacobians of 32 samples, and what their steps are tried and judged on.
    space = make_space("dyweight", 5, FLOW, GRIDS["flow"], 4, False)
    jacobian = 5 + sum(5 - restart.known for restart in space.restart)
    assert len(left) * 32 * jacobian < calls < len(left) * (32 * jacobian + 10 * 5 * 45) + 6 * 5 * 60
    assert calls < needed - turns * 32 * jacobian


def test_resuming_a_finished_fit_makes_no_call(tmp_path):
    x, calls = starts("flow", 24), 0

    def counted(x, sigma):
        nonlocal calls
        calls += len(x)
        return curved(x, sigma)

    settings = {"noise": FLOW, "steps": (2, 3), "teacher_steps": 10, "cache": tmp_path, "journal": tmp_path / "journal"}
    settings["optimizer"] = GaussNewton(core=8, first=4)  # 10 samples are beside the core
    first, made = fit_solver(counted, x, **settings), calls
    again = fit_solver(counted, x, **settings)
    assert made > 0 and calls == made
    files = [r.solver.save(tmp_path / f"{i}.safetensors").read_bytes() for i, r in enumerate((first, again))]
    assert files[0] == files[1]
    for n in (2, 3):
        assert replace(again.report[n], seconds=0.0) == replace(first.report[n], seconds=0.0)


def test_a_fit_that_goes_on_after_midnight_keeps_the_day_on_which_it_began(tmp_path, monkeypatch):
    x = starts("flow", 16)
    settings = {"noise": FLOW, "steps": (2,), "teacher_steps": 5, "optimizer": GaussNewton(iterations=1)}

    def on(day: int) -> None:
        monkeypatch.setattr(
            fit_solver.__module__ + ".date", type("Day", (date,), {"today": lambda: date(2030, 12, day)})
        )

    def stopped(x, sigma):
        raise KeyboardInterrupt

    on(31)
    whole = fit_solver(curved, x, **settings).solver.save(tmp_path / "whole.safetensors")
    with pytest.raises(KeyboardInterrupt):  # at the first call of the teacher
        fit_solver(stopped, x, journal=tmp_path / "journal", **settings)
    on(1)
    resumed = fit_solver(curved, x, journal=tmp_path / "journal", **settings).solver
    assert resumed.card.date == "2030-12-31"
    assert resumed.save(tmp_path / "resumed.safetensors").read_bytes() == whole.read_bytes()
    assert fit_solver(curved, x, **settings).solver.card.date == "2030-12-01"


def test_a_journal_of_other_settings_is_refused(tmp_path):
    x = starts("flow", 24)
    fit_solver(curved, x, noise=FLOW, steps=(3,), teacher_steps=10, journal=tmp_path / "journal")
    with pytest.raises(ValueError, match="belongs to a fit with other settings"):
        fit_solver(curved, x, noise=FLOW, steps=(4,), teacher_steps=10, journal=tmp_path / "journal")


def test_cached_trajectories_spare_the_teacher(tmp_path):
    model, samples = CountedDenoiser(curved, torch.float64), Samples(starts("flow"), {}, 4)
    first = Teacher("heun", 10).reference(model, samples, FLOW, cache=tmp_path)
    assert model.calls == 19 * len(samples)
    again = Teacher("heun", 10).reference(model, samples, FLOW, cache=tmp_path)
    assert model.calls == 19 * len(samples)
    assert_close(again.end, first.end, rtol=0, atol=0)
    Teacher("heun", 11).reference(model, samples, FLOW, cache=tmp_path)
    assert model.calls == (19 + 21) * len(samples)
