"""Guidance as data: records, parameters between knots, ranges, samples at several values, calls grouped by value."""

from __future__ import annotations

import math

import pytest
import torch
from learned_solvers.samplers import Guidance
from learned_solvers.samplers.guidance import at_guidance, call_by_group, per_sample, range_around
from torch.testing import assert_close

FULL = Guidance("embedded", (2.0, 3.5, 5.0), usual=4.0, cfg=1.0)


# ---- the record


@pytest.mark.parametrize(
    ("guidance", "text"),
    [
        (Guidance(), "no guidance"),
        (Guidance("cfg", (5, 7.5, 10)), "CFG 5, 7.5, 10"),
        (Guidance("cfg"), "CFG unknown"),
        (FULL, "embedded guidance 2, 3.5, 5, CFG 1"),
        (Guidance("embedded", (3.5,)), "embedded guidance 3.5"),
    ],
)
def test_a_guidance_as_text(guidance, text):
    assert str(guidance) == text


@pytest.mark.parametrize("guidance", [Guidance(), Guidance("cfg", (5.0,)), FULL, Guidance("cfg", (1, 2), usual=1)])
def test_a_guidance_survives_json(guidance):
    assert Guidance.from_json(guidance.to_json()) == guidance


def test_json_holds_what_is_set_and_no_more():
    assert Guidance("cfg", (5, 7.5)).to_json() == {"kind": "cfg", "values": [5, 7.5]}
    assert FULL.to_json() == {"kind": "embedded", "values": [2, 3.5, 5], "usual": 4, "cfg": 1}


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ("7.5", "guidance must be an object with kind, values, usual and cfg"),
        ({"kind": "cfg", "scale": 3}, "guidance must be an object"),
        ({"kind": "cfg", "values": 5}, "guidance values must be a list"),
        ({"kind": "distilled"}, "guidance has kind 'distilled'; choose cfg, embedded or none"),
        ({"kind": "cfg", "values": [-1]}, "guidance must be finite numbers of at least 0"),
        ({"kind": "cfg", "values": [math.nan]}, "guidance must be finite numbers"),
        ({"kind": "cfg", "values": ["5"]}, "guidance must be finite numbers"),
        ({"kind": "cfg", "values": [5], "usual": math.inf}, "guidance must be finite numbers"),
        ({"kind": "cfg", "values": [5, 5]}, "guidance values must ascend without repeats"),
        ({"kind": "none", "values": [1]}, "guidance of kind none has a number too many"),
        ({"kind": "cfg", "cfg": 1}, "guidance of kind cfg has a number too many"),
    ],
)
def test_what_is_no_guidance_is_refused(plain, message):
    with pytest.raises(ValueError, match=message):
        Guidance.from_json(plain)


@pytest.mark.parametrize(
    ("guidance", "usual"),
    [
        (Guidance("cfg", (5, 7.5, 10)), 7.5),
        (Guidance("cfg", (5, 7.5)), 7.5),
        (Guidance("cfg", (5, 7.5), usual=5), 5),
        (Guidance("cfg"), None),
        (Guidance(), None),
    ],
)
def test_the_usual_value_is_the_middle_unless_it_is_named(guidance, usual):
    assert guidance.at == usual


@pytest.mark.parametrize(
    ("fitted", "inside", "outside"),
    [
        (
            Guidance("cfg", (5, 7.5, 10)),
            [Guidance("cfg", (5,)), Guidance("cfg", (8.25,)), Guidance("cfg", (10 + 5e-7,)), Guidance("cfg", (5, 10))],
            [
                Guidance("cfg", (3,)),
                Guidance("cfg", (10.5,)),
                Guidance("embedded", (7.5,)),
                Guidance("cfg"),
                Guidance(),
            ],
        ),
        (
            Guidance("embedded", (2, 5), cfg=1),
            [Guidance("embedded", (3.5,), cfg=1), Guidance("embedded", (3.5,))],
            [Guidance("embedded", (3.5,), cfg=2), Guidance("cfg", (3.5,))],
        ),
        (Guidance(), [Guidance()], [Guidance("cfg", (1,))]),
    ],
)
def test_a_fit_covers_the_range_of_its_values_in_its_own_kind(fitted, inside, outside):
    assert [other for other in (*inside, *outside) if fitted.covers(other)] == inside


@pytest.mark.parametrize(
    ("run", "value"),
    [(Guidance("cfg", (4,)), 4), (Guidance("cfg"), None), (Guidance("embedded", (4,)), None), (None, None)],
)
def test_a_runs_value_counts_where_its_kind_is_the_fits(run, value):
    assert Guidance("cfg", (5, 7.5)).value_of(run) == value


# ---- parameters between knots


@pytest.mark.parametrize(
    ("guidance", "expected"),
    [
        (2, [1, 10]),
        (4, [2, 20]),  # log 4 is halfway between log 2 and log 8
        (8, [3, 30]),
        (2 ** (2 + 3 / 4), [2.75, 27.5]),  # 1 + 3/4 of the two octaves from 2 to 8
        (16, [3.5, 25]),  # halfway from 8 to 32
        (32, [4, 20]),
        (1, [1, 10]),
        (0, [1, 10]),
        (100, [4, 20]),
    ],
)
def test_parameters_are_linear_in_log_guidance_and_constant_outside_the_knots(guidance, expected):
    stack = torch.tensor([[1, 10], [3, 30], [4, 20]], dtype=torch.float64)
    assert_close(at_guidance(stack, (2, 8, 32), guidance), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("knots", [(), (5,)])
@pytest.mark.parametrize("guidance", [None, 0.5, 7])
def test_one_set_of_parameters_is_taken_at_every_guidance(knots, guidance):
    stack = torch.rand(1, 3, 3, dtype=torch.float64)
    assert torch.equal(at_guidance(stack, knots, guidance), stack[0])


# ---- ranges and samples


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
def test_a_range_lies_around_its_middle_and_not_below_one(middle, part, values):
    assert range_around(middle, part) == pytest.approx(values)


@pytest.mark.parametrize("first", [0, 1, 5, 61])
def test_any_three_samples_in_a_row_have_all_three_guidances(first):
    assert set(per_sample((5, 7.5, 10), 64)[first : first + 3]) == {5, 7.5, 10}
    assert per_sample((5, 7.5, 10), 64)[:4] == [5, 7.5, 10, 5]


def test_more_guidances_than_samples_are_refused():
    with pytest.raises(ValueError, match=r"2 samples are too few for guidances 5, 7\.5, 10: take 3, or one guidance"):
        per_sample((5, 7.5, 10), 2)


# ---- calls grouped by value


@pytest.mark.parametrize("values", [[3.0], [2.0, 2.0], [5.0, 7.5, 10.0, 5.0, 1.0], [1.0, 2.0, 1.0]])
def test_each_value_is_called_once_and_the_rows_keep_their_order(values):
    x, sigma = torch.randn(len(values), 2, 3), torch.rand(len(values))
    calls = []

    def run(value, rows, x, sigma):
        calls.append((value, rows))
        return value * x + sigma.view(-1, 1, 1)

    expected = torch.stack([v * a + s for v, a, s in zip(values, x, sigma, strict=True)])
    assert_close(call_by_group(values, x, sigma, run), expected)
    assert [value for value, _ in calls] == list(dict.fromkeys(values))
    assert all(values[row] == value for value, rows in calls for row in rows)
