"""Tables of classical methods and grids equal the samplers and schedulers of a real ComfyUI."""

from __future__ import annotations

import pytest
import torch
from comfy_host import EACH_CHECKOUT, run_script
from learned_solvers.samplers import EDMNoise, FlowNoise, VPNoise
from learned_solvers.training.starts.candidates import HOST_METHODS
from oracles import Recorder, f64, mixture, run, start
from torch import Tensor

from benchmarks.host_samplers import host_grids, methods, table_of

pytestmark = pytest.mark.comfy

LEVELS = {
    "VE": f64(14.6, 9.0, 5.5, 3.9, 1.7, 0.9, 0.35, 0.1),
    "VE to 0": f64(14.6, 9.0, 5.5, 3.9, 1.7, 0.9, 0.35, 0.0),
    "flow to 0": f64(1.0, 0.93, 0.7, 0.66, 0.4, 0.25, 0.1, 0.0),
    "EDM to 0": f64(700.0, 54.0, 8.0, 1.0, 0.05, 0.001, 0.0),
    **{f"{n} steps": f64(*torch.linspace(12, 1, n), 0.0) for n in (2, 3, 4, 5)},
}
# uni_pc takes a last level of 0 as 0.001 and so cannot come from there.
RUNS = [(name, grid) for name in HOST_METHODS for grid in LEVELS if grid != "EDM to 0" or name[:6] != "uni_pc"]
RUNS += [(name, grid) for name in methods(FlowNoise()) for grid in LEVELS if grid != "VE"]  # used on grids to 0 only
NOISES = {noise.kind: noise for noise in (FlowNoise(), VPNoise.stable_diffusion(), EDMNoise())}
GRIDS = [(kind, name, steps) for kind, noise in NOISES.items() for name in host_grids(noise) for steps in (3, 4, 8, 10)]


def table_at(name, grid):
    sigmas = LEVELS[grid]
    if name in HOST_METHODS:
        return HOST_METHODS[name](sigmas)
    sample, _ = methods(FlowNoise() if grid.startswith("flow") else EDMNoise())[name]
    return table_of(sample, sigmas)


def state(grid):
    return start(float(LEVELS[grid][0]), 3, 3, 1, 1)


@pytest.fixture(scope="module", params=EACH_CHECKOUT)
def host(request, tmp_path_factory) -> dict[tuple[object, ...], Tensor | tuple[Tensor, int] | None]:
    """(end state, model calls) of every run in the host and the levels of every grid, all in one process."""
    folder = tmp_path_factory.mktemp("samplers")
    runs = [(name, LEVELS[grid], grid.startswith("flow"), state(grid)) for name, grid in RUNS]
    grids = [(kind, *_shift_of(name), steps) for kind, name, steps in GRIDS]
    torch.save({"runs": runs, "grids": grids}, folder / "request.pt")
    run_script(request.param, "run_samplers.py", folder / "request.pt", folder / "result.pt")
    ends, levels = torch.load(folder / "result.pt", weights_only=True)
    return dict(zip([*RUNS, *GRIDS], [*ends, *levels], strict=True))


def _shift_of(name: str) -> tuple[float, str]:
    scheduler, _, shift = name.partition(", shift ")
    return float(shift or 1), scheduler


@pytest.mark.parametrize(("name", "grid"), RUNS)
def test_a_table_is_comfyuis_own_sampler(host, name, grid):
    if host[name, grid] is None:
        pytest.skip(f"this ComfyUI has no {name}")
    model, table = Recorder(mixture(grid.startswith("flow"))), table_at(name, grid)
    expected, calls = host[name, grid]
    torch.testing.assert_close(run(model, state(grid), table), expected, rtol=1e-6, atol=1e-6)
    assert len(model.x) == table.nfe == calls


@pytest.mark.parametrize(("kind", "name", "steps"), GRIDS)
def test_a_grid_of_the_benchmarks_is_comfyuis_own_scheduler(host, kind, name, steps):
    if (expected := host[kind, name, steps]) is None:
        pytest.skip(f"this ComfyUI has no {name}")
    # ComfyUI computes in float32, and interpolates log sigma where the model's table is interpolated in log alpha.
    torch.testing.assert_close(host_grids(NOISES[kind])[name](steps), expected.double(), rtol=2e-3, atol=1e-5)
