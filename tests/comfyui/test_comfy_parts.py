"""Parts of a schedule: image-to-image, and split sigmas shared with stock samplers."""

from __future__ import annotations

import pytest
import torch
from comfy_situations import DS_VP, EULER, PUBLISHED, Oracle, Situation, assert_same, differs, oracle_of
from learned_solvers.samplers import VPNoise
from torch.testing import assert_close

pytestmark = pytest.mark.comfy


@pytest.mark.parametrize("model", ["sd15", "sd3"])
@pytest.mark.parametrize("denoise", [0.3, 0.7])
def test_image_to_image_starts_where_a_stock_sampler_does_and_equals_euler(server, model, denoise):
    situation = Situation.of(server, model)
    situation.latent = situation.draw()
    situation.denoise = denoise
    situation.show("sigmas", ["learnedsolver", 1])
    learned = situation.assert_oracle()
    sigmas = situation.numbers("sigmas")
    assert sigmas[-1] == 0 and len(sigmas) < 5
    assert f"{len(sigmas) - 1} of its 4 model calls, from sigma" in situation.text("learnedinfo")
    assert differs(learned, situation.sampled("draw"))
    # The level of percent_to_sigma(1 - denoise) with any scheduler: of shift 3, or of the 1000 levels.
    expected = 3 * denoise / (1 + 2 * denoise)
    if model == "sd15":
        index = torch.tensor([999 * denoise], dtype=torch.float64)
        expected = float(VPNoise.stable_diffusion().sigma_at_index(index))
    assert_close(sigmas[0], expected, rtol=2e-3, atol=0.0)


@pytest.mark.parametrize(
    ("model", "oracle", "step"),
    [
        *((model, EULER, step) for model in ("sd15", "sd3", "wan") for step in (1, 3)),
        ("sd15", PUBLISHED["sd15"], 2),
        ("sd15", Oracle("dyweight_sd15", 6, "00037-mscoco-nfe12"), 2),
        ("sd15", DS_VP, 2),
        ("sd3", oracle_of("sd3", "published"), 2),
    ],
)
def test_learned_and_stock_samplers_share_a_split_schedule(server, model, oracle, step):
    situation = Situation.of(server, model, oracle)
    samplers, sigmas = situation.samplers()
    situation.add("split", "SplitSigmas", sigmas=sigmas, step=step)
    no_noise = situation.add("nonoise", "DisableNoise")
    learned, first, last = samplers["learned"], samplers["oracle"], samplers["oracle"]
    stock = situation.add("euler", "KSamplerSelect", sampler_name="euler")
    if oracle.table is not None:
        # Rows of the paper's figures; a row's lost history goes to its oldest remaining gradient.
        wires = {"table": oracle.table, "steps": oracle.steps}
        first = situation.add("first", "TinyPublished", **wires, stop=step)
        last = situation.add("last", "TinyPublished", **wires, start=step)
    runs = {"early": (learned, stock), "late": (stock, learned), "both": (learned, learned)}
    runs |= {"early by hand": (first, stock), "late by hand": (stock, last), "both by hand": (first, last)}
    for name, (high, low) in runs.items():
        latent = situation.sample(f"{name} high", high, ["split", 0])
        situation.sample(name, low, ["split", 1], latent_image=latent, noise=no_noise)
    early, late, both, *by_hand = situation.submit(*runs)
    for learned_run, expected in zip((early, late, both), by_hand, strict=True):
        assert_same(learned_run, expected, 1e-5 if oracle == EULER else 3e-5)
    assert (oracle == EULER) != differs(early, late)
