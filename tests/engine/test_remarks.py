"""What a user is told about a solver on a model: facts with numbers, and nothing where all matches."""

from __future__ import annotations

import pytest
from learned_solvers.samplers import EDMNoise, FlowNoise, Guidance, VPNoise
from learned_solvers.samplers.remarks import mismatches, notes
from oracles import ds_solver, dyweight_solver, knotted_solver

CFG = Guidance("cfg", (5, 7.5))
SOLVER = ds_solver(5, prediction="vp", architecture="SD15", checkpoint="v1-5", guidance=CFG, resolution="512x512")
MATCH = {"architecture": "SD15", "guidance": Guidance("cfg", (6,)), "size": "512x512"}
SD, ZERO_SNR = VPNoise.stable_diffusion(), VPNoise.scaled_linear(0.00085, 0.02)


def test_nothing_is_said_where_all_matches():
    assert mismatches(SOLVER, 5, SD, **MATCH) == []


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"architecture": "SDXL"}, "fitted for v1-5 but used on SDXL (transfer): compare with a stock sampler first"),
        ({"architecture": None}, "fitted for v1-5 but used on another model (transfer)"),
        ({"guidance": Guidance("cfg", (8,))}, "fitted at CFG 5, 7.5, this run uses CFG 8"),
        (
            {"guidance": Guidance("embedded", (6,), cfg=1)},
            "fitted at CFG 5, 7.5, this run uses embedded guidance 6, CFG 1",
        ),
        ({"guidance": None}, "fitted at CFG 5, 7.5, yours is not visible here"),
        ({"size": "1024x512"}, "fitted at 512x512, this picture is 1024x512"),
    ],
)
def test_each_mismatch_is_one_fact(change, fact):
    (told,) = mismatches(SOLVER, 5, SD, **{**MATCH, **change})
    assert told.startswith(fact)


def test_another_noise_range_is_a_fact():
    (told,) = mismatches(SOLVER, 5, ZERO_SNR, **MATCH)
    assert told.startswith(f"this model's noise starts at sigma {ZERO_SNR.sigma_max:.4g}, Stable Diffusion's at 14.61")


@pytest.mark.parametrize(("value", "outside"), [(1.5, True), (2, False), (5, False), (8, False), (9, True)])
def test_outside_the_knots_the_nearest_is_used_and_said(value, outside):
    facts = mismatches(knotted_solver(), 2, FlowNoise(), architecture="Test", guidance=Guidance("cfg", (value,)))
    expected = f"fitted at CFG 2, 8, this run uses CFG {value:g}: the parameters for {2 if value < 5 else 8} are used"
    assert facts == ([expected] if outside else [])


@pytest.mark.parametrize("guidance", [None, Guidance("none")])
def test_a_fit_without_a_known_guidance_has_none_to_miss(guidance):
    solver = dyweight_solver(3, guidance=guidance)
    assert mismatches(solver, 3, EDMNoise(), architecture="Test", guidance=Guidance("cfg", (3,))) == []


def test_the_cards_notes_are_passed_on():
    assert notes(ds_solver(5, note="Steep."), 5) == ["Steep."]
