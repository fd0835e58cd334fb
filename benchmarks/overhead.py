"""Overhead: what a step costs outside the network, ours against k-diffusion's Euler and ComfyUI's iPNDM.

The network is a stand-in that hands its state back, so that only the samplers are timed, in turns, in one process; the
figures are ratios. ComfyUI's samplers need its modules: where COMFYUI_PATH names a ComfyUI, its own Python
(COMFYUI_PYTHON, else the venv folder in it) runs this file, and finds k-diffusion in ours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
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
from learned_solvers.training.models.loading import find_comfy, host_module

from .k_diffusion_modules import k_diffusion_folder, k_diffusion_module

__all__ = ["SIZES", "host_here", "measure", "overhead", "overhead_here", "overhead_without_comfyui"]

SIZES = {
    "1x4x64x64": (1, 4, 64, 64),
    "1x4x128x128": (1, 4, 128, 128),
    "1x16x128x128": (1, 16, 128, 128),
    "1x16x256x256": (1, 16, 256, 256),
    "video 1x16x21x60x104": (1, 16, 21, 60, 104),
}
STEPS = 10


def overhead_here() -> Callable[..., dict[str, Any]]:
    """Returns `overhead` where COMFYUI_PATH names a ComfyUI, else `overhead_without_comfyui`."""
    return overhead if os.environ.get("COMFYUI_PATH") else overhead_without_comfyui


def host_here() -> dict[str, str]:
    """Returns the version of the ComfyUI at COMFYUI_PATH, by name; nothing without one."""
    if not os.environ.get("COMFYUI_PATH"):
        return {}
    file = find_comfy(None) / "comfyui_version.py"
    return {"comfyui": file.read_text("utf-8").rpartition("=")[2].strip().strip("\"'") if file.is_file() else "unknown"}


def overhead_without_comfyui(turns: int = 41) -> dict[str, Any]:
    """Returns records per size of our samplers and k-diffusion's Euler."""
    return measure(_samplers(), turns)


def overhead(turns: int = 41) -> dict[str, Any]:
    """Returns records per size of these and ComfyUI's iPNDM, through the Python of the ComfyUI at COMFYUI_PATH."""
    comfy = find_comfy(None)
    python = os.environ.get("COMFYUI_PYTHON") or str(comfy / "venv/bin/python")
    command = [python, str(Path(__file__).resolve()), str(comfy), str(k_diffusion_folder().parent), str(turns)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _samplers() -> dict[str, Callable[[Tensor], Tensor]]:
    """Returns Euler and our two families: DyWeight with the windows of fits, DS-Solver with its whole history."""
    euler = k_diffusion_module("sampling").sample_euler
    flow = FlowNoise(tokens=1024)
    sigmas = torch.linspace(1, 0.05, STEPS + 1)
    short, long = (_windowed(history, sigmas) for history in (3, 6))
    searched = load_solver("ds_flow-sit").table(STEPS, flow)
    return {
        "euler": lambda x: euler(_network, x, sigmas, disable=True),
        "dyweight, history 3": lambda x: sample_table(_network, x, short, disable=True),
        "dyweight, history 6": lambda x: sample_table(_network, x, long, disable=True),
        "ds_flow-sit, whole history": lambda x: sample_table(_network, x, searched, disable=True),
    }


def _windowed(history: int, sigmas: Tensor) -> SolverTable:
    """Returns a DyWeight of random weights whose steps use so many of the newest entries."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(STEPS, STEPS, generator=generator, dtype=torch.float64).tril().triu(1 - history)
    weights = weights / weights.sum(1, keepdim=True)
    return dyweight_table(weights, torch.ones(STEPS, dtype=torch.float64), sigmas.double(), divisor="call")


def _with_comfy(comfy: Path, beside: str) -> dict[str, Callable[[Tensor], Tensor]]:
    sys.path.append(beside)
    host = host_module(comfy, "comfy.k_diffusion.sampling")
    sigmas = torch.linspace(1, 0.05, STEPS + 1)
    return {**_samplers(), "ipndm": lambda x: host.sample_ipndm(_network, x, sigmas, disable=True)}


def _network(x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
    """Returns the state itself: a network that costs nothing."""
    return x


def measure(samplers: dict[str, Callable[[Tensor], Tensor]], turns: int) -> dict[str, Any]:
    """Returns seconds per step and peak bytes beside the state, per size and sampler; samplers take turns."""
    torch.set_num_threads(1)
    records: dict[str, Any] = {}
    for label, shape in SIZES.items():
        x = torch.randn(shape)
        times: dict[str, list[float]] = {name: [] for name in samplers}
        for turn in range(turns + 1):
            for name, sample in samplers.items():
                began = time.perf_counter()
                sample(x)
                if turn:  # the first warms up
                    times[name].append((time.perf_counter() - began) / STEPS)
        records[label] = {
            name: {"seconds": median(times[name]), "states": _peak(lambda s=sample, x=x: s(x)) / x.nbytes}
            for name, sample in samplers.items()
        }
    return records


class _Storages(TorchDispatchMode):
    """Adds up the bytes of the tensors that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.known:
                    self.known.add(key)
                    self.alive += storage.nbytes()
                    self.peak = max(self.peak, self.alive)
                    weakref.finalize(tensor, self._gone, key, storage.nbytes())
        return out

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.alive -= size


def _peak(run: Callable[[], Tensor]) -> int:
    """Returns the bytes of tensors that were alive at once, those from before the run left out."""
    with _Storages() as storages:
        run()
    return storages.peak


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("comfy", type=Path)
    parser.add_argument("beside")
    parser.add_argument("turns", type=int)
    args = parser.parse_args()
    print(json.dumps(measure(_with_comfy(args.comfy, args.beside), args.turns)))
