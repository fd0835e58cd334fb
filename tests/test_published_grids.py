"""The published step lists and ComfyUI's beta grid, against scipy and the numbers that their sources print."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from learned_solvers.samplers import EDMNoise, FlowNoise, VPNoise
from learned_solvers.training.published_grids import ALIGN_YOUR_STEPS, beta_levels, log_linear, published_grids
from scipy import stats

VP = VPNoise.stable_diffusion()


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 20, 100])
def test_the_beta_grid_stands_on_scipys_quantiles(steps):
    quantiles = stats.beta.ppf(1 - np.linspace(0, 1, steps, endpoint=False), 0.6, 0.6)
    expected = [*np.rint(quantiles * 999), 0]
    assert beta_levels(steps, lambda timestep: timestep).tolist() == expected


def test_a_list_at_its_own_step_count_is_itself_but_for_a_last_0():
    levels = log_linear(ALIGN_YOUR_STEPS["SDXL"], 10)
    assert levels.tolist() == [*ALIGN_YOUR_STEPS["SDXL"][:-1], 0]


def test_a_list_at_half_its_steps_is_every_other_level():
    levels = log_linear(ALIGN_YOUR_STEPS["SD1"], 5)
    torch.testing.assert_close(levels[:-1], torch.tensor(ALIGN_YOUR_STEPS["SD1"][:-1:2], dtype=torch.float64))


def test_a_list_between_its_levels_is_interpolated_in_the_logarithm():
    levels = log_linear((8.0, 2.0, 0.5), 4)
    torch.testing.assert_close(levels[1], torch.tensor(math.sqrt(8.0 * 2.0), dtype=torch.float64))


@pytest.mark.parametrize(
    ("noise", "names"),
    [
        (FlowNoise(), {"beta, shift 1", "beta, shift 3", "karras 7", "OSS FLUX", "OSS Wan", "OSS Chroma"}),
        (VP, {"beta", "AYS SD1", "AYS SDXL", "GITS"}),
        (EDMNoise(), {"beta"}),
        (EDMNoise(0.002, 700.0), {"beta", "AYS SVD"}),
    ],
)
def test_lists_are_offered_where_they_are_defined_and_descend_from_the_models_start(noise, names):
    grids = published_grids(noise)
    assert set(grids) == names
    highest = 1.0 if noise.kind == "flow" else noise.sigma_max
    for levels_of in grids.values():
        for steps in range(1, 25):
            levels = levels_of(steps)
            if levels is None:
                continue
            assert len(levels) == steps + 1 and bool((levels.diff() < 0).all())
            assert float(levels[0]) == pytest.approx(highest, rel=1e-3) and float(levels[-1]) == 0


def test_lists_without_so_few_or_so_many_steps_are_left_out():
    assert published_grids(VP)["GITS"](1) is None and published_grids(VP)["GITS"](21) is None
    assert published_grids(FlowNoise())["OSS FLUX"](2) is None
