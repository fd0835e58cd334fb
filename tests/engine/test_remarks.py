"""Remarks about a solver on a model: one clause per mismatch, none if all matches."""

from __future__ import annotations

import pytest
from learned_solvers.samplers import EDMNoise, Guidance, VPNoise
from learned_solvers.samplers.remarks import guidance_mismatch, mismatches, notes
from oracles import ds_solver, dyweight_solver, knotted_solver

CFG = Guidance("cfg", (5, 7.5))
SOLVER = ds_solver(5, prediction="vp", architecture="SD15", checkpoint="v1-5", guidance=CFG, resolution="512x512")
SD, ZERO_SNR = VPNoise.stable_diffusion(), VPNoise.scaled_linear(0.00085, 0.02)
MATCH = {"noise": SD, "architecture": "SD15", "guidance": Guidance("cfg", (6,)), "size": "512x512"}
EMBEDDED = Guidance("embedded", (6,), cfg=1)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({}, []),
        ({"architecture": "SDXL"}, ["fitted for v1-5 but used on SDXL (transfer)"]),
        ({"architecture": None}, ["fitted for v1-5 but used on another model (transfer)"]),
        ({"guidance": Guidance("cfg", (8,))}, ["fitted at CFG 5, 7.5, but this run uses CFG 8"]),
        ({"guidance": EMBEDDED}, ["fitted at CFG 5, 7.5, but this run uses embedded guidance 6, CFG 1"]),
        ({"guidance": None}, ["fitted at CFG 5, 7.5, but the guidance of this run is unknown"]),
        ({"size": "1024x512"}, ["fitted at 512x512, but this image is 1024x512"]),
        ({"noise": ZERO_SNR}, ["this model's noise starts at sigma 65.93, but Stable Diffusion's at 14.61"]),
        ({"size": None, "architecture": "SDXL"}, ["fitted for v1-5 but used on SDXL (transfer)"]),
    ],
)
def test_each_mismatch_is_one_fact(change, facts):
    found = mismatches(SOLVER, 5, **{**MATCH, **change})
    assert len(found) == len(facts) and all(map(str.startswith, found, facts)), found


@pytest.mark.parametrize(
    ("guidance", "remark"),
    [
        (1.5, ", but this run uses CFG 1.5: the parameters for 2 are used"),
        *((value, None) for value in (2, 5, 8)),
        (9, ", but this run uses CFG 9: the parameters for 8 are used"),
        (None, "; the sampler uses yours if it is a single number, otherwise 8"),
        (EMBEDDED, ", but this run uses embedded guidance 6, CFG 1: the usual parameters are used"),
    ],
)
def test_a_guidance_outside_the_knots_is_a_fact_with_the_parameters_used(guidance, remark):
    run = Guidance("cfg", (guidance,)) if isinstance(guidance, float | int) else guidance
    assert guidance_mismatch(knotted_solver(), 2, run) == (remark and f"fitted at CFG 2, 8{remark}")


@pytest.mark.parametrize("guidance", [None, Guidance("none")])
def test_a_fit_without_a_known_guidance_has_no_mismatch(guidance):
    solver = dyweight_solver(3, guidance=guidance)
    assert mismatches(solver, 3, EDMNoise(), architecture="Test", guidance=Guidance("cfg", (3,))) == []


def test_notes_are_those_of_the_card_and_of_the_step_count():
    assert notes(ds_solver(5, note="Steep."), 5) == ["Steep."]
    assert notes(ds_solver(5), 5) == []
