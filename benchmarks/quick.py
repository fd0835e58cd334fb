"""The two-minute check: runs the benchmarks' code on small samples and checks ratios."""

from __future__ import annotations

import tempfile
from pathlib import Path

from .measures import fidelity
from .overhead import overhead, overhead_here
from .peers import best_value, peers
from .setting import Setting

__all__ = ["quick"]

LEAST_RATIO = 1.3  # best peer's error / ours; far below the records, as the samples are few
MOST_SPAN = 1.4  # our error / the span bound


def quick() -> int:
    """Prints the ratios that fail; returns 0 if all hold, otherwise 1."""
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(64, 16, unseen=256, ranked=24, steps=(4, 5), cache=Path(folder), solvers=Path(folder))
        records = [measure("digits", 3.0, setting)["records"] for measure in (fidelity, peers)]
    for point, with_peers in zip(*records, strict=True):
        ours, best = point["ours"]["dyweight"], best_value(with_peers, "error")
        if ours["error"] > best / LEAST_RATIO:
            failures.append(f"{point['steps']} calls: error {ours['error']:.4f}, best peer's {best:.4f}")
        if not 1 <= ours["error"] / ours["span"] <= MOST_SPAN:
            failures.append(f"{point['steps']} calls: error {ours['error']:.4f}, span bound {ours['span']:.4f}")
    measure = overhead_here()
    peer_name = "ipndm" if measure is overhead else "euler"
    if peer_name == "euler":
        print("comparing with k-diffusion's Euler; set COMFYUI_PATH to compare with ComfyUI's iPNDM", flush=True)
    for size, samplers in measure(turns=15).items():
        ours, peer = samplers["dyweight, history 3"], samplers[peer_name]
        print(size, f"{ours['seconds'] / peer['seconds']:.2f} of the peer's time per step", flush=True)
        if ours["seconds"] > peer["seconds"] or ours["states"] > peer["states"]:
            failures.append(f"{size}: {ours}, {peer_name} {peer}")
    print("\n".join(f"FAILED {line}" for line in failures) or "all ratios hold")
    return int(bool(failures))
