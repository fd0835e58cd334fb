"""Each table of a classical method equals its sampler in a real ComfyUI, on a nonlinear denoiser."""

from __future__ import annotations

import pytest
import torch
from comfy_host import EACH_CHECKOUT, run_script
from learned_solvers.training.starts.candidates import HOST_METHODS
from oracles import Recorder, f64, mixture, run, start
from torch import Tensor

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


def state(grid):
    return start(float(LEVELS[grid][0]), 3, 3, 1, 1)


@pytest.fixture(scope="module", params=EACH_CHECKOUT)
def host(request, tmp_path_factory) -> dict[tuple[str, str], tuple[Tensor, int]]:
    """(end state, model calls) of every run in the host, all in one process."""
    folder = tmp_path_factory.mktemp("samplers")
    runs = [(name, LEVELS[grid], grid.startswith("flow"), state(grid)) for name, grid in RUNS]
    torch.save(runs, folder / "request.pt")
    run_script(request.param, "run_samplers.py", folder / "request.pt", folder / "result.pt")
    return dict(zip(RUNS, torch.load(folder / "result.pt", weights_only=True), strict=True))


@pytest.mark.parametrize(("name", "grid"), RUNS)
def test_a_table_is_comfyuis_own_sampler(host, name, grid):
    model, table = Recorder(mixture(grid.startswith("flow"))), HOST_METHODS[name](LEVELS[grid])
    expected, calls = host[name, grid]
    torch.testing.assert_close(run(model, state(grid), table), expected, rtol=1e-6, atol=1e-6)
    assert len(model.x) == table.nfe == calls
