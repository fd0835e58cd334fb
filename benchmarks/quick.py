"""The two-minute check: the benchmarks' own code on few samples, ratios asserted."""

from __future__ import annotations

import tempfile
from pathlib import Path

from .fidelity import Sizes, fidelity
from .overhead import overhead, overhead_here
from .peers import of_best_peer, peers, with_peers

__all__ = ["quick"]

STEPS = (4, 5)
LEAST_RATIO = 1.3  # of the best peer's error to ours; few samples, so far below what the records show
MOST_SPAN = 1.4


def quick() -> int:
    """Returns 0 where all ratios hold, else 1, after saying which do not."""
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        sizes = Sizes(fitted=64, held_out=16, unseen=256, ranked=24)
        cache = Path(folder)
        ours, theirs = fidelity("digits", 3.0, STEPS, sizes, cache, cache), peers("digits", 3.0, STEPS, sizes, cache)
    for record in with_peers([ours], [theirs])[0]["records"]:
        own, best = record["ours"]["dyweight"], of_best_peer(record, "error")
        if own["error"] > best / LEAST_RATIO:
            failed.append(f"{record['steps']} calls: {own['error']:.4f} against the best peer's {best:.4f}")
        if not 1 <= own["error"] / own["span"] <= MOST_SPAN:
            failed.append(f"{record['steps']} calls: {own['error']:.4f} with a span bound of {own['span']:.4f}")
    measure = overhead_here()
    peer_name = "ipndm" if measure is overhead else "euler"
    if peer_name == "euler":
        print("beside k-diffusion's Euler; with COMFYUI_PATH set, beside ComfyUI's iPNDM", flush=True)
    for size, samplers in measure(turns=15).items():
        ours, peer = samplers["dyweight, history 3"], samplers[peer_name]
        print(size, f"{ours['seconds'] / peer['seconds']:.2f} of its time per step", flush=True)
        if ours["seconds"] > peer["seconds"] or ours["states"] > peer["states"]:
            failed.append(f"{size}: {ours} against {peer}")
    print("\n".join(f"FAILED {line}" for line in failed) or "all ratios hold")
    return int(bool(failed))
