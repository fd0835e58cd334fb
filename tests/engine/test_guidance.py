"""Several guidances: spread over samples, listed on cards, found again, run apart."""

from __future__ import annotations

import ast
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from comfy_host import checkouts
from learned_solvers.samplers import FlowNoise, VPNoise, load_solver
from learned_solvers.samplers.comfy_models import default_guidance
from learned_solvers.samplers.guidance import among, apart, listed, of_samples, spread, values_of
from torch.testing import assert_close


def remarks_on(*arguments):
    """Calls the WebUI extension's function, without the package around it, which wants its host."""
    path = Path(__file__).resolve().parents[2] / "webui_extension" / "remarks.py"
    spec = spec_from_file_location("learned_solvers.webui_extension.remarks", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.remarks_on(*arguments)


def with_guidance(name, guidance):
    solver = load_solver(name)
    return replace(solver, card=replace(solver.card, guidance=guidance))


@pytest.mark.parametrize(
    ("middle", "part", "values"),
    [
        (7.5, 1 / 3, (5, 7.5, 10)),
        (7, 1 / 3, (4.67, 7, 9.33)),
        (4.5, 1 / 3, (3, 4.5, 6)),
        (6, 0.5, (3, 6, 9)),
        (1.2, 0.5, (1, 1.2, 1.8)),
        (7.5, 0, (7.5,)),
        (1, 0.5, (1,)),
        (0.5, 0.5, (0.5,)),
    ],
)
def test_guidance_is_spread_to_both_sides_and_not_below_one(middle, part, values):
    assert spread(middle, part) == pytest.approx(values)


@pytest.mark.parametrize("first", [0, 1, 5, 61])
def test_any_three_samples_in_a_row_have_all_three_guidances(first):
    assert set(of_samples((5, 7.5, 10), 64)[first : first + 3]) == {5, 7.5, 10}
    assert of_samples((5, 7.5, 10), 64)[:4] == [5, 7.5, 10, 5]


def test_more_guidances_than_samples_are_refused():
    with pytest.raises(ValueError, match=r"2 samples are too few for guidances 5, 7\.5, 10: take 3, or one guidance"):
        of_samples((5, 7.5, 10), 2)


@pytest.mark.parametrize(
    ("fitted", "inside", "outside"),
    [
        ("5, 7.5, 10", ["5", "7.5", "8.25", "10"], ["3", "10.5", "7.5 (distilled, CFG 1)", "words"]),
        ("10, 5", ["5", "7", "10"], ["4.99", "11"]),
        ("7.5", ["7.5"], ["7", "8"]),
        ("3.5 (distilled, CFG 1)", ["3.5 (distilled, CFG 1)"], ["3.5", "3 (distilled, CFG 1)", "1"]),
        ("2, 3.5, 5 (distilled, CFG 1)", ["3 (distilled, CFG 1)"], ["3", "6 (distilled, CFG 1)"]),
        ("3.5 (distilled, CFG 1.34, 2, 2.66)", ["3.5 (distilled, CFG 2.5)"], ["3.5 (distilled, CFG 3)"]),
        ("the host's default (distilled, CFG 1)", ["the host's default (distilled, CFG 1)"], ["1"]),
        ("1 (shown at 1.375)", ["1 (shown at 1.375)", "1"], ["1.2", "1.375", "1 (distilled, CFG 1)"]),
        ("about 5, 7.5", [], ["6"]),
    ],
)
def test_a_guidance_is_among_those_of_a_card_within_their_range_and_of_the_same_kind(fitted, inside, outside):
    assert [here for here in [*inside, *outside] if among(here, fitted)] == inside


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (listed((5.0, 7.5, 10.0)), (5, 7.5, 10)),
        ("3.5 (distilled, CFG 1)", (3.5,)),
        ("2, 3.5 (distilled, CFG 1)", (2, 3.5)),
        ("1 (shown at 1.375)", (1,)),
        ("none", ()),
        ("", ()),
        ("CFG 7", ()),
        ("..", ()),
    ],
)
def test_the_values_at_the_head_of_a_cards_text_are_read(text, values):
    assert values_of(text) == values


@pytest.mark.parametrize("values", [[3.0], [2.0, 2.0], [5.0, 7.5, 10.0, 5.0, 1.0], [1.0, 2.0, 1.0]])
def test_rows_run_apart_are_those_of_their_own_guidance_in_their_order(values):
    x, sigma = torch.randn(len(values), 2, 3), torch.rand(len(values))
    calls = []

    def run(value, rows, x, sigma):
        calls.append((value, rows))
        return (value * x) + sigma.view(-1, 1, 1)

    wanted = torch.stack([v * a + s for v, a, s in zip(values, x, sigma, strict=True)])
    assert_close(apart(values, x, sigma, run), wanted)
    assert [value for value, _ in calls] == list(dict.fromkeys(values))
    assert all(values[row] == value for value, rows in calls for row in rows)


@pytest.mark.parametrize(
    ("guidance", "here", "told"),
    [
        ("5, 7.5, 10", 5.0, None),
        ("5, 7.5, 10", 8.0, None),
        ("5, 7.5, 10", 3.0, "was fitted at guidance 5, 7.5, 10, CFG scale here is 3"),
        ("7.5", 7.5, None),
        ("7.5", 7.0, "was fitted at guidance 7.5, CFG scale here is 7"),
        ("1 (shown at 1.375)", 1.0, None),
        ("1 (shown at 1.375)", 1.375, "was fitted at guidance 1 (shown at 1.375), CFG scale here is 1.375"),
        ("none", 7.0, None),
    ],
)
def test_the_webui_remarks_on_a_guidance_outside_those_of_the_fit(guidance, here, told):
    solver = with_guidance("dyweight_sd15", guidance)
    job = SimpleNamespace(is_hr_pass=False, width=512, height=512, cfg_scale=here, distilled_cfg_scale=9.0)
    remarks = [r for r in remarks_on(solver, 6, job, VPNoise.stable_diffusion(), "SD15") if "guidance" in r]
    assert remarks == ([] if told is None else [f"dyweight_sd15 {told}"])


@pytest.mark.parametrize(("here", "wanted"), [(2.5, 0), (6.0, 1)])
def test_the_webui_compares_a_distilled_guidance_with_its_own_scale(here, wanted):
    solver = with_guidance("dyweight_flux1-dev", "2, 3.5, 5 (distilled, CFG 1)")
    job = SimpleNamespace(is_hr_pass=False, width=512, height=512, cfg_scale=1.0, distilled_cfg_scale=here)
    told = " ".join(remarks_on(solver, 7, job, FlowNoise(1024), "Flux"))
    assert told.count(f"distilled CFG scale here is {here:g}") == wanted


def defaults_of(checkout):
    """Returns the classes of a ComfyUI's models, empty, and the guidance that some default to."""
    classes, defaults = {}, {}
    for found in ast.parse((checkout / "comfy" / "model_base.py").read_text()).body:
        if isinstance(found, ast.ClassDef):
            bases = [classes[base.id] for base in found.bases if isinstance(base, ast.Name) and base.id in classes]
            classes[found.name] = type(found.name, tuple(bases), {})
            for call in (c for c in ast.walk(found) if isinstance(c, ast.Call) and len(c.args) == 2):
                if ast.unparse(call).startswith("kwargs.get('guidance', "):
                    defaults[found.name] = call.args[1].value
    return classes, defaults


@pytest.mark.comfy
@pytest.mark.parametrize("checkout", checkouts(), ids=lambda path: path.name)
def test_the_guidance_without_one_in_the_conditioning_is_the_hosts(checkout):
    classes, defaults = defaults_of(checkout)
    assert defaults.pop("Hunyuan3Dv2_1") == 5.0  # which its network does not read
    assert {"Flux", "Chroma", "HunyuanVideo", "Hunyuan3Dv2"} <= defaults.keys()
    assert {name: default_guidance(classes[name]()) for name in defaults} == defaults
