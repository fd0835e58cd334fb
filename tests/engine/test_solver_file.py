"""Solver files: what is written comes back bit for bit, and reading trusts nothing."""

from __future__ import annotations

import copy
import os
import pickle
import stat
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from learned_solvers.samplers import (
    EDMNoise,
    FlowNoise,
    Grid,
    Guidance,
    Solver,
    VPNoise,
    list_solvers,
    load_solver,
    sample_table,
)
from learned_solvers.samplers.files.card import Card, StepCard
from learned_solvers.samplers.files.solver import BUNDLED
from oracles import GaussianFlow, GaussianVE, ds_solver, dyweight_solver, knotted_solver
from safetensors import safe_open

SOLVERS = {
    "dyweight": (dyweight_solver(3, 5), EDMNoise(), GaussianVE()),
    "ds": (ds_solver(5, 8), FlowNoise(), GaussianFlow()),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "solver.safetensors"


# Writing.


@pytest.mark.parametrize(("solver", "noise", "model"), SOLVERS.values(), ids=SOLVERS)
def test_a_loaded_solver_gives_the_same_samples_bit_for_bit(solver, noise, model, path):
    loaded = load_solver(solver.save(path))
    count = solver.steps[-1]
    x = solver.table(count, noise).sigma_start * torch.randn(2, 3, 4)
    before = sample_table(model, x, solver.table(count, noise), disable=True)
    assert torch.equal(sample_table(model, x, loaded.table(count, noise), disable=True), before)


@pytest.mark.parametrize(("solver", "noise", "model"), SOLVERS.values(), ids=SOLVERS)
def test_a_loaded_solver_has_the_same_card_and_parameters(solver, noise, model, path):
    loaded = load_solver(solver.save(path))
    assert loaded.card == solver.card
    assert (loaded.name, loaded.family, loaded.prediction, loaded.steps) == (
        "solver",
        solver.family,
        solver.prediction,
        solver.steps,
    )
    torch.testing.assert_close(
        {n: dict(own) for n, own in loaded.parameters.items()}, solver.parameters, rtol=0, atol=0
    )


def full_step() -> StepCard:
    return StepCard(
        grid=Grid("flux_shift", {"base_tokens": 256, "base_mu": 0.5, "max_tokens": 4096, "max_mu": 1.15}),
        options={"analytic_first": True, "divisor": "call"},
        knots=(2, 3.5),
        history=3,
        teacher="heun",
        teacher_steps=60,
        loss="l2",
        source_table="table 7",
        error_before=0.25,
        error_after=0.125,
        best_peer="dpmpp_2m",
        error_best_peer=0.1875,
        network_calls=12000,
        note='Quotes ", umlauts ü, a line\nbreak.',
    )


def test_every_entry_of_a_card_is_kept(path):
    card = Card(
        family="dyweight",
        prediction="flow",
        architecture="Flux",
        checkpoint="FLUX.1-dev",
        steps={2: full_step()},
        guidance=Guidance("embedded", (2, 3.5), usual=3.5, cfg=1),
        resolution="512x512",
        transferable=True,
        source="https://example.com",
        citation="arXiv 0000.00000",
        licence="MIT",
        date="2026-01-31",
        package_version="0.1.0",
        note="Größer.",
    )
    solver = Solver("full", card, {2: {"weights": torch.eye(3).expand(2, 3, 3), "t_scale": torch.ones(2, 2)}})
    assert load_solver(solver.save(path)).card == card
    assert all(getattr(full_step(), field.name) != getattr(StepCard(), field.name) for field in fields(StepCard))


def test_a_saved_file_holds_float64_under_steps_and_name(path):
    dyweight_solver(3, 5).save(path)
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {"3/weights", "3/t_scale", "5/weights", "5/t_scale"}
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float64}  # noqa: SIM118


def test_parameters_in_float32_with_gradients_are_saved_exactly(path):
    weights = torch.randn(1, 3, 3).tril().requires_grad_()
    t_scale = torch.rand(1, 3).add(0.5).requires_grad_()
    solver = Solver("fit", dyweight_solver(3).card, {3: {"weights": weights, "t_scale": t_scale}})
    own = load_solver(solver.save(path)).parameters[3]
    assert torch.equal(own["weights"], weights.detach().double())
    assert torch.equal(own["t_scale"], t_scale.detach().double())
    assert not own["weights"].requires_grad


def test_parameters_may_be_parts_of_one_vector(path):
    vector = torch.arange(1.0, 13.0).double()
    own = {"weights": vector[:9].reshape(1, 3, 3).tril(), "t_scale": vector[None, 9:]}
    loaded = load_solver(Solver("fit", dyweight_solver(3).card, {3: own}).save(path))
    torch.testing.assert_close(dict(loaded.parameters[3]), own, rtol=0, atol=0)


def test_step_counts_may_share_a_tensor(path):
    ones = torch.ones(1, 5).double()
    parameters = {n: {"weights": torch.eye(n).double()[None], "t_scale": ones[:, :n]} for n in (3, 5)}
    loaded = load_solver(Solver("fit", dyweight_solver(3, 5).card, parameters).save(path))
    torch.testing.assert_close(loaded.parameters[3]["t_scale"], ones[:, :3], rtol=0, atol=0)


@pytest.mark.parametrize("repetition", range(5))
def test_the_same_solver_is_the_same_bytes(repetition, tmp_path):
    first, second = (ds_solver(5, 6, 8).save(tmp_path / name) for name in ("a.safetensors", "b.safetensors"))
    assert first.read_bytes() == second.read_bytes()


def test_the_order_of_step_counts_does_not_change_the_bytes(tmp_path):
    first = dyweight_solver(3, 5).save(tmp_path / "a.safetensors")
    second = dyweight_solver(5, 3).save(tmp_path / "b.safetensors")
    assert first.read_bytes() == second.read_bytes()


def test_a_loaded_solver_saved_again_is_the_same_bytes(tmp_path):
    first = ds_solver(5, 6).save(tmp_path / "a.safetensors")
    second = load_solver(first).save(tmp_path / "b.safetensors")
    assert first.read_bytes() == second.read_bytes()


def test_saving_makes_the_folders_and_returns_the_path(tmp_path):
    path = tmp_path / "new" / "folder" / "solver.safetensors"
    assert ds_solver(5).save(str(path)) == path
    assert path.is_file()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_saved_file_is_readable_for_all(path):
    assert stat.S_IMODE(ds_solver(5).save(path).stat().st_mode) == 0o644


def test_an_existing_file_is_never_overwritten_unasked(path):
    path.write_bytes(b"something dear")
    with pytest.raises(FileExistsError, match=r"solver\.safetensors exists already: choose another name, or ask"):
        ds_solver(5).save(path)
    assert path.read_bytes() == b"something dear"


def test_an_existing_file_is_overwritten_when_asked(path):
    ds_solver(5).save(path)
    ds_solver(6).save(path, overwrite=True)
    assert load_solver(path).steps == (6,)


@pytest.mark.parametrize("name", ["solver", "solver.pt", "solver.safetensor", "solver.safetensors.bak"])
def test_another_ending_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=rf"{name}: a solver file ends in \.safetensors; rename it"):
        ds_solver(5).save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def stop(*_: object) -> None:
    """Stands for `os.fsync` in a process that is stopped before all is on the disk."""
    raise KeyboardInterrupt


@pytest.mark.parametrize("existing", [None, b"something dear"])
def test_an_interrupted_write_leaves_nothing_behind(existing, path, monkeypatch):
    if existing:
        path.write_bytes(existing)
    monkeypatch.setattr("os.fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        ds_solver(5).save(path, overwrite=True)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == (
        {path.name: existing} if existing else {}
    )


@pytest.mark.parametrize("existing", [None, b"something dear"])
def test_a_failing_rename_leaves_nothing_behind(existing, path, monkeypatch):
    def fail(*names: object) -> None:
        raise PermissionError("in use")

    if existing:
        path.write_bytes(existing)
    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(PermissionError, match="in use"):
        ds_solver(5).save(path, overwrite=True)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == (
        {path.name: existing} if existing else {}
    )


# Names and paths.


def test_a_bundled_solver_is_loaded_by_name():
    assert load_solver("ds_flow-sit").name == "ds_flow-sit"


@pytest.mark.parametrize("kind", [str, Path])
def test_a_solver_is_loaded_by_path(kind):
    assert load_solver(kind(BUNDLED / "ds_vp-dit.safetensors")).name == "ds_vp-dit"


@pytest.mark.parametrize(
    ("solver", "error", "told"),
    [
        (None, TypeError, "NoneType"),
        ("dyweight_sd1.5", ValueError, r"called 'dyweight_sd1\.5' \(did you mean 'dyweight_sd15'\?\): choose one of"),
        (__file__, ValueError, r"choose one of .*, or give the path of a \.safetensors file"),
    ],
)
def test_what_is_no_name_of_a_solver_is_told_what_it_is(solver, error, told):
    with pytest.raises(error, match=told):
        load_solver(solver)


def test_a_folder_with_a_solvers_ending_is_refused(tmp_path):
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(ValueError, match=r"a\.safetensors is a folder: name the \.safetensors file in it"):
        load_solver(tmp_path / "a.safetensors")


def test_a_table_on_what_is_no_noise_is_refused():
    with pytest.raises(TypeError, match=r"noise must be one of FlowNoise, VPNoise, EDMNoise, got NoneType"):
        load_solver("dyweight_sd15").table(6, None)


def test_a_step_count_that_is_no_number_is_refused():
    with pytest.raises(TypeError, match="steps must be an int, got '6': choose one of 4, 6, 8 and 10"):
        load_solver("dyweight_sd15").table("6", VPNoise.stable_diffusion())


@pytest.mark.parametrize(
    "name", ["nothing", "", "../solver_weights/ds_flow-sit", "/etc/hostname", "ds_flow-sit.bin", "ds_flow-sit/"]
)
def test_an_unknown_name_is_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match=r"choose one of ds_flow-flowdcn, ds_flow-sit, .*or give the path") as refused:
        load_solver(name)
    assert repr(name) in str(refused.value)


def test_a_path_that_does_not_exist_is_refused_by_name(path):
    with pytest.raises(FileNotFoundError, match=rf"{path} does not exist: give the path"):
        load_solver(path)


def test_a_bundled_solver_named_like_a_file_is_told_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"or a bundled solver's name, such as 'dyweight_sd15'"):
        load_solver(tmp_path / "dyweight_sd15.safetensors")


def test_a_folder_is_no_solver_file(path):
    path.mkdir()
    with pytest.raises((FileNotFoundError, ValueError), match=r"solver\.safetensors"):
        load_solver(path)


def test_the_bundled_solvers_are_listed_in_order():
    assert list_solvers() == sorted(file.stem for file in BUNDLED.glob("*.safetensors"))
    assert "ds_flow-sit" in list_solvers()


# The solver itself.


EYE, ONES = torch.eye(3)[None], torch.ones(1, 3)


def solver_with(parameters: object, steps: tuple[int, ...] = (3,)) -> Solver:
    return Solver("test", dyweight_solver(*steps).card, parameters)


def test_step_counts_ascend_whatever_their_order():
    assert dyweight_solver(5, 3, 9).steps == (3, 5, 9)


def test_a_cards_steps_cannot_be_changed():
    with pytest.raises(TypeError):
        dyweight_solver(3).card.steps[5] = StepCard()


def test_an_unknown_family_is_refused():
    card = Card(family="unipc", prediction="vp", architecture="m", checkpoint="c", steps={3: StepCard()})
    with pytest.raises(ValueError, match="family must be one of dyweight, ds, got 'unipc': update Learned Solvers"):
        Solver("test", card, {3: {}})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, r"card lists steps \[3\], the parameters are for \[\]: both must name the same step counts"),
        ({4: {}}, r"card lists steps \[3\], the parameters are for \[4\]"),
        ({3: {"weights": EYE}}, "3 steps: tensors must be weights, t_scale, got weights"),
        ({3: {"weights": EYE, "t_scale": ONES.long()}}, "3 steps: t_scale must hold finite floating-point"),
        ({3: {"weights": EYE / 0, "t_scale": ONES}}, "3 steps: weights must hold finite"),
        ({3: {"weights": torch.eye(4)[None], "t_scale": ONES}}, r"3 steps: weights must be .*got \[4, 4\]"),
        (
            {3: {"weights": EYE[0], "t_scale": ONES}},
            r"weights must have shape \[1, ...\], one set per knot, got \[3, 3\]",
        ),
        ({3: {"weights": EYE, "t_scale": ONES.expand(2, 3)}}, r"t_scale must have shape \[1, ...\].* got \[2, 3\]"),
    ],
)
def test_parameters_that_do_not_match_the_card_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        solver_with(parameters)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((3, 5, 7), "dyweight_test was fitted for 3, 5 and 7 steps, got 4: choose one of these, or fit it for 4"),
        ((5,), "dyweight_test was fitted for 5 steps, got 4: choose"),
        ((3, 5), "dyweight_test was fitted for 3 and 5 steps, got 4"),
    ],
)
def test_a_step_count_it_was_not_fitted_for_is_refused_with_those_it_was(steps, message):
    with pytest.raises(ValueError, match=message):
        dyweight_solver(*steps).table(4, EDMNoise())


@pytest.mark.parametrize(
    ("solver", "noise", "message"),
    [
        (dyweight_solver(3), FlowNoise(), "was fitted for edm models, this model is flow: choose one for flow models"),
        (ds_solver(3), VPNoise.linear_beta(), "was fitted for flow models, this model is vp: choose one for vp models"),
        (
            ds_solver(3, prediction="vp"),
            EDMNoise(),
            "was fitted for vp models, this model is edm: choose one for edm models",
        ),
    ],
)
def test_another_prediction_type_is_refused(solver, noise, message):
    with pytest.raises(ValueError, match=message):
        solver.table(3, noise)


@pytest.mark.parametrize("steps", [{}, {0: StepCard()}, {-1: StepCard(), 3: StepCard()}])
def test_a_card_needs_step_counts(steps):
    with pytest.raises(ValueError, match="a card needs step counts of at least 1"):
        Card(family="ds", prediction="flow", architecture="m", checkpoint="c", steps=steps)


# Guidance knots.


@pytest.mark.parametrize(
    ("guidance", "part"),  # of the way from the first knot to the last, in log(guidance)
    [(2, 0), (4, 0.5), (8, 1), (2 * 4**0.25, 0.25), (1, 0), (0, 0), (-3, 0), (20, 1), (None, 1)],
)
def test_parameters_are_linear_in_log_guidance_between_the_knots_and_the_nearest_outside(guidance, part, path):
    table = load_solver(knotted_solver().save(path)).table(2, FlowNoise(), guidance)
    first, coeff = 0.3 + 0.2 * part, -0.2 - 0.4 * part
    last = -(1 - first)
    expected = torch.tensor([[-first, 0], [last * coeff, last * (1 - coeff)]], dtype=torch.float64)
    torch.testing.assert_close(table.levels, torch.tensor([1, 1 - first, 0], dtype=torch.float64))
    torch.testing.assert_close(table.coeffs, expected)


def test_a_solver_without_knots_is_the_same_at_every_guidance():
    solver, noise = ds_solver(5), FlowNoise()
    assert all(torch.equal(solver.table(5, noise, g).coeffs, solver.table(5, noise).coeffs) for g in (0.5, 3, 30))


@pytest.mark.parametrize(
    ("knots", "message"),
    [
        ((8.0, 2.0), "knots must ascend without repeats"),
        ((2.0, 2.0), "knots must ascend without repeats"),
        ((0.0, 2.0), "knots must be positive finite"),
        ((-1.0, 2.0), "knots must be positive finite"),
        ((2.0, float("nan")), "knots must be positive finite"),
        ((2.0, "8"), "knots must be positive finite"),
        ((2.0,), r"timedeltas must have shape \[1, ...\], one set per knot, got \[2, 2\]"),
        ((2.0, 4.0, 8.0), r"timedeltas must have shape \[3, ...\]"),
        ((), r"timedeltas must have shape \[1, ...\]"),
    ],
)
def test_knots_that_are_unsorted_repeated_or_no_match_for_the_tensors_are_refused(knots, message):
    solver = knotted_solver()
    with pytest.raises(ValueError, match=message):
        Solver("test", replace(solver.card, steps={2: StepCard(knots=knots)}), solver.parameters)


@pytest.mark.parametrize("guidance", [None, Guidance("none")])
def test_knots_need_a_guidance(guidance):
    with pytest.raises(ValueError, match="knots need a guidance of kind cfg or embedded; the card has none"):
        replace(knotted_solver().card, guidance=guidance)


def test_without_a_usual_guidance_the_middle_knot_is_taken():
    solver = knotted_solver((1.0, 2.0, 8.0))
    solver = Solver("test", replace(solver.card, guidance=Guidance("cfg")), solver.parameters)
    torch.testing.assert_close(solver.table(2, FlowNoise()).levels, solver.table(2, FlowNoise(), 2.0).levels)


@pytest.mark.parametrize("guidance", ["4", float("nan"), Guidance("cfg", (4,)), [4]])
def test_a_guidance_that_is_no_number_is_refused(guidance):
    with pytest.raises(ValueError, match=r"guidance must be a number, got .*: parameters depend on it"):
        knotted_solver().table(2, FlowNoise(), guidance)


def test_knots_and_values_may_be_any_sequence():
    assert (StepCard(knots=[2, 8]), Guidance("cfg", [2, 8])) == (StepCard(knots=(2, 8)), Guidance("cfg", (2, 8)))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda solver: pickle.loads(pickle.dumps(solver))])
def test_a_solver_can_be_copied_and_pickled(duplicate):
    solver = duplicate(load_solver("dyweight_cifar10"))
    assert solver.card == load_solver("dyweight_cifar10").card
    expected = load_solver("dyweight_cifar10").table(5, EDMNoise())
    torch.testing.assert_close(solver.table(5, EDMNoise()).coeffs, expected.coeffs, rtol=0, atol=0)
    with pytest.raises(TypeError):
        solver.card.steps[7] = StepCard()


def test_of_a_usual_guidance_outside_its_knots_a_step_count_takes_the_nearest():
    solver = knotted_solver()
    solver = Solver("test", replace(solver.card, guidance=Guidance("cfg", (1, 20), usual=15)), solver.parameters)
    torch.testing.assert_close(solver.table(2, FlowNoise()).levels, solver.table(2, FlowNoise(), 8.0).levels)


@pytest.mark.parametrize(
    ("knots", "message"), [((7.5, 7.5000001), "ascend without"), (range(1, 66), "at most 64 knots")]
)
def test_knots_too_close_or_too_many_are_refused(knots, message):
    with pytest.raises(ValueError, match=message):
        StepCard(knots=knots)
