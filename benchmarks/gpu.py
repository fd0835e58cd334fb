"""On a GPU: what a step and a fit cost, through ComfyUI, in ten minutes at most. Not part of `python -m benchmarks`.

    <ComfyUI's python> benchmarks/gpu.py COMFYUI_PATH           writes results/gpu.json with the card's name
    <ComfyUI's python> benchmarks/gpu.py COMFYUI_PATH --small   tiny sizes, on any device; writes nothing

It needs no checkpoint: the models are the bundled emoji network and an SD3 transformer of a hundred million random
weights, which ComfyUI loads and runs in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

if not __package__:  # run as a file, by ComfyUI's Python
    sys.path.append(str(Path(__file__).resolve().parent.parent))
    __package__ = "benchmarks"
    import_module(__package__)

from learned_solvers.samplers import FlowNoise, Grid, Guidance, SolverTable, euler, sample_table
from learned_solvers.training import EFFORTS, fit_solver
from learned_solvers.training.models.comfy import ComfyModel
from learned_solvers.training.models.emoji import SHAPE, load_emoji
from learned_solvers.training.models.host import Host
from learned_solvers.training.models.loading import ModelFiles

from .overhead import SIGMAS, STEPS, our_samplers, seconds_by_turns
from .record import provenance, save

LATENTS = {
    "SDXL 1x4x128x128": (1, 4, 128, 128), "FLUX 1x16x128x128": (1, 16, 128, 128),
    "Wan 1x16x21x60x104": (1, 16, 21, 60, 104),
}  # fmt: skip
FIT_STEPS, GUIDANCE = 5, 4.0
DEPTH, SIDE, TOKENS, CONTEXT, POOLED = 10, 128, 77, 2048, 768  # of the transformer: 64 * DEPTH channels
Parts = dict[str, Any]


class Device:
    """The GPU, or the CPU where there is none; its memory and time."""

    def __init__(self) -> None:
        self.cuda = torch.cuda.is_available()
        self.type = "cuda" if self.cuda else "cpu"
        self.name = torch.cuda.get_device_name() if self.cuda else "cpu"

    def now(self) -> float:
        """Seconds, after the device has finished its work."""
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def peak_mib(self, run: Callable[[], Any]) -> float:
        """The peak of allocated memory during `run`, in MiB; NaN on the CPU."""
        if not self.cuda:
            run()
            return math.nan
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() / 2**20

    def synchronisations(self, run: Callable[[], Any]) -> int:
        """How often `run` waits for the GPU; 0 on the CPU."""
        if not self.cuda:
            return 0
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                run()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in caught)


DEVICE = Device()


class Stopwatch:
    """Sums the time of a module's forward passes, on the GPU by events, so that nothing waits for it."""

    def __init__(self, module: nn.Module) -> None:
        self.begun: list[Any] = []
        self.pairs: list[tuple[Any, Any]] = []
        self.hooks = [
            module.register_forward_pre_hook(lambda *_: self.begun.append(self._mark())),
            module.register_forward_hook(lambda *_: self.pairs.append((self.begun.pop(), self._mark()))),
        ]

    @staticmethod
    def _mark() -> Any:
        if not DEVICE.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> float:
        """The total so far; ends the measurement."""
        for hook in self.hooks:
            hook.remove()
        if not DEVICE.cuda:
            return sum(end - begin for begin, end in self.pairs)
        torch.cuda.synchronize()
        return sum(begin.elapsed_time(end) for begin, end in self.pairs) / 1000


def measure_steps(latents: dict[str, tuple[int, ...]], turns: int) -> Parts:
    """Microseconds and synchronisations per step of our samplers and ComfyUI's ipndm and euler, by latent."""
    module = sys.modules["comfy.k_diffusion.sampling"]
    record = {}
    for label, shape in latents.items():
        x, sigmas = torch.randn(shape, device=DEVICE.type), SIGMAS.to(DEVICE.type)
        samplers = {
            **our_samplers(),
            "ipndm": lambda x, sigmas=sigmas: module.sample_ipndm(_identity, x, sigmas, disable=True),
            "ComfyUI's euler": lambda x, sigmas=sigmas: module.sample_euler(_identity, x, sigmas, disable=True),
        }
        times = seconds_by_turns(samplers, x, turns, DEVICE.now)
        record[label] = {
            name: {
                "microseconds": 1e6 * sorted(times[name])[turns // 2],
                "synchronisations": DEVICE.synchronisations(lambda s=sample, x=x: s(x)) / STEPS,
                "peak_latents": DEVICE.peak_mib(lambda s=sample, x=x: s(x)) * 2**20 / x.nbytes,
            }
            for name, sample in samplers.items()
        }
    return record


def _identity(x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
    return x


def measure_fit(denoiser: Callable[..., Tensor], network: nn.Module, x: Tensor, extra_args: Parts, batch: int) -> Parts:
    """Seconds and memory of a fit with the default effort, and of sampling the same batch with its solver."""
    settings = EFFORTS["default"].for_numbers(x[0].numel())
    calls, results = [], []

    def count_calls(x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        calls.append(len(x))
        return denoiser(x, sigma, **extra_args)

    def fit() -> None:
        options = {"extra_args": extra_args, "microbatch": batch, "held_out": settings.held_out}
        results.append(fit_solver(count_calls, x, noise=FlowNoise(), steps=(FIT_STEPS,), **options))

    stopwatch, began = Stopwatch(network), DEVICE.now()
    fit_peak = DEVICE.peak_mib(fit)
    seconds = DEVICE.now() - began
    in_network, samples = stopwatch.seconds(), sum(calls)
    ((_, report),) = results[0].report.items()
    table, first = results[0].solver.table(FIT_STEPS, FlowNoise()), _rows(x, extra_args, batch)
    sampling = measure_sampling(denoiser, network, table, *first)
    return {
        "calls": samples, "seconds": seconds, "milliseconds_per_call": 1e3 * seconds / samples,
        "part_outside_the_network": 1 - in_network / seconds, "peak_mib": fit_peak,
        "error": report.error_after, "best_peer": report.peers[0].error, "sampling": sampling,
    }  # fmt: skip


def measure_sampling(
    denoiser: Callable[..., Tensor], network: nn.Module, table: SolverTable, x: Tensor, extra_args: Parts
) -> Parts:
    """Seconds and memory of sampling with a table, in the second of two runs."""

    def sample() -> Tensor:
        return sample_table(denoiser, x, table, extra_args, disable=True)

    sample()
    stopwatch, began = Stopwatch(network), DEVICE.now()
    peak = DEVICE.peak_mib(sample)
    seconds = DEVICE.now() - began
    return {
        "milliseconds_per_call": 1e3 * seconds / table.nfe / len(x),
        "part_outside_the_network": 1 - stopwatch.seconds() / seconds, "peak_mib": peak,
    }  # fmt: skip


def _rows(x: Tensor, extra_args: Parts, count: int) -> tuple[Tensor, Parts]:
    cut = {k: v[:count] if isinstance(v, Tensor | list) and len(v) == len(x) else v for k, v in extra_args.items()}
    return x[:count], cut


def measure_emoji(count: int) -> Parts:
    """A fit of the emoji network in bfloat16, without and with `torch.compile`."""
    settings = EFFORTS["default"].for_numbers(math.prod(SHAPE))
    model, samples = load_emoji(dtype=torch.bfloat16).to(DEVICE.type), min(count, sum(settings.sizes(None)))
    words = model.words(["red heart", "blue book", "cat face", "tree plant"]).to(DEVICE.type)
    x = torch.randn(samples, *SHAPE, generator=torch.Generator().manual_seed(0)).to(DEVICE.type, torch.bfloat16)
    extra_args = {"words": words.repeat(samples // 4 + 1, 1)[:samples], "guidance": GUIDANCE}
    record = {"eager": measure_fit(model, model.network, x, extra_args, samples)}
    if DEVICE.cuda:  # on a CPU the compiler needs C++
        model.network.forward = torch.compile(model.network.forward)
        record["compiled"] = measure_fit(model, model.network, x, extra_args, samples)
    return record


def measure_transformer(host: Host, path: Path, count: int, depth: int, side: int) -> Parts:
    """A fit of a random SD3 transformer through ComfyUI in bfloat16, and sampling without and with `torch.compile`."""
    _write_transformer(path, depth)
    model = ComfyModel.load(ModelFiles(diffusion_model=path, host=host), text_encoders=False)
    network, generator = model.patcher.model.diffusion_model, torch.Generator().manual_seed(0)
    conds = [
        {"context": torch.randn(1, TOKENS, CONTEXT, generator=generator),
         "pooled_output": torch.randn(1, POOLED, generator=generator)} for _ in range(5)
    ]  # fmt: skip
    shape, table = [1, 16, side, side], euler(Grid("flow_shift", {"shift": 3.0}).levels(FIT_STEPS, FlowNoise()))

    def work(denoiser: Callable[..., Tensor], device: torch.device) -> Parts:
        x = model.starts(shape, count, 0).to(device)
        record = measure_fit(denoiser, network, x, {"row": list(range(count))}, 1)
        first = _rows(x, {"row": list(range(count))}, 1)
        record["sampling"] = measure_sampling(denoiser, network, table, *first)
        if DEVICE.cuda:  # on a CPU the compiler needs C++
            network.forward = torch.compile(network.forward)
            record["compiled_sampling"] = measure_sampling(denoiser, network, table, *first)
        return record

    parameters = sum(p.numel() for p in network.parameters())
    return {"parameters": parameters, **model.with_denoiser(work, conds, Guidance("cfg", (GUIDANCE,)), shape)}


def _write_transformer(path: Path, depth: int) -> None:
    """Random weights of an SD3 MMDiT that ComfyUI's stock loader accepts."""
    from safetensors.torch import save_file

    context = {"target": "torch.nn.Linear", "params": {"in_features": CONTEXT, "out_features": 64 * depth}}
    network = sys.modules["comfy.ldm.modules.diffusionmodules.mmdit"].OpenAISignatureMMDITWrapper(
        patch_size=2, in_channels=16, out_channels=16, depth=depth, adm_in_channels=POOLED, num_patches=192 * 192,
        pos_embed_max_size=192, pos_embed_scaling_factor=None, input_size=None, context_embedder_config=context,
        qk_norm="rms", x_block_self_attn_layers=[], dtype=torch.float32, device="meta",
        operations=sys.modules["comfy.ops"].disable_weight_init,
    )  # fmt: skip
    generator, values = torch.Generator().manual_seed(0), {}
    for key, tensor in network.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim >= 2 and not key.endswith("pos_embed"):
            values[key] = noise / math.sqrt(math.prod(tensor.shape[1:]))
        else:
            values[key] = torch.ones(tensor.shape) if key.endswith("weight") else 0.02 * noise
    save_file({key: value.bfloat16() for key, value in values.items()}, path)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path, metavar="COMFYUI_PATH", help="ComfyUI's folder")
    parser.add_argument("--small", action="store_true", help="tiny sizes, on any device; writes nothing")
    args = parser.parse_args()
    if not (DEVICE.cuda or args.small):
        parser.error("no CUDA device found: try the script with --small")
    host = Host(args.comfyui)
    for name in ("comfy.sd", "comfy.k_diffusion.sampling", "comfy.ops", "comfy.ldm.modules.diffusionmodules.mmdit"):
        host.module(name)
    about = provenance("benchmarks/gpu.py", card=DEVICE.name, cuda=torch.version.cuda)
    began, record = time.monotonic(), {}
    latents, count = ({"tiny": (1, 4, 8, 8)}, 6) if args.small else (LATENTS, 14)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for name, part in (
            ("steps", lambda: measure_steps(latents, 3 if args.small else 21)),
            ("emoji", lambda: measure_emoji(count)),
            ("transformer", lambda: measure_transformer(
                host, Path(folder) / "random_sd3.safetensors", count, *((2, 16) if args.small else (DEPTH, SIDE)))),
        ):  # fmt: skip
            record[name] = part()
            print(json.dumps({name: record[name]}, indent=1), flush=True)
    about["seconds"] = round(time.monotonic() - began)
    print(f"{about['seconds']} seconds on {DEVICE.name}")
    if not args.small:
        save("gpu", "gpu", {"about": about, "record": record}, ["gpu"])


if __name__ == "__main__":
    main()
