"""Overhead: the cost of a step outside the network, for our samplers, k-diffusion's Euler and ComfyUI's iPNDM.

The network is a stub that returns its input, so only the samplers are timed. They take turns in one process, and the
results are ratios. ComfyUI's samplers need its modules: if COMFYUI_PATH is set, ComfyUI's Python (COMFYUI_PYTHON,
otherwise its venv folder) runs this file and imports k-diffusion from our environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if not __package__:  # run as a file, by ComfyUI's Python
    sys.path.append(str(Path(__file__).resolve().parent.parent))
    __package__ = "benchmarks"
    import_module(__package__)

from learned_solvers.samplers import FlowNoise, SolverTable, load_solver, sample_table
from learned_solvers.samplers.families.dyweight import dyweight_table
from learned_solvers.training.models.host import Host, find_comfy

from .k_diffusion_modules import k_diffusion_folder, k_diffusion_module

__all__ = [
    "SIGMAS", "SIZES", "STEPS", "host_version", "our_samplers", "overhead", "overhead_here", "overhead_without_comfyui",
    "peak_bytes", "samplers", "seconds_by_turns",
]  # fmt: skip

SIZES = {
    "1x4x64x64": (1, 4, 64, 64),
    "1x4x128x128": (1, 4, 128, 128),
    "1x16x128x128": (1, 16, 128, 128),
    "1x16x256x256": (1, 16, 256, 256),
    "video 1x16x21x60x104": (1, 16, 21, 60, 104),
}
STEPS = 10
SIGMAS = torch.linspace(1, 0.05, STEPS + 1)

Sampler = Callable[[Tensor], Tensor]


def overhead_here() -> Callable[..., dict[str, Any]]:
    """`overhead` if COMFYUI_PATH is set, otherwise `overhead_without_comfyui`."""
    return overhead if os.environ.get("COMFYUI_PATH") else overhead_without_comfyui


def host_version() -> dict[str, str]:
    """The version of the ComfyUI at COMFYUI_PATH, for a record; empty if it is not set."""
    if not os.environ.get("COMFYUI_PATH"):
        return {}
    file = find_comfy(None) / "comfyui_version.py"
    return {"comfyui": file.read_text("utf-8").rpartition("=")[2].strip().strip("\"'") if file.is_file() else "unknown"}


def overhead_without_comfyui(turns: int = 41) -> dict[str, Any]:
    """Seconds per step and peak memory of our samplers and k-diffusion's Euler, by size."""
    return _measure(samplers(), turns)


def overhead(turns: int = 41) -> dict[str, Any]:
    """The same with ComfyUI's iPNDM, run by the Python of the ComfyUI at COMFYUI_PATH."""
    comfy = find_comfy(None)
    python = os.environ.get("COMFYUI_PYTHON") or str(comfy / "venv/bin/python")
    command = [python, str(Path(__file__).resolve()), str(comfy), str(k_diffusion_folder().parent), str(turns)]
    process = subprocess.run(command, capture_output=True, text=True, cwd="/")
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {process.stderr[-2000:]}")
    return json.loads(process.stdout.splitlines()[-1])


def _overhead_in_comfyui(comfy: str, k_diffusion_parent: str, turns: str) -> dict[str, Any]:
    sys.path.append(k_diffusion_parent)
    ipndm = Host(Path(comfy)).module("comfy.k_diffusion.sampling").sample_ipndm
    return _measure({**samplers(), "ipndm": lambda x: ipndm(_network, x, SIGMAS, disable=True)}, int(turns))


def samplers() -> dict[str, Sampler]:
    """k-diffusion's Euler and ours."""
    euler = k_diffusion_module("sampling").sample_euler
    return {"euler": lambda x: euler(_network, x, SIGMAS, disable=True), **our_samplers()}


def our_samplers() -> dict[str, Sampler]:
    """Our two families: DyWeight with the histories of fits, DS-Solver with its whole history."""
    tables = {f"dyweight, history {history}": _windowed(history) for history in (3, 6)}
    tables["ds_flow-sit, whole history"] = load_solver("ds_flow-sit").table(STEPS, FlowNoise(tokens=1024))
    return {name: lambda x, t=table: sample_table(_network, x, t, disable=True) for name, table in tables.items()}


def _windowed(history: int) -> SolverTable:
    """A DyWeight table with random weights that uses the `history` newest entries at each step."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(STEPS, STEPS, generator=generator, dtype=torch.float64).tril().triu(1 - history)
    weights = weights / weights.sum(1, keepdim=True)
    return dyweight_table(weights, torch.ones(STEPS, dtype=torch.float64), SIGMAS.double(), divisor="call")


def _network(x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
    """A network without cost: returns its input."""
    return x


def _measure(samplers: Mapping[str, Sampler], turns: int) -> dict[str, Any]:
    """Seconds per step and peak memory in states, by size and sampler."""
    torch.set_num_threads(1)
    records: dict[str, Any] = {}
    for label, shape in SIZES.items():
        x = torch.randn(shape)
        times = seconds_by_turns(samplers, x, turns)
        records[label] = {
            name: {"seconds": median(times[name]), "states": peak_bytes(sample, x) / x.nbytes}
            for name, sample in samplers.items()
        }
    return records


def seconds_by_turns(
    samplers: Mapping[str, Sampler], x: Tensor, turns: int, now: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds per step of samplers that take turns, without a first turn, which warms up."""
    times: dict[str, list[float]] = {name: [] for name in samplers}
    for _ in range(turns + 1):
        for name, sample in samplers.items():
            began = now()
            sample(x)
            times[name].append((now() - began) / STEPS)
    return {name: seconds[1:] for name, seconds in times.items()}


class _Peak(TorchDispatchMode):
    """Tracks the peak number of bytes in live tensors, not counting those that existed before."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[weakref.ref[Tensor]] = []
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.tensors += [weakref.ref(leaf) for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.tensors = [ref for ref in self.tensors if ref() is not None]
        storages = [tensor.untyped_storage() for ref in self.tensors if (tensor := ref()) is not None]
        self.bytes = max(self.bytes, sum({storage._cdata: storage.nbytes() for storage in storages}.values()))
        return out


def peak_bytes(sample: Sampler, x: Tensor) -> int:
    """Peak bytes of the tensors that a sampler allocates."""
    with _Peak() as peak:
        sample(x)
    return peak.bytes


if __name__ == "__main__":
    print(json.dumps(_overhead_in_comfyui(*sys.argv[1:])))
