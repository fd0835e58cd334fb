"""Recorded runs of both papers' own code, in float64 on a closed-form denoiser, are reproduced step by step."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import pytest
import torch
from learned_solvers.samplers import EDMNoise, FlowNoise, Grid, SolverTable, VPNoise, sample_table
from learned_solvers.samplers.families.ds import ds_flow_table, ds_vp_table
from learned_solvers.samplers.families.dyweight import dyweight_table
from oracles import Mixture, Recorder, Steps
from safetensors import safe_open
from torch import Tensor

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden"
PIXEL = ("dyweight-cifar-nfe3", "dyweight-cifar-nfe5")
LATENT = ("dyweight-mscoco-nfe8", "dyweight-mscoco-nfe12", "dyweight-lsun_bedroom_ldm-nfe3")
FLUX = ("dyweight-flux-nfe3-seq1024", "dyweight-flux-nfe5-seq4096")
DS_FLOW = ("ds-flow-flowdcn-step6", "ds-flow-sit-step5", "ds-flow-sit-step8")
DS_VP = ("ds-vp-step5", "ds-vp-step8")
DYWEIGHT = PIXEL + LATENT + FLUX
FLUX_SHIFT = {"base_tokens": 256, "base_mu": 0.5, "max_tokens": 4096, "max_mu": 1.15}


@cache
def golden(name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A golden file's tensors and metadata."""
    with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def mixture_of(name: str) -> Mixture:
    data, _ = golden(name)
    return Mixture(data["mixture.mean"], data["mixture.std"], data["mixture.logw"], flow=name in DS_FLOW + FLUX)


def table_of(name: str) -> SolverTable:
    data, metadata = golden(name)
    if name in DS_FLOW:
        return ds_flow_table(data["timedeltas"], data["coeffs"])
    if name in DS_VP:
        return ds_vp_table(data["timedeltas"], data["coeffs"], VPNoise.linear_beta(0.1, 20.0))
    options = {"analytic_first": metadata.get("afs") == "true", "divisor": "call" if name in FLUX else "state"}
    return dyweight_table(data["weights"], data["t_scale"], data["grid"], **options)


def reference_trajectory(name: str) -> Tensor:
    """The file's states in the coordinates of the tables: VE or flow."""
    data, _ = golden(name)
    if name not in DS_VP:
        return data["trajectory"]
    time = max(float(data["times"][-1] - data["timedeltas"][-1]), 1e-3)
    last_alpha = math.exp(-(20.0 - 0.1) / 4 * time**2 - 0.1 / 2 * time)
    alphas = torch.cat([data["alphas"], torch.tensor([last_alpha])])
    return data["trajectory"] / alphas.reshape(-1, 1, 1, 1, 1)


def reference_sigmas(name: str) -> Tensor:
    """The levels at which the reference called its network, shape [calls]."""
    data, metadata = golden(name)
    if name in DS_FLOW:
        return data["model_sigmas"]
    if name in DS_VP:
        return data["sigmas"] / data["alphas"]
    # In the paper's code the row's sum moves the state's level; the network's level is that times t_scale.
    weights, t_scale, grid = (data[key] for key in ("weights", "t_scale", "grid"))
    analytic = metadata.get("afs") == "true"
    true, sigmas = grid[0], []
    for i in range(len(weights)):
        if not (analytic and i == 0):
            sigmas.append(abs(t_scale[i - analytic] * true))
        true = true + weights[i].sum() * (grid[i + 1] - true)
    return torch.stack(sigmas)


def start_of(name: str) -> Tensor:
    data, _ = golden(name)
    if name in DS_VP:
        return data["noise"] / data["alphas"][0]
    return data["noise"] * data["grid"][0] if name in DYWEIGHT else data["noise"]


def assert_same_trajectory(states: Tensor, reference: Tensor) -> None:
    """Equal to 1e-6 of the largest number in the reference's state of the same step."""
    largest = reference.flatten(1).abs().amax(1).reshape(-1, *[1] * (states.ndim - 1))
    torch.testing.assert_close(states / largest, reference / largest, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", DYWEIGHT + DS_FLOW + DS_VP)
def test_the_references_states_and_calls_are_reproduced(name):
    recorder, steps, table = Recorder(mixture_of(name)), Steps(), table_of(name)
    result = sample_table(recorder, start_of(name), table, callback=steps, disable=True)
    assert_same_trajectory(steps.trajectory(result), reference_trajectory(name))
    expected = reference_sigmas(name)
    torch.testing.assert_close(recorder.sigmas, expected[:, None].expand(-1, 2), rtol=1e-6, atol=0)
    assert table.nfe == len(expected)


def test_every_golden_file_is_tested():
    assert {path.stem for path in GOLDEN.glob("*.safetensors")} == {*DYWEIGHT, *DS_FLOW, *DS_VP}


@pytest.mark.parametrize("name", DYWEIGHT)
def test_the_grid_rule_gives_the_references_grid(name):
    data, metadata = golden(name)
    if name in FLUX:
        grid, noise = Grid("flux_shift", FLUX_SHIFT), FlowNoise(tokens=int(metadata["image_seq_len"]))
    elif name in PIXEL:
        grid = Grid("polynomial", {"rho": float(metadata["rho"])})
        noise = EDMNoise(float(metadata["sigma_min"]), float(metadata["sigma_max"]))
    else:
        grid = Grid("uniform_time", {"end": 1e-3})
        noise = VPNoise.scaled_linear(0.0015, 0.0195) if "ldm" in name else VPNoise.stable_diffusion()
        levels = float(metadata["sigma_min"]), float(metadata["sigma_max"])
        assert (noise.sigma_min, noise.sigma_max) == pytest.approx(levels, rel=1e-6)
    levels = grid.levels(len(data["grid"]) - 1, noise)
    torch.testing.assert_close(levels, data["grid"], rtol=1e-6, atol=1e-9 if name in FLUX else 0)
    assert table_of(name).sigma_end == pytest.approx(float(data["grid"][-1]), rel=1e-12)
