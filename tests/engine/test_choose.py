"""The automatic choice: an exact match, else a transferable solver, else an error; remarks on each mismatch."""

from __future__ import annotations

import pytest
from learned_solvers.samplers import EDMNoise, FlowNoise, Guidance, Solver, VPNoise, list_solvers, load_solver
from learned_solvers.samplers.choose import Checkpoint, choose_solver, nearest_steps
from learned_solvers.samplers.remarks import guidance_mismatch, mismatches, notes
from oracles import ds_solver, dyweight_solver, knotted_solver

ALL = [
    ds_solver(5, 8, name="other", architecture="Wan"),
    ds_solver(5, 6, 7, name="transferable", architecture="SiT", transferable=True),
    ds_solver(5, name="vp", prediction="vp", architecture="Flux", transferable=True),
    ds_solver(5, 6, name="exact", architecture="Flux"),
    dyweight_solver(5, 9, name="dyweight", prediction="flow", architecture="Flux"),
]
BUNDLED = [load_solver(name) for name in list_solvers()]
NOISES = {"flow": FlowNoise(), "vp": VPNoise.stable_diffusion(), "edm": EDMNoise()}


@pytest.mark.parametrize(
    ("solvers", "prediction", "architecture", "family", "steps", "chosen"),
    [
        (ALL, "flow", "Flux", None, 5, "exact"),
        (ALL, "flow", "Flux", "dyweight", 5, "dyweight"),
        (ALL, "flow", "Flux", None, 9, "dyweight"),  # exact has other steps
        (ALL, "flow", "SD3", None, 5, "transferable"),
        (ALL, "flow", None, None, 5, "transferable"),
        (ALL, "flow", "Wan", None, 8, "other"),  # an exact match need not be transferable
        (ALL, "vp", "Flux", None, 5, "vp"),
        (BUNDLED, "flow", "Flux", None, 5, "dyweight_flux1-dev"),
        (BUNDLED, "flow", "SD3", None, 8, "ds_flow-sit"),
        (BUNDLED, "flow", None, None, 7, "ds_flow-sit"),
        (BUNDLED, "vp", "SD15", None, 6, "dyweight_sd15"),
        (BUNDLED, "vp", "SD15", "ds", 5, "ds_vp-dit"),
    ],
)
def test_the_best_match_is_chosen(solvers, prediction, architecture, family, steps, chosen):
    solver = choose_solver(iter(solvers), NOISES[prediction], steps, architecture=architecture, family=family)
    assert solver.name == chosen


def test_among_equals_the_first_is_chosen():
    solvers = [ds_solver(5, architecture="Flux"), ds_solver(5, architecture="Flux")]
    assert choose_solver(solvers, NOISES["flow"], 5, architecture="Flux") is solvers[0]


def refusal(solvers: list[Solver], prediction: str, steps: int, **options: str | None) -> str:
    with pytest.raises(ValueError) as refused:
        choose_solver(solvers, NOISES[prediction], steps, **options)
    return str(refused.value)


FLUX = {"architecture": "Flux"}


@pytest.mark.parametrize(
    ("prediction", "steps", "options", "facts"),
    [
        ("flow", 8, FLUX, ["exact has 5 and 6 steps, dyweight has 5 and 9 steps, not 8: set steps to 9"]),
        ("flow", 7, FLUX, ["dyweight has 5 and 9 steps, not 7: set steps to 6"]),  # never a transfer
        ("flow", 20, FLUX | {"family": "dyweight"}, ["dyweight has 5 and 9 steps, not 20: set steps to 9"]),
        ("flow", 8, {"architecture": "SiT"}, ["transferable has 5, 6 and 7 steps, not 8"]),
        (
            "flow",
            8,
            {"family": "dyweight"},
            ["no DyWeight solver", "or transfers to flow models: fit one"],
        ),
        ("edm", 5, {}, ["no solver is fitted for this model or transfers to edm models: fit one"]),
    ],
)
def test_a_missing_step_count_is_refused_with_the_alternatives(prediction, steps, options, facts):
    message = refusal(ALL, prediction, steps, **options)
    assert [message.count(fact) for fact in facts] == [1] * len(facts), message


def test_a_refusal_lists_eight_and_counts_the_others():
    exact = [ds_solver(5, name=f"exact{i:02}", architecture="Flux") for i in range(20)]
    message = refusal(exact, "flow", 8, architecture="Flux")
    assert ", exact07 has 5 steps and 12 more, not 8: set steps to 5" in message and "exact08" not in message
    others = [ds_solver(8, name=f"other{i:02}", architecture="Wan") for i in range(11)]
    message = refusal(others, "flow", 8, architecture="Flux")
    assert "other07 (8 steps) and 3 more; or" in message and "other08" not in message


def test_a_name_in_a_refusal_is_printable_and_cut():
    solver = ds_solver(5, name="a\udce9\nb" + 200 * "c", architecture="Flux")
    message = refusal([solver], "flow", 8, architecture="Flux")
    assert message.startswith(r"a\udce9\nbccc") and " ... has 5 steps" in message
    assert message.isprintable() and len(message) < 300


NAMED, HASHED, NEW, WIDE, JOINED = (
    ds_solver(5, name=name, architecture="SDXL", **facts)
    for name, facts in (
        ("named", {"checkpoint": "pony", "date": "2026-01-01"}),
        ("hashed", {"checkpoint": "illustrious", "fingerprint": "1f", "date": "2026-01-02"}),
        ("new", {"checkpoint": "unknown", "date": "2026-03-01"}),
        ("wide", {"checkpoint": "unknown", "date": "2026-02-01", "guidance": Guidance("cfg", (2, 8))}),
        ("joined", {"checkpoint": "illustrious", "fingerprint": "1f", "date": "2026-04-01", "boundary": 0.875}),
    )
)


@pytest.mark.parametrize(
    ("checkpoint", "guidance", "chosen"),
    [
        (Checkpoint("renamed.safetensors", "1f"), 5, HASHED),
        (Checkpoint("models/Pony.safetensors", "2e"), 5, NAMED),
        (Checkpoint("illustrious.safetensors", "2e"), None, NEW),  # other weights under a fitted one's name
        (Checkpoint("illustrious.safetensors"), 5, HASHED),
        (None, 5, WIDE),
        (None, 9, NEW),
        (None, None, NEW),
        (Checkpoint("illustrious", "1f", boundary=0.875), 5, JOINED),
    ],
)
def test_of_several_the_checkpoint_decides_then_guidance_then_the_date(checkpoint, guidance, chosen):
    run = None if guidance is None else Guidance("cfg", (guidance,))
    options = {"architecture": "SDXL", "checkpoint": checkpoint, "guidance": run}
    assert choose_solver([NAMED, HASHED, NEW, WIDE, JOINED], NOISES["flow"], 5, **options) is chosen


def test_a_solver_without_a_valid_table_is_neither_chosen_nor_offered(caplog):
    breaks, runs = load_solver("dyweight_sd15"), ds_solver(4, name="runs", prediction="vp", transferable=True)
    assert choose_solver([breaks, runs], NOISES["vp"], 4, architecture="SD15") is breaks
    noise = VPNoise.scaled_linear(0.00085, 0.05)
    with caplog.at_level("INFO", logger="learned_solvers"):
        assert choose_solver([breaks, runs], noise, 4, architecture="SD15") is runs
    assert "skipped in automatic selection: dyweight_sd15: its learned steps do not fit" in caplog.text
    with pytest.raises(ValueError, match=r"^((?!dyweight_sd15).)*$"):
        choose_solver([breaks], noise, 4, architecture="SD15")
    caplog.clear()
    with caplog.at_level("INFO", logger="learned_solvers"), pytest.raises(ValueError, match="dyweight_sd15"):
        choose_solver([breaks], noise, 5, architecture="SD15")  # offers it, for other steps
    assert not caplog.records


@pytest.mark.parametrize(("steps", "nearest"), [(1, 4), (5, 6), (6, 6), (7, 8), (20, 10)])
def test_the_nearest_step_count_is_the_larger_of_two(steps, nearest):
    assert nearest_steps((10, 4, 8, 6), steps) == nearest


CFG = Guidance("cfg", (5, 7.5))
SOLVER = ds_solver(
    5, prediction="vp", architecture="SD15", checkpoint="v1-5", fingerprint="1f", guidance=CFG, resolution="512x512"
)
SD, ZERO_SNR = VPNoise.stable_diffusion(), VPNoise.scaled_linear(0.00085, 0.02)
MATCH = {"noise": SD, "architecture": "SD15", "guidance": Guidance("cfg", (6,)), "size": "512x512"}
EMBEDDED = Guidance("embedded", (6,), cfg=1)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({}, []),
        ({"checkpoint": Checkpoint("other", "1f")}, []),
        ({"checkpoint": Checkpoint("v1-5", "2e")}, ["fitted for v1-5, you use another SD15 checkpoint"]),
        (
            {"checkpoint": Checkpoint("v1-5", "2e", boundary=2.5)},
            ["fitted for one model, you use two models that change at sigma 2.5", "fitted for v1-5, you use another"],
        ),
        (
            {"solver": JOINED, "architecture": "SDXL", "checkpoint": Checkpoint("illustrious", "1f")},
            ["fitted for two models that change at sigma 0.875, you use one: in ComfyUI, connect both"],
        ),
        ({"architecture": "SDXL"}, ["fitted for v1-5, you use SDXL (transfer)"]),
        ({"architecture": "Wan", "shift": 8.0}, ["fitted for v1-5, you use Wan with shift 8 (transfer): nobody"]),
        ({"architecture": "SD3", "shift": 3.0}, ["fitted for v1-5, you use SD3 (transfer): compare with"]),
        ({"architecture": None}, ["fitted for v1-5, you use another model (transfer)"]),
        ({"guidance": Guidance("cfg", (8,))}, ["fitted at CFG 5, 7.5, you use 8"]),
        ({"guidance": EMBEDDED}, ["fitted at CFG 5, 7.5, you use embedded guidance 6, CFG 1"]),
        ({"guidance": None}, ["fitted at CFG 5, 7.5, but the guidance of this run is unknown"]),
        ({"size": "1024x512"}, ["fitted at 512x512, you use 1024x512"]),
        ({"noise": ZERO_SNR}, ["this model's noise starts at sigma 65.93, but Stable Diffusion's at 14.61"]),
        ({"size": None, "architecture": "SDXL"}, ["fitted for v1-5, you use SDXL (transfer)"]),
    ],
)
def test_each_mismatch_is_one_fact(change, facts):
    found = mismatches(**{"solver": SOLVER, "steps": 5, **MATCH, **change})
    assert len(found) == len(facts) and all(map(str.startswith, found, facts)), found


@pytest.mark.parametrize(
    ("guidance", "remark"),
    [
        (1.5, ", you use 1.5: the parameters for 2 are used"),
        *((value, None) for value in (2, 5, 8)),
        (9, ", you use 9: the parameters for 8 are used"),
        (None, "; the sampler uses your guidance if it is a single number, otherwise 8"),
        (EMBEDDED, ", you use embedded guidance 6, CFG 1: the usual parameters are used"),
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
