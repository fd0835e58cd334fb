"""The published step lists and the hosts' grids, against scipy and ComfyUI's own nodes and schedulers."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from comfy_host import EACH_CHECKOUT, run_script
from learned_solvers.samplers import EDMNoise, FlowNoise, VPNoise
from learned_solvers.training.starts.published import beta_levels, log_linear, published_grids, published_lists
from scipy import stats

VP = VPNoise.stable_diffusion()
VP_LISTS = {"beta", "AYS SD1", "AYS SDXL", "GITS"}
FLOW_LISTS = {"beta, shift 1", "beta, shift 3", "karras 7", "OSS FLUX", "OSS Wan", "OSS Chroma"}


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 20, 100])
def test_the_beta_grid_has_scipys_quantiles(steps):
    quantiles = stats.beta.ppf(1 - np.linspace(0, 1, steps, endpoint=False), 0.6, 0.6)
    expected = [*np.rint(quantiles * 999), 0]
    assert beta_levels(steps, lambda timestep: timestep).tolist() == expected


def test_a_list_keeps_its_levels_at_its_step_count_and_half_of_it_and_ends_at_0():
    (levels,) = published_lists()["AYS SDXL"]["levels"].values()
    assert log_linear(levels, 10).tolist() == [*levels[:-1], 0]
    torch.testing.assert_close(log_linear(levels, 5)[:-1], torch.tensor(levels[:-1:2], dtype=torch.float64))


def test_a_list_between_its_levels_is_interpolated_in_the_logarithm():
    levels = log_linear((8.0, 2.0, 0.5), 4)
    torch.testing.assert_close(levels[1], torch.tensor(math.sqrt(8.0 * 2.0), dtype=torch.float64))


@pytest.mark.parametrize(
    ("noise", "names"),
    [(FlowNoise(), FLOW_LISTS), (VP, VP_LISTS), (EDMNoise(), {"beta"}), (EDMNoise(0.002, 700.0), {"beta", "AYS SVD"})],
)
def test_lists_belong_to_their_schedules_and_descend_from_the_models_start(noise, names):
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


def test_lists_have_no_levels_for_too_few_or_too_many_steps():
    assert published_grids(VP)["GITS"](1) is None and published_grids(VP)["GITS"](21) is None
    assert published_grids(FlowNoise())["OSS FLUX"](2) is None


MOST = 20  # steps; beyond, GITS interpolates its longest list
GRIDS = {**dict.fromkeys(VP_LISTS, VP), "AYS SVD": EDMNoise(0.002, 700.0), **dict.fromkeys(FLOW_LISTS, FlowNoise())}


@pytest.fixture(scope="module", params=EACH_CHECKOUT)
def hosts_lists(request, tmp_path_factory) -> dict[str, dict[str, list[float]]]:
    """ComfyUI's levels by name and number of steps, from a separate process."""
    result = tmp_path_factory.mktemp("lists") / "lists.json"
    run_script(request.param, "step_lists.py", MOST, result)
    return json.loads(result.read_text())


@pytest.mark.comfy
@pytest.mark.parametrize("name", sorted(GRIDS))
def test_a_grid_is_that_of_comfyuis_own_node_or_scheduler(hosts_lists, name):
    levels_of, host_levels, compared = published_grids(GRIDS[name])[name], hosts_lists[name], 0
    for steps in range(1, MOST + 1):
        levels = levels_of(steps)
        assert (levels is None) == (str(steps) not in host_levels)
        if levels is not None:
            expected = torch.tensor(host_levels[str(steps)], dtype=torch.float64)
            if name.startswith("OSS"):
                expected[0] = 1.0  # the sample starts there
            torch.testing.assert_close(levels, expected, rtol=2e-6, atol=1e-7)
            compared += 1
    assert compared >= MOST - 2
