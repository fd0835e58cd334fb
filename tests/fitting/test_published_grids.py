"""The published step lists and the hosts' grids, against scipy and what ComfyUI's own nodes and schedulers give."""

from __future__ import annotations

import json
import math
import subprocess

import numpy as np
import pytest
import torch
from comfy_host import HOSTS, WANTED, checkouts, python_of
from learned_solvers.samplers import EDMNoise, FlowNoise, VPNoise
from learned_solvers.training.starts.published import beta_levels, log_linear, published_grids, published_lists
from scipy import stats

VP = VPNoise.stable_diffusion()


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 20, 100])
def test_the_beta_grid_stands_on_scipys_quantiles(steps):
    quantiles = stats.beta.ppf(1 - np.linspace(0, 1, steps, endpoint=False), 0.6, 0.6)
    expected = [*np.rint(quantiles * 999), 0]
    assert beta_levels(steps, lambda timestep: timestep).tolist() == expected


def test_a_list_at_its_own_step_count_or_half_of_it_has_its_own_levels_but_for_a_last_0():
    (levels,) = published_lists()["AYS SDXL"]["levels"].values()
    assert log_linear(levels, 10).tolist() == [*levels[:-1], 0]
    torch.testing.assert_close(log_linear(levels, 5)[:-1], torch.tensor(levels[:-1:2], dtype=torch.float64))


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


MOST = 20  # steps; GITS interpolates its longest list beyond, which is no published one
NONE = pytest.param(None, id="none", marks=pytest.mark.skip(reason=f"no ComfyUI: {WANTED}"))
OFFERED = {  # levels of our grids are the host's but for the first of lists that start a little lower
    **{name: VP for name in ("beta", "AYS SD1", "AYS SDXL", "GITS")},
    "AYS SVD": EDMNoise(0.002, 700.0),
    **{
        name: FlowNoise()
        for name in ("beta, shift 1", "beta, shift 3", "karras 7", "OSS FLUX", "OSS Wan", "OSS Chroma")
    },
}


@pytest.fixture(scope="module", params=[pytest.param(path, id=path.name) for path in checkouts()] or [NONE])
def hosts_lists(request, tmp_path_factory) -> dict[str, dict[str, list[float]]]:
    """ComfyUI's levels by name and number of steps, from a process of its own."""
    result = tmp_path_factory.mktemp("lists") / "lists.json"
    command = [str(python_of(request.param)), str(HOSTS / "step_lists.py"), str(request.param), str(MOST), str(result)]
    ran = subprocess.run(command, cwd=request.param, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(result.read_text())


@pytest.mark.comfy
@pytest.mark.parametrize("name", OFFERED)
def test_a_grid_is_that_of_comfyuis_own_node_or_scheduler(hosts_lists, name):
    ours, theirs, compared = published_grids(OFFERED[name])[name], hosts_lists[name], 0
    for steps in range(1, MOST + 1):
        levels = ours(steps)
        assert (levels is None) == (str(steps) not in theirs)
        if levels is not None:
            expected = torch.tensor(theirs[str(steps)], dtype=torch.float64)
            if name.startswith("OSS"):
                expected[0] = 1.0  # the sample starts there
            torch.testing.assert_close(levels, expected, rtol=2e-6, atol=1e-7)
            compared += 1
    assert compared >= MOST - 2
