"""Guidance as data: records, parameters between knots, ranges, guidance per sample, calls grouped by value."""

from __future__ import annotations

import pytest
import torch
from learned_solvers.samplers.guidance import Guidance, at_guidance, call_by_group
from oracles import f64
from torch.testing import assert_close

FULL = Guidance("embedded", (2, 5), usual=4, cfg=1)


@pytest.mark.parametrize(
    ("guidance", "text", "default", "plain"),
    [
        (Guidance(), "no guidance", None, {"kind": "none"}),
        (Guidance("cfg"), "CFG unknown", None, {"kind": "cfg"}),
        (Guidance("cfg", (5, 7.5, 10)), "CFG 5, 7.5, 10", 7.5, {"kind": "cfg", "values": [5, 7.5, 10]}),
        (Guidance("cfg", (5, 7.5)), "CFG 5, 7.5", 7.5, {"kind": "cfg", "values": [5, 7.5]}),
        (Guidance("cfg", (1, 2), usual=1), "CFG 1, 2", 1, {"kind": "cfg", "values": [1, 2], "usual": 1}),
        (Guidance("cfg", usual=3), "CFG 3", 3, {"kind": "cfg", "values": [3], "usual": 3}),
        (Guidance("embedded", (3.5,)), "embedded guidance 3.5", 3.5, {"kind": "embedded", "values": [3.5]}),
        (FULL, "embedded guidance 2, 5, CFG 1", 4, {"kind": "embedded", "values": [2, 5], "usual": 4, "cfg": 1}),
    ],
)
def test_a_guidance_as_text_and_json_and_its_default(guidance, text, default, plain):
    assert (str(guidance), guidance.default, guidance.to_json()) == (text, default, plain)
    assert Guidance.from_json(plain) == guidance


CFG, EMBEDDED = Guidance("cfg", (5, 7.5, 10)), Guidance("embedded", (2, 5), cfg=1)


@pytest.mark.parametrize(
    ("fitted", "other", "covered"),
    [
        *((CFG, Guidance("cfg", values), True) for values in [(5,), (8.25,), (10 + 5e-7,), (5 - 2e-6,), (5, 10)]),
        *((CFG, other, False) for other in [Guidance("cfg", (3,)), Guidance("cfg", (10.5,)), Guidance("cfg")]),
        *((CFG, other, False) for other in [Guidance("embedded", (7.5,)), Guidance()]),
        *((EMBEDDED, Guidance("embedded", (3.5,), cfg=cfg), cfg != 2) for cfg in (1, None, 2)),
        (EMBEDDED, Guidance("cfg", (3.5,)), False),
        (Guidance(), Guidance(), True),
        (Guidance(), Guidance("cfg", (1,)), False),
    ],
)
def test_a_fit_covers_the_range_of_its_values_in_its_own_kind(fitted, other, covered):
    assert fitted.covers(other) == covered


@pytest.mark.parametrize(
    ("run", "value"),
    [(Guidance("cfg", (4,)), 4), (Guidance("cfg"), None), (Guidance("embedded", (4,)), None), (None, None)],
)
def test_a_runs_value_is_used_if_its_kind_is_the_fits(run, value):
    assert CFG.value_of(run) == value


@pytest.mark.parametrize(
    ("guidance", "expected"),
    [
        *((2, (1, 10)), (4, (2, 20)), (8, (3, 30)), (16, (3.5, 25)), (32, (4, 20)), (0, (1, 10)), (100, (4, 20))),
        (2 ** (2 + 3 / 4), (2.75, 27.5)),  # 1 + 3/4 of the two octaves from 2 to 8
    ],
)
def test_parameters_are_linear_in_log_guidance_and_constant_outside_the_knots(guidance, expected):
    stack = f64(1, 10, 3, 30, 4, 20).reshape(3, 2)
    assert_close(at_guidance(stack, (2, 8, 32), guidance), f64(*expected))
    for knots, value in ((), None), ((), guidance), ((5,), None), ((5,), guidance):  # one set is used at every guidance
        assert torch.equal(at_guidance(stack[:1], knots, value), stack[0])


@pytest.mark.parametrize(
    ("usual", "cfg", "values"),
    [
        *((7.5, None, (3, 5, 7.5, 12)), (1.5, None, (1, 1.5, 2.4)), (1, None, (1,)), (0, None, (0,))),
        *((3.5, 1, (1.4, 2.33, 3.5, 5.6)), (0.5, 2, (0.2, 0.33, 0.5, 0.8))),
    ],
)
def test_a_fits_values_are_around_the_usual_one_and_a_cfg_is_not_below_1(usual, cfg, values):
    assert Guidance.around(usual, cfg) == Guidance("cfg" if cfg is None else "embedded", values, usual, cfg)


@pytest.mark.parametrize("values", [[2.0, 2.0], [5.0, 7.5, 10.0, 5.0, 1.0], [1.0, 2.0, 1.0]])
def test_each_value_is_called_once_and_the_rows_keep_their_order(values):
    x, sigma = torch.randn(len(values), 2, 3), torch.rand(len(values))
    calls = []

    def run(value, rows, x, sigma):
        calls.append((value, rows))
        return value * x + sigma.view(-1, 1, 1)

    expected = torch.tensor(values).view(-1, 1, 1) * x + sigma.view(-1, 1, 1)
    assert_close(call_by_group(values, x, sigma, run), expected)
    assert calls == [(value, [i for i, v in enumerate(values) if v == value]) for value in dict.fromkeys(values)]
