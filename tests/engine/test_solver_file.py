"""Solver files are written whole and read back bit for bit; wrong names, arguments and parameters are refused."""

from __future__ import annotations

import copy
import os
import pickle
import stat
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from learned_solvers.samplers import EDMNoise, FlowNoise, Grid, Guidance, Solver, VPNoise, load_solver
from learned_solvers.samplers.files.card import Card, StepCard
from learned_solvers.samplers.files.solver import MissingSteps
from oracles import ds_solver, dyweight_solver, f64, knotted_solver
from safetensors import safe_open


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "solver.safetensors"


@pytest.mark.parametrize("solver", [dyweight_solver(5, 3), ds_solver(5, 8)], ids=["dyweight", "ds"])
def test_a_loaded_solver_is_the_saved_one(solver, path):
    loaded = load_solver(solver.save(path))
    assert (loaded.name, loaded.card, loaded.steps) == ("solver", solver.card, tuple(sorted(solver.parameters)))
    assert (loaded.family, loaded.prediction) == (solver.card.family, solver.card.prediction)
    torch.testing.assert_close(dict(loaded.parameters), solver.parameters, rtol=0, atol=0)


def test_every_entry_of_a_card_is_kept(path):
    facts = {
        **{"options": {"analytic_first": True, "divisor": "call"}, "knots": (2, 3.5)},
        **{"history": 3, "teacher_steps": 60, "network_calls": 12000},
        **{"error_before": 0.25, "error_after": 0.125, "error_best_peer": 0.1875},
        "grid": Grid("flux_shift", {"base_tokens": 256, "base_mu": 0.5, "max_tokens": 4096, "max_mu": 1.15}),
    }
    texts = {field.name for field in fields(StepCard)} - facts.keys()
    step = StepCard(**facts, **{name: f'{name}: "quotes", umlauts ü, a line\nbreak' for name in texts})
    assert all(getattr(step, field.name) != getattr(StepCard(), field.name) for field in fields(StepCard))
    facts = {"family": "dyweight", "prediction": "flow", "steps": {2: step}, "transferable": True, "boundary": 0.875}
    facts["guidance"] = Guidance("embedded", (2, 3.5), usual=3.5, cfg=1)
    card = Card(**facts, **{field.name: f"{field.name} ü" for field in fields(Card) if field.name not in facts})
    solver = Solver("full", card, {2: {"weights": torch.eye(3).expand(2, 3, 3), "t_scale": torch.ones(2, 2)}})
    assert load_solver(solver.save(path)).card == card


def test_parameters_in_float32_with_gradients_that_share_memory_are_saved_exactly_as_float64(path):
    factors = torch.full((1, 5), 1 / 3)
    parameters = {n: {"weights": torch.eye(n)[None].requires_grad_(), "t_scale": factors[:, :n]} for n in (3, 5)}
    loaded = load_solver(Solver("fit", dyweight_solver(3, 5).card, parameters).save(path)).parameters
    for n, tensors in parameters.items():
        expected = {name: tensor.detach().double() for name, tensor in tensors.items()}
        torch.testing.assert_close(dict(loaded[n]), expected, rtol=0, atol=0)
        assert not loaded[n]["weights"].requires_grad
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {"3/weights", "3/t_scale", "5/weights", "5/t_scale"}
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float64}  # noqa: SIM118


def test_equal_solvers_are_equal_bytes_in_new_folders_readable_by_all(tmp_path):
    a, b, c = (tmp_path / "new" / "folder" / f"{name}.safetensors" for name in "abc")
    assert ds_solver(5, 6, 8).save(str(a)) == a
    assert os.name == "nt" or stat.S_IMODE(a.stat().st_mode) == 0o644
    ds_solver(8, 6, 5).save(b), load_solver(a).save(c)
    assert a.read_bytes() == b.read_bytes() == c.read_bytes()


@pytest.mark.parametrize("link", [False, True])
def test_a_file_is_only_overwritten_on_request_and_never_through_a_link(link, path):
    target = path.with_name("target") if link else path
    target.write_bytes(b"an existing file")
    if link:
        path.symlink_to(target)
    with pytest.raises(FileExistsError, match=r"solver\.safetensors already exists"):
        ds_solver(5).save(path)
    assert target.read_bytes() == b"an existing file"
    ds_solver(6).save(path, overwrite=True)
    assert load_solver(path).steps == (6,) and not path.is_symlink()
    assert not link or target.read_bytes() == b"an existing file"


@pytest.mark.parametrize("name", ["solver", "solver.pt", "a.safetensors.bak", "NUL.safetensors", "a:b.safetensors"])
def test_another_suffix_and_a_name_that_is_not_portable_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"not a valid file name on Windows|must end in \.safetensors"):
        ds_solver(5).save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("existing", [{}, {"solver.safetensors": b"an existing file"}])
@pytest.mark.parametrize(("function", "error"), [("os.fsync", KeyboardInterrupt), ("os.replace", PermissionError)])
def test_a_write_that_stops_midway_leaves_nothing_behind(function, error, existing, path, monkeypatch):
    def stop(*_: object) -> None:
        raise error

    for content in existing.values():
        path.write_bytes(content)
    monkeypatch.setattr(function, stop)
    with pytest.raises(error):
        ds_solver(5).save(path, overwrite=True)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == existing


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda solver: pickle.loads(pickle.dumps(solver))])
def test_a_solver_can_be_copied_and_pickled(duplicate):
    original = load_solver("dyweight_cifar10")
    solver = duplicate(original)
    assert solver.card == original.card
    torch.testing.assert_close(dict(solver.parameters), dict(original.parameters), rtol=0, atol=0)
    with pytest.raises(TypeError):
        solver.card.steps[7] = StepCard()


UNKNOWN = ["nothing", "", "../solver_weights/ds_flow-sit", "/etc/hostname", "ds_flow-sit.bin", "ds_flow-sit/", __file__]
UNKNOWN += ["..\\solver_weights\\ds_flow-sit", "C:\\ds_flow-sit", "\\\\host\\share\\a", "./ds_flow-sit", "DS_FLOW-SIT"]


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_name_is_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match=r"choose one of ds_flow-flowdcn, ds_flow-sit, .*or pass the path") as refused:
        load_solver(name)
    assert repr(name) in str(refused.value)


def test_a_misspelt_name_or_path_is_refused_with_what_was_meant(tmp_path, path):
    with pytest.raises(ValueError, match=r"named 'dyweight_sd1\.5' \(did you mean 'dyweight_sd15'\?\): choose"):
        load_solver("dyweight_sd1.5")
    with pytest.raises(FileNotFoundError, match=rf"{path} does not exist: pass the path"):
        load_solver(path)
    with pytest.raises(FileNotFoundError, match=r"a bundled solver's name, such as 'dyweight_sd15'"):
        load_solver(tmp_path / "dyweight_sd15.safetensors")
    path.mkdir()
    with pytest.raises(ValueError, match=r"solver\.safetensors is a folder"):
        load_solver(path)


@pytest.mark.parametrize(
    ("solver", "steps", "noise", "error", "reason"),
    [
        (dyweight_solver(7, 3, 5), 4, EDMNoise(), MissingSteps, "dyweight_test has 3, 5 and 7 steps, not 4"),
        (dyweight_solver(5), 4, EDMNoise(), MissingSteps, "dyweight_test has 5 steps, not 4"),
        (dyweight_solver(3), "3", EDMNoise(), TypeError, "steps must be an int, got '3'"),
        (dyweight_solver(3), True, EDMNoise(), TypeError, "steps must be an int, got True"),
        (dyweight_solver(3), 3, None, TypeError, "noise must be one of FlowNoise, VPNoise, EDMNoise, got NoneType"),
        (ds_solver(3), 3, VPNoise.linear_beta(), ValueError, "fitted for flow models, but this model is vp"),
    ],
)
def test_a_table_that_does_not_exist_is_refused(solver, steps, noise, error, reason):
    with pytest.raises(error, match=reason):
        solver.table(steps, noise)


@pytest.mark.parametrize(
    ("guidance", "first", "coeff"), [(-3, 0.3, -0.2), (4, 0.4, -0.4), (2 * 4**0.25, 0.35, -0.3), (None, 0.5, -0.6)]
)
def test_a_table_has_the_parameters_of_its_guidance_linear_in_its_logarithm(guidance, first, coeff, path):
    table, last = load_solver(knotted_solver().save(path)).table(2, FlowNoise(), guidance), first - 1
    torch.testing.assert_close(table.levels, f64(1, 1 - first, 0))
    torch.testing.assert_close(table.coeffs, f64(-first, 0, last * coeff, last * (1 - coeff)).reshape(2, 2))


@pytest.mark.parametrize(
    ("guidance", "default"),
    [(Guidance("cfg"), 2.0), (Guidance("cfg", (1, 20), usual=15), 8.0), (Guidance("cfg", (0.5, 20), usual=0.7), 1.0)],
)
def test_the_default_guidance_of_a_step_count_is_the_middle_knot_or_the_usual_one_within_them(guidance, default):
    solver = knotted_solver((1.0, 2.0, 8.0))
    solver = Solver("test", replace(solver.card, guidance=guidance), solver.parameters)
    torch.testing.assert_close(solver.table(2, FlowNoise()).levels, solver.table(2, FlowNoise(), default).levels)


@pytest.mark.parametrize("guidance", ["4", float("nan"), Guidance("cfg", (4,)), [4]])
def test_a_guidance_that_is_not_a_number_is_refused(guidance):
    with pytest.raises(ValueError, match="guidance must be a number, got"):
        knotted_solver().table(2, FlowNoise(), guidance)


def test_knots_and_values_may_be_any_sequence():
    assert (StepCard(knots=[2, 8]), Guidance("cfg", [2, 8])) == (StepCard(knots=(2, 8)), Guidance("cfg", (2, 8)))
    assert len(StepCard(knots=range(1, 65)).knots) == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda solver: StepCard(knots=range(1, 66)), "at most 64 knots"),
        (lambda solver: StepCard(knots=(7.5, 7.5000001)), "strictly increasing"),
        (lambda solver: replace(solver.card, steps={0: StepCard()}), "a card needs step counts of at least 1"),
        (lambda solver: replace(solver, parameters={3: {**solver.parameters[3], "coeffs": torch.zeros(1, 3, 3).int()}}),
         "3 steps: coeffs must hold finite floating-point"),
    ],
)  # fmt: skip
def test_a_card_or_solver_in_memory_that_breaks_a_rule_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        change(ds_solver(3))
