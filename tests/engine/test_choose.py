"""The automatic choice: an exact match, else a transferable solver; never another, never silently."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from learned_solvers.samplers import (
    EDMNoise,
    FlowNoise,
    Solver,
    VPNoise,
    choose_solver,
    k_diffusion,
    list_solvers,
    load_solver,
    sample_solver,
)
from learned_solvers.samplers.choose import nearest_steps
from oracles import GaussianVE, ds_solver, dyweight_solver, sd_alphas

EXACT = ds_solver(5, 6, name="exact", architecture="Flux")
TRANSFERABLE = ds_solver(5, 6, 7, name="transferable", architecture="SiT", transferable=True)
OTHER = ds_solver(5, 8, name="other", architecture="Wan")
DYWEIGHT = dyweight_solver(5, 9, name="dyweight", prediction="flow", architecture="Flux")
VP = ds_solver(5, name="vp", prediction="vp", architecture="Flux", transferable=True)
ALL = [OTHER, TRANSFERABLE, VP, EXACT, DYWEIGHT]
NOISES = {"flow": FlowNoise(), "vp": VPNoise.stable_diffusion(), "edm": EDMNoise()}


@cache
def bundled() -> list[Solver]:
    return [load_solver(name) for name in list_solvers()]


@pytest.mark.parametrize(
    ("architecture", "family", "steps", "chosen"),
    [
        pytest.param("Flux", None, 5, EXACT, id="exact match"),
        pytest.param("Flux", "dyweight", 5, DYWEIGHT, id="exact match of a family"),
        pytest.param("Flux", None, 9, DYWEIGHT, id="exact match that has the steps"),
        pytest.param("Flux", None, 7, TRANSFERABLE, id="no exact match with the steps"),
        pytest.param("SD3", None, 5, TRANSFERABLE, id="unknown model"),
        pytest.param(None, None, 5, TRANSFERABLE, id="the host cannot tell"),
        pytest.param("Wan", None, 8, OTHER, id="exact match that is not transferable"),
        pytest.param("SiT", None, 6, TRANSFERABLE, id="exact match that is transferable"),
    ],
)
def test_the_best_match_is_chosen(architecture, family, steps, chosen):
    assert choose_solver(ALL, NOISES["flow"], steps, architecture=architecture, family=family) is chosen


def test_another_prediction_type_is_never_chosen():
    assert choose_solver(ALL, NOISES["vp"], 5, architecture="Flux") is VP


@pytest.mark.parametrize("order", [1, -1])
def test_among_equals_the_first_wins(order):
    own, bundled = ds_solver(5, architecture="Flux"), ds_solver(5, architecture="Flux")
    assert choose_solver([own, bundled][::order], NOISES["flow"], 5, architecture="Flux") is [own, bundled][::order][0]


def test_an_exact_match_wins_wherever_it_stands():
    assert choose_solver([TRANSFERABLE, EXACT], NOISES["flow"], 5, architecture="Flux") is EXACT


def test_the_candidates_may_be_any_iterable():
    assert choose_solver(iter(ALL), NOISES["flow"], 7, architecture="Flux") is TRANSFERABLE


def refusal(solvers, prediction: str, steps: int, **options: str) -> str:
    with pytest.raises(ValueError) as refused:
        choose_solver(solvers, NOISES[prediction], steps, **options)
    return str(refused.value)


def test_a_missing_step_count_is_refused_with_the_ones_there_are():
    message = refusal(ALL, "flow", 8, architecture="Flux")
    assert "no solver for Flux (flow) model has 8 steps" in message
    assert "steps of exact (5, 6 steps), or of dyweight (5, 9 steps), or of transferable (5, 6, 7 steps)" in message
    assert "or name one that was fitted for another model: other (5, 8 steps)" in message
    assert message.endswith("or fit one for 8 steps on this model")


def test_solvers_of_other_models_that_lack_the_count_are_not_offered():
    assert "another model" not in refusal(ALL, "flow", 4, architecture="Flux")


def test_a_solver_of_another_model_is_named_and_not_chosen():
    message = refusal([OTHER], "flow", 5, architecture="Flux")
    assert "name one that was fitted for another model: other (5, 8 steps)" in message


def test_a_family_is_named_in_the_refusal_and_others_are_not_offered():
    message = refusal(ALL, "flow", 4, architecture="Flux", family="dyweight")
    assert "no dyweight solver for Flux (flow) model has 4 steps: choose the steps of dyweight (5, 9 steps)" in message
    assert "exact" not in message


def test_of_many_solvers_the_refusal_lists_eight_and_counts_the_others():
    own = [ds_solver(5, name=f"own{i:02}", architecture="Flux") for i in range(20)]
    others = [ds_solver(8, name=f"other{i:02}", architecture="Wan") for i in range(11)]
    message = refusal([*own, *others], "flow", 8, architecture="Flux")
    assert "or of own07 (5 steps) and 12 more; or" in message and "own08" not in message
    assert "other07 (8 steps) and 3 more; or" in message and "other08" not in message


def test_a_name_in_the_refusal_is_one_that_can_be_shown():
    message = refusal(
        [ds_solver(5, name="a\udce9\nb" + 200 * "c", architecture="Flux")], "flow", 8, architecture="Flux"
    )
    assert r"the steps of a\udce9\nbccc" in message and " ... (5 steps)" in message
    assert message.isprintable() and len(message) < 300


def test_no_candidate_at_all_leaves_fitting():
    message = "no solver for this (edm) model has 5 steps: fit one for 5 steps on this model"
    assert refusal([], "edm", 5) == message


def test_solvers_of_another_prediction_type_are_not_offered():
    assert "vp (5 steps)" not in refusal(ALL, "flow", 4, architecture="Flux")


@pytest.mark.parametrize("name", ["transferable", "other"])
def test_each_candidate_is_offered_once(name):
    message = refusal(ALL, "flow", 8, architecture="SiT")
    assert message.count(f"{name} (") == 1


@pytest.mark.parametrize(
    ("prediction", "architecture", "steps", "chosen"),
    [
        ("flow", "Flux", 5, "dyweight_flux1-dev"),
        ("flow", "Flux", 8, "ds_flow-sit"),
        ("flow", "Wan", 6, "ds_flow-sit"),
        ("flow", None, 7, "ds_flow-sit"),
        ("vp", "SD15", 6, "dyweight_sd15"),
        ("vp", "SD15", 5, "ds_vp-dit"),
        ("vp", "SDXL", 8, "ds_vp-dit"),
    ],
)
def test_a_host_with_the_bundled_solvers_gets(prediction, architecture, steps, chosen):
    assert choose_solver(bundled(), NOISES[prediction], steps, architecture=architecture).name == chosen


@pytest.mark.parametrize(
    ("prediction", "architecture", "steps", "offered"),
    [
        ("flow", "Wan", 4, "ds_flow-sit (5, 6, 7, 8, 9, 10 steps)"),
        ("vp", None, 20, "ds_vp-dit (5, 6, 7, 8, 9, 10 steps)"),
        ("edm", None, 5, "dyweight_cifar10 (3, 4, 5, 6, 7, 8, 9 steps)"),
    ],
)
def test_a_host_with_the_bundled_solvers_is_told_what_there_is(prediction, architecture, steps, offered):
    assert offered in refusal(bundled(), prediction, steps, architecture=architecture)


def zero_snr() -> VPNoise:
    """Returns Stable Diffusion's schedule with zero terminal SNR (arXiv 2305.08891, algorithm 1), as hosts hold it."""
    roots = sd_alphas().sqrt()
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    alphas = torch.cat([roots[:-1].square(), torch.tensor([4.8973451890853435e-08], dtype=torch.float64)])
    return VPNoise.from_sigmas(((1 - alphas) / alphas).sqrt())


def test_a_solver_that_makes_no_table_on_the_schedule_is_neither_chosen_nor_offered(caplog):
    # Its learned steps lead below 0 there.
    breaks, runs = load_solver("dyweight_sd15"), ds_solver(4, name="runs", prediction="vp", transferable=True)
    assert choose_solver([breaks, runs], NOISES["vp"], 4, architecture="SD15") is breaks
    with caplog.at_level("INFO", logger="learned_solvers"):
        assert choose_solver([breaks, runs], zero_snr(), 4, architecture="SD15") is runs
    assert "left out of the automatic choice: dyweight_sd15: its learned steps do not fit" in caplog.text
    with pytest.raises(ValueError) as refused:
        choose_solver([breaks], zero_snr(), 4, architecture="SD15")
    assert breaks.name not in str(refused.value)


def test_a_solver_without_the_steps_is_offered_without_a_table(caplog):
    with caplog.at_level("INFO", logger="learned_solvers"), pytest.raises(ValueError, match="dyweight_sd15"):
        choose_solver([load_solver("dyweight_sd15")], zero_snr(), 5, architecture="SD15")
    assert not caplog.records


def test_a_sampler_without_a_named_solver_takes_one_that_runs_on_the_schedule(monkeypatch):
    breaks, runs = load_solver("dyweight_sd15"), ds_solver(4, name="runs", prediction="vp", transferable=True)
    breaks = replace(breaks, card=replace(breaks.card, transferable=True))
    monkeypatch.setattr(k_diffusion, "list_solvers", lambda: [breaks, runs])
    monkeypatch.setattr(k_diffusion, "load_solver", lambda solver: solver)
    noise = zero_snr()
    x, sigmas = torch.randn(1, 4, 8, 8) * noise.sigma_max, torch.linspace(noise.sigma_max, 0, 5)
    found, wanted = (
        sample_solver(GaussianVE(), x, sigmas, noise=noise, solver=named, disable=True) for named in (None, runs)
    )
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(("wanted", "taken"), [(1, 4), (5, 6), (6, 6), (7, 8), (20, 10)])
def test_of_two_step_counts_that_are_equally_near_the_larger_is_taken(wanted, taken):
    assert nearest_steps((10, 4, 8, 6), wanted) == taken
