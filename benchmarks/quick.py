"""The quick check: runs the benchmarks' code on small samples and checks ratios."""

from __future__ import annotations

from .fidelity import fidelity, lead, ours
from .overhead import overhead, overhead_here

__all__ = ["quick"]

LEAST_LEAD = 1.2  # best peer's error / ours; below the records, as the samples are few
MOST_SPAN = 1.4  # our error / the span bound


def quick() -> int:
    """Prints the ratios that fail; returns 0 if all hold, otherwise 1."""
    failures = []
    for point in fidelity("digits", 3.0, (5, 6), [("dyweight", "default", seed) for seed in (0, 1, 2)], 256)["points"]:
        ahead, error, span = lead(point), ours(point), ours(point, "span")
        if ahead < LEAST_LEAD:
            failures.append(f"{point['steps']} steps: the best peer's error is only {ahead:.2f} times ours")
        if not 1 <= error / span <= MOST_SPAN:
            failures.append(f"{point['steps']} steps: error {error:.4f}, span bound {span:.4f}")
    measure = overhead_here()
    peer_name = "ipndm" if measure is overhead else "euler"
    if peer_name == "euler":
        print("comparing with k-diffusion's Euler; set COMFYUI_PATH to compare with ComfyUI's iPNDM", flush=True)
    for size, samplers in measure(turns=15).items():
        mine, peer = samplers["dyweight, history 3"], samplers[peer_name]
        print(size, f"{mine['seconds'] / peer['seconds']:.2f} of the peer's time per step", flush=True)
        if mine["seconds"] > peer["seconds"] or mine["states"] > peer["states"]:
            failures.append(f"{size}: {mine}, {peer_name} {peer}")
    print("\n".join(f"FAILED {line}" for line in failures) or "all ratios hold")
    return int(bool(failures))
