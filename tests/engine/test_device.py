"""Operations of the loop on a device, without one: no float64, which MPS lacks, and no read, which would block."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from learned_solvers.samplers import EDMNoise, FlowNoise, SolverTable, VPNoise, dpmpp_2m, load_solver, sample_table
from learned_solvers.training import GradientDescent, LevenbergMarquardt, fit_solver
from oracles import GaussianVE, assert_same_table
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GAUSSIAN = GaussianVE()
TABLES = {
    "dyweight vp": load_solver("dyweight_sd15").table(6, VPNoise.stable_diffusion()),
    "dyweight flow": load_solver("dyweight_flux1-dev").table(5, FlowNoise(tokens=1024)),
    "dyweight analytic": load_solver("dyweight_cifar10").table(5, EDMNoise()),
    "ds vp": load_solver("ds_vp-dit").table(6, VPNoise.stable_diffusion()),
    "dpmpp_2m": dpmpp_2m(torch.linspace(10, 1, 7, dtype=torch.float64)),
}
READS = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "allclose", "masked_select", "unique2"}


@dataclass
class Operations(TorchDispatchMode):
    """Records name, inputs and outputs of every operation."""

    seen: list[tuple[str, list[Tensor], list[Tensor]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.seen.append((name, tensors((args, kwargs)), tensors(result)))
        return result

    def reads(self) -> list[str]:
        """Names of operations that return a value to Python or copy from a device to the CPU."""
        seen = [(name, *({t.device.type for t in part} for part in used)) for name, *used in self.seen]
        return [name for name, before, after in seen if name in READS or (before - {"cpu"} and "cpu" in after)]

    def float64(self, device: str) -> list[str]:
        """Names of operations with a float64 tensor on a device."""
        wide = (torch.float64, device)
        return [name for name, *used in self.seen if wide in {(t.dtype, t.device.type) for t in tensors(used)}]


def tensors(value: object) -> list[Tensor]:
    """The tensors in nested arguments."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def record(table: SolverTable, device: str, dtype: torch.dtype, model=GAUSSIAN) -> tuple[Operations, Operations]:
    """All operations of a run, and those since the first call of the model."""
    x = torch.ones(2, 4, 8, 8, device=device, dtype=dtype)

    def marked(x: Tensor, sigma: Tensor) -> Tensor:
        starts.append(len(everything.seen))
        return model(x, sigma)

    starts: list[int] = []
    with Operations() as everything:
        result = sample_table(marked, x, table, callback=lambda info: None, disable=True)
    assert (result.device.type, result.dtype, len(starts)) == (device, dtype, table.nfe)
    return everything, Operations(everything.seen[starts[0] :])


@pytest.mark.parametrize("name", ["dyweight_flux1-dev", "dyweight_sd15", "ds_flow-sit", "ds_vp-dit", "dyweight_ffhq64"])
def test_a_table_does_not_depend_on_torchs_default_device(name):
    def table() -> SolverTable:
        solver = load_solver(name)
        kinds = {"flow": lambda: FlowNoise(4096), "vp": VPNoise.stable_diffusion, "edm": EDMNoise}
        return solver.table(solver.steps[0], kinds[solver.prediction]())

    with torch.device("meta"):
        on_meta = table()
    assert_same_table(on_meta, table())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_the_device_sees_no_float64_no_read_and_no_copy_in_the_loop(table, dtype):
    everything, loop = record(table, "meta", dtype)
    assert len(loop.seen) > 5 * table.nfe
    assert everything.float64("meta") == [] and loop.reads() == []
    # All numbers are on the device before the first call: nothing is copied, not even a constant.
    assert [name for name, *used in loop.seen if any(t.device.type == "cpu" for t in tensors(used))] == []


class Conversions(TorchFunctionMode):
    """Records the lines that convert a state to float64 that is not the result of `cpu()`.

    On a CPU `cpu()` returns the tensor itself, so the result is marked.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.allowed = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, first = getattr(func, "__name__", ""), args[0] if args else None
        doubled = name == "double" or (name == "to" and torch.float64 in (*args[1:], *(kwargs or {}).values()))
        if doubled and isinstance(first, Tensor) and first.dtype is torch.float32:
            caller = next(f for f in reversed(traceback.extract_stack()[:-1]) if "torch" not in Path(f.filename).parts)
            if getattr(first, "is_from_cpu", False):
                self.allowed += 1
            else:
                self.seen.append(f"{Path(caller.filename).name}:{caller.lineno} {caller.line}")
        result = func(*args, **(kwargs or {}))
        if name == "cpu":
            result.is_from_cpu = True
        return result


@pytest.mark.parametrize("optimizer", [LevenbergMarquardt(work=1.5), GradientDescent("adam", epochs=1, batch=4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_fit_converts_to_float64_only_on_the_cpu(optimizer, dtype, tmp_path):
    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + sigma.view(-1, 1))

    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    options = {"noise": FlowNoise(), "steps": (2,), "teacher_steps": 4, "journal": tmp_path / "journal"}
    with Conversions() as conversions:
        fit_solver(model, x, optimizer=optimizer, **options)
    assert conversions.seen == [] and conversions.allowed > 5


def test_a_read_a_copy_and_a_float64_are_noticed():
    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return x * float(sigma.double().max())

    _, loop = record(TABLES["dpmpp_2m"], "cpu", torch.float32, model)
    assert loop.reads().count("_local_scalar_dense") == 6 and loop.float64("cpu")
    with Operations() as operations:
        torch.zeros(2, device="meta").to(torch.float64)
        torch.empty_like(torch.zeros(2, device="meta"), device="cpu")
    assert operations.float64("meta") == ["_to_copy"] and operations.reads() == ["empty_like"]
