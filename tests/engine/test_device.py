"""What the loop does on a device, operation by operation: stands for CUDA and MPS where there is neither.

MPS has no float64; on both, reading a value waits for all work that is queued.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from learned_solvers.samplers import EDMNoise, FlowNoise, SolverTable, VPNoise, dpmpp_2m, load_solver, sample_table
from learned_solvers.training import GaussNewton, GradientDescent, fit_solver
from oracles import GaussianVE
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

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
    """Keeps the name, the inputs and the outputs of every operation below it."""

    seen: list[tuple[str, list[Tensor], list[Tensor]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.seen.append((name, list(tensors((args, kwargs))), list(tensors(result))))
        return result

    def reads(self) -> list[str]:
        """Names of operations that hand a value to the host, or copy from another device to the CPU."""
        found = [name for name, _, _ in self.seen if name in READS]
        for name, before, after in self.seen:
            if {t.device.type for t in before} - {"cpu"} and any(t.device.type == "cpu" for t in after):
                found.append(name)
        return found

    def float64(self, device: str) -> list[str]:
        """Names of operations with a float64 tensor on a device."""
        return [
            name
            for name, before, after in self.seen
            if any(t.dtype is torch.float64 and t.device.type == device for t in before + after)
        ]


def tensors(value: object) -> Iterator[Tensor]:
    """Yields the tensors in nested arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors(each)


def run(table: SolverTable, device: str, dtype: torch.dtype, model=GAUSSIAN) -> tuple[Operations, Operations]:
    """Returns what ran from the entrance on, and what ran since the first call of the model."""
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
def test_a_table_is_the_same_whatever_torchs_default_device_is(name):
    def table() -> SolverTable:
        solver = load_solver(name)
        kinds = {"flow": lambda: FlowNoise(4096), "vp": VPNoise.stable_diffusion, "edm": EDMNoise}
        return solver.table(solver.steps[0], kinds[solver.prediction]())

    usual = table()
    with torch.device("meta"):
        other = table()
    for name_of_part in ("levels", "sigmas", "scale", "coeffs"):
        assert torch.equal(getattr(other, name_of_part), getattr(usual, name_of_part))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_no_float64_reaches_the_device(table, dtype):
    everything, _ = run(table, "meta", dtype)
    assert len(everything.seen) > 5 * table.nfe
    assert everything.float64("meta") == []


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_the_loop_reads_nothing_from_the_device_and_sends_it_nothing(table):
    _, loop = run(table, "meta", torch.float32)
    assert len(loop.seen) > 5 * table.nfe and loop.reads() == []
    # All numbers are there before the first call: nothing crosses over, not even a constant.
    assert [name for name, before, after in loop.seen if any(t.device.type == "cpu" for t in before + after)] == []


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_on_the_cpu_the_loop_reads_no_value_and_stays_in_float32(table):
    _, loop = run(table, "cpu", torch.float32)
    assert loop.reads() == [] and loop.float64("cpu") == []


class Conversions(TorchFunctionMode):
    """Keeps the lines that make float64 of a state that was not brought to the CPU in the same breath.

    On a CPU `cpu()` returns the tensor itself, so that it is marked.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.brought = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, first = getattr(func, "__name__", ""), args[0] if args else None
        doubled = name == "double" or (name == "to" and torch.float64 in (*args[1:], *(kwargs or {}).values()))
        if doubled and isinstance(first, Tensor) and first.dtype is torch.float32:
            caller = next(f for f in reversed(traceback.extract_stack()[:-1]) if "torch" not in Path(f.filename).parts)
            if getattr(first, "is_brought", False):
                self.brought += 1
            else:
                self.seen.append(f"{Path(caller.filename).name}:{caller.lineno} {caller.line}")
        result = func(*args, **(kwargs or {}))
        if name == "cpu":
            result.is_brought = True
        return result


@pytest.mark.parametrize("optimizer", ["gauss-newton", "adam"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_fit_makes_float64_only_of_what_is_on_the_cpu(optimizer, dtype, tmp_path):
    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + sigma.view(-1, 1))

    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    chosen = GradientDescent("adam", epochs=1, batch=4) if optimizer == "adam" else GaussNewton(iterations=2)
    with Conversions() as conversions:
        fit_solver(
            model, x, noise=FlowNoise(), steps=(2,), teacher_steps=4, optimizer=chosen, journal=tmp_path / "journal"
        )
    assert conversions.seen == [] and conversions.brought > 5


def test_a_read_a_copy_and_a_float64_are_noticed():
    def reading(x: Tensor, sigma: Tensor) -> Tensor:
        return x * float(sigma.double().max())

    _, loop = run(TABLES["dpmpp_2m"], "cpu", torch.float32, reading)
    assert loop.reads().count("_local_scalar_dense") == 6 and loop.float64("cpu")
    with Operations() as operations:
        torch.zeros(2, device="meta").to(torch.float64)
        torch.empty_like(torch.zeros(2, device="meta"), device="cpu")
    assert operations.float64("meta") == ["_to_copy"] and operations.reads() == ["empty_like"]
