"""Both papers' own code, run in float64 on a closed-form denoiser, is reproduced step by step."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from learned_solvers.samplers import EDMNoise, FlowNoise, Grid, SolverTable, VPNoise, sample_table
from learned_solvers.samplers.families.ds import ds_flow_table, ds_vp_table
from learned_solvers.samplers.families.dyweight import dyweight_table
from oracles import Mixture, Recorder, Steps
from safetensors import safe_open
from torch import Tensor

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden"
POLYNOMIAL = ("dyweight-cifar-nfe3", "dyweight-cifar-nfe5")
STABLE_DIFFUSION = ("dyweight-mscoco-nfe8", "dyweight-mscoco-nfe12")
LATENT_DIFFUSION = ("dyweight-lsun_bedroom_ldm-nfe3",)
FLUX = ("dyweight-flux-nfe3-seq1024", "dyweight-flux-nfe5-seq4096")
DYWEIGHT = POLYNOMIAL + STABLE_DIFFUSION + LATENT_DIFFUSION + FLUX
DS_FLOW = ("ds-flow-flowdcn-step6", "ds-flow-sit-step5", "ds-flow-sit-step8")
DS_VP = ("ds-vp-step5", "ds-vp-step8")
FLUX_SHIFT = {"base_tokens": 256, "base_mu": 0.5, "max_tokens": 4096, "max_mu": 1.15}


@cache
def golden(name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns a golden file's tensors and metadata."""
    with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def mixture(name: str) -> Mixture:
    data, _ = golden(name)
    flow = name.startswith("ds-flow") or name in FLUX
    return Mixture(data["mixture.mean"], data["mixture.std"], data["mixture.logw"], flow)


def table_of(name: str) -> SolverTable:
    data, metadata = golden(name)
    if name in DS_FLOW:
        return ds_flow_table(data["timedeltas"], data["coeffs"])
    if name in DS_VP:
        return ds_vp_table(data["timedeltas"], data["coeffs"], VPNoise.linear_beta(0.1, 20.0))
    afs, divisor = metadata.get("afs") == "true", "call" if name in FLUX else "state"
    return dyweight_table(data["weights"], data["t_scale"], data["grid"], analytic_first=afs, divisor=divisor)


def reference_trajectory(name: str) -> Tensor:
    """Returns the file's states in the coordinates of the tables: VE or flow."""
    data, _ = golden(name)
    if name not in DS_VP:
        return data["trajectory"]
    time = max(float(data["times"][-1] - data["timedeltas"][-1]), 1e-3)
    alphas = torch.cat([data["alphas"], torch.tensor([linear_beta_alpha(time)])])
    return data["trajectory"] / alphas.reshape(-1, 1, 1, 1, 1)


def linear_beta_alpha(time: float) -> float:
    return float(np.exp(-(20.0 - 0.1) / 4 * np.float64(time) ** 2 - 0.1 / 2 * time))


def reference_sigmas(name: str) -> Tensor:
    """Returns where the reference called its network, shape [calls]."""
    data, metadata = golden(name)
    if name in DS_FLOW:
        return data["model_sigmas"]
    if name in DS_VP:
        return data["sigmas"] / data["alphas"]
    # The paper's code: the state's own level moves by the row's sum, the network sees it scaled.
    weights, t_scale, grid = (data[key].numpy() for key in ("weights", "t_scale", "grid"))
    analytic = metadata.get("afs") == "true"
    true, sigmas = grid[0], []
    for i in range(len(weights)):
        if not (analytic and i == 0):
            sigmas.append(abs(t_scale[i - analytic] * true))
        true = true + weights[i].sum() * (grid[i + 1] - true)
    return torch.tensor(np.array(sigmas))


def start_of(name: str) -> Tensor:
    data, _ = golden(name)
    if name in DS_VP:
        return data["noise"] / data["alphas"][0]
    return data["noise"] * data["grid"][0] if name in DYWEIGHT else data["noise"]


def relative(states: Tensor, reference: Tensor) -> Tensor:
    """Returns states in units of the largest element of the reference's state of the same step."""
    return states / reference.flatten(1).abs().amax(1).reshape(-1, *[1] * (states.ndim - 1))


def assert_same_trajectory(states: Tensor, reference: Tensor) -> None:
    torch.testing.assert_close(relative(states, reference), relative(reference, reference), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", DYWEIGHT + DS_FLOW + DS_VP)
def test_every_state_of_the_reference_is_reproduced(name):
    steps = Steps()
    result = sample_table(mixture(name), start_of(name), table_of(name), callback=steps, disable=True)
    assert_same_trajectory(steps.trajectory(result), reference_trajectory(name))


@pytest.mark.parametrize("name", DYWEIGHT + DS_FLOW + DS_VP)
def test_the_model_is_called_where_the_reference_called_it(name):
    recorder = Recorder(mixture(name))
    sample_table(recorder, start_of(name), table_of(name), disable=True)
    expected = reference_sigmas(name)
    torch.testing.assert_close(recorder.sigmas, expected[:, None].expand(-1, 2), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", DYWEIGHT + DS_FLOW + DS_VP)
def test_the_reference_starts_where_the_table_says(name):
    assert_same_trajectory(start_of(name)[None], reference_trajectory(name)[:1])
    assert table_of(name).nfe == len(reference_sigmas(name))


def test_every_golden_file_is_tested():
    assert {path.stem for path in GOLDEN.glob("*.safetensors")} == {*DYWEIGHT, *DS_FLOW, *DS_VP}


def test_a_wrong_coefficient_is_noticed():
    table = table_of("ds-flow-sit-step5")
    table.coeffs[3, 2] *= 1 + 1e-4
    result = sample_table(mixture("ds-flow-sit-step5"), start_of("ds-flow-sit-step5"), table, disable=True)
    with pytest.raises(AssertionError):
        assert_same_trajectory(result[None], reference_trajectory("ds-flow-sit-step5")[-1:])


@pytest.mark.parametrize("name", POLYNOMIAL)
def test_the_polynomial_rule_gives_the_references_grid(name):
    data, metadata = golden(name)
    noise = EDMNoise(float(metadata["sigma_min"]), float(metadata["sigma_max"]))
    levels = Grid("polynomial", {"rho": float(metadata["rho"])}).levels(len(data["grid"]) - 1, noise)
    torch.testing.assert_close(levels, data["grid"], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("name", "noise"),
    [(name, VPNoise.stable_diffusion()) for name in STABLE_DIFFUSION]
    + [(name, VPNoise.scaled_linear(0.0015, 0.0195)) for name in LATENT_DIFFUSION],
)
def test_the_uniform_time_rule_gives_the_references_grid(name, noise):
    data, _ = golden(name)
    levels = Grid("uniform_time", {"end": 1e-3}).levels(len(data["grid"]) - 1, noise)
    torch.testing.assert_close(levels, data["grid"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", STABLE_DIFFUSION + LATENT_DIFFUSION)
def test_the_schedule_spans_the_references_levels(name):
    _, metadata = golden(name)
    noise = VPNoise.stable_diffusion() if name in STABLE_DIFFUSION else VPNoise.scaled_linear(0.0015, 0.0195)
    assert noise.sigma_min == pytest.approx(float(metadata["sigma_min"]), rel=1e-6)
    assert noise.sigma_max == pytest.approx(float(metadata["sigma_max"]), rel=1e-6)


@pytest.mark.parametrize("name", FLUX)
def test_the_flux_rule_gives_the_references_grid(name):
    data, metadata = golden(name)
    noise = FlowNoise(tokens=int(metadata["image_seq_len"]))
    levels = Grid("flux_shift", FLUX_SHIFT).levels(len(data["grid"]) - 1, noise)
    torch.testing.assert_close(levels, data["grid"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", DYWEIGHT)
def test_the_state_ends_at_the_grids_end(name):
    data, _ = golden(name)
    assert table_of(name).sigma_end == pytest.approx(float(data["grid"][-1]), rel=1e-12)
